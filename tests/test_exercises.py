"""Are the exercises fit for a class? Solutions pass, starters say that they are not written yet, a
wrong answer learns what was expected, and each has a section in docs/exercises.md."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exercises import diffusion, solutions

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/exercises.md").read_text()
NAMES = re.findall(r"^## \d+\. (\w+)$", DOCUMENT, re.M)


def run_exercises(*flags, folder=ROOT):
    """The lines that `python -m pytest exercises` prints, {exercise: verdict}."""
    command = [sys.executable, "-m", "pytest", "exercises", "-p", "no:cacheprovider", *flags]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in NAMES}


def test_there_are_ten():
    tests = (ROOT / "exercises/test_exercises.py").read_text()
    assert len(NAMES) == 10
    assert re.findall(r"^def test_(\w+)\(mine", tests, re.M) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_has_all_of_its_parts(name):
    section = DOCUMENT.split(f". {name}\n")[1].split("\n## ")[0]
    assert "<details><summary>Hint</summary>" in section
    word = re.search(r"^    python -m pytest exercises -k (\w+)", section, re.M)[1]
    assert [other for other in NAMES if word in other] == [name]  # it runs this test alone


def test_the_solutions_pass_and_write_a_story(monkeypatch, capsys):
    assert run_exercises("--solutions") == dict.fromkeys(NAMES, "right")
    monkeypatch.setattr(diffusion, "generate", solutions.generate)
    diffusion.main()
    assert len(capsys.readouterr().out.split()) > 60


def test_the_starters_are_not_written_yet():
    assert run_exercises() == dict.fromkeys(NAMES, "not written yet")


def test_a_wrong_answer_learns_what_was_expected(tmp_path):
    shutil.copytree(ROOT / "exercises", tmp_path / "exercises")
    solutions = (ROOT / "exercises/solutions.py").read_text()
    wrong = solutions.replace("** 2.5", "** 2").replace("1 - p_stay, -p_stay", "1 - p_stay, 0")
    (tmp_path / "exercises/diffusion.py").write_text(wrong)
    found = run_exercises(folder=tmp_path)
    assert found["grid"].endswith("expected less than 0.022, found 0.0278")
    assert re.search(r"expected 1.8189, found [-\d.]+$", found["loss"])
    assert found["jump"] == "right"
