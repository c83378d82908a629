"""Are the exercises fit for a class? Solutions pass, starters fail until they are solved, and each
exercise has all of its parts."""

import inspect
import os
import re
import subprocess
import sys

import pytest

from command import ROOT

FOLDER = ROOT / "exercises"
NAMES = re.findall(r"^## \d+\. (\w+)$", (ROOT / "docs/exercises.md").read_text(), re.M)


def run_exercises(*flags):
    """What `python -m pytest exercises` prints."""
    command = [sys.executable, "-m", "pytest", "exercises", "-q", "-p", "no:cacheprovider", *flags]
    wide = os.environ | {"COLUMNS": "200"}  # so that no line is cut
    return subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True).stdout


def functions(path):
    """{name: (parameters, docstring)} of a file's functions."""
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    found = {name: value for name, value in scope.items() if inspect.isfunction(value)}
    return {name: (str(inspect.signature(f)), f.__doc__) for name, f in found.items()
            if f.__code__.co_filename == str(path)}


def test_there_are_ten():
    assert len(NAMES) == 10
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.py")
                                   if path.stem not in ("conftest", "test_exercises"))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_all_of_its_parts(name):
    text = (ROOT / "docs/exercises.md").read_text().split(f". {name}\n")[1].split("\n## ")[0]
    assert "python -m pytest exercises -k" in text and "<summary>Hint</summary>" in text
    assert f"def test_{name}(load):" in (FOLDER / "test_exercises.py").read_text()
    solution = FOLDER / "solutions" / f"{name}.py"
    if solution.exists():
        assert functions(solution) == functions(FOLDER / f"{name}.py")


def test_the_solutions_pass():
    if not (FOLDER / "solutions").exists():
        pytest.skip("exercises/solutions has been removed")
    assert "10 passed" in run_exercises("--solutions")


def test_the_starters_fail_until_they_are_solved():
    starters = [name for name in NAMES
                if "raise NotImplementedError" in (FOLDER / f"{name}.py").read_text()]
    printed = run_exercises()
    for name in starters:
        assert re.search(rf"FAILED \S+::test_{name} - NotImplementedError", printed), name
