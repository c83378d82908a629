"""Are the exercises fit for a class? Solutions pass, starters fail with NotImplementedError until
they are solved, and each has a section in docs/exercises.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/exercises.md").read_text()
NAMES = re.findall(r"^## \d+\. (\w+)$", DOCUMENT, re.M)


def run_exercises(*flags):
    """What `python -m pytest exercises` prints."""
    command = [sys.executable, "-m", "pytest", "exercises", "-q", "-p", "no:cacheprovider", *flags]
    wide = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}  # so that no line is cut
    return subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True).stdout


def test_there_are_ten():
    tests = (ROOT / "exercises/test_exercises.py").read_text()
    assert len(NAMES) == 10
    assert re.findall(r"^def test_(\w+)\(load", tests, re.M) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_has_all_of_its_parts(name):
    section = DOCUMENT.split(f". {name}\n")[1].split("\n## ")[0]
    assert "<details><summary>Hint</summary>" in section
    word = re.search(r"^    python -m pytest exercises -k (\w+)", section, re.M)[1]
    assert [other for other in NAMES if word in other] == [name]  # it runs this test alone


def test_the_solutions_pass():
    printed = run_exercises("--solutions")
    assert "10 passed" in printed, printed


def test_the_starters_say_what_is_to_be_written():
    failed = re.findall(r"^FAILED .*", run_exercises(), re.M)
    assert failed and all("NotImplementedError" in line for line in failed), failed
