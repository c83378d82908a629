"""Are the exercises fit for a class? Solutions pass, starters fail until they are solved, and each
exercise has all of its parts. A student's own work in a starter must not fail here."""

import inspect
import os
import re
import subprocess
import sys

import pytest

from command import ROOT

FOLDER = ROOT / "exercises"
SOLUTIONS = FOLDER / "solutions"
DOCUMENT = (ROOT / "docs/exercises.md").read_text()
NAMES = re.findall(r"^## \d+\. (\w+)$", DOCUMENT, re.M)


def run_exercises(*flags):
    """What `python -m pytest exercises` prints."""
    command = [sys.executable, "-m", "pytest", "exercises", "-q", "-p", "no:cacheprovider", *flags]
    wide = os.environ | {"COLUMNS": "200"}  # so that no line is cut
    return subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True).stdout


def functions(path):
    """Of a file's own functions: {name: [parameters]}, and {name: whether it is still to be
    written}."""
    scope = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    own = {name: value for name, value in scope.items()
           if inspect.isfunction(value) and value.__code__.co_filename == str(path)}
    parameters = {name: list(inspect.signature(f).parameters) for name, f in own.items()}
    return parameters, {name: is_to_be_written(f) for name, f in own.items()}


def is_to_be_written(function):
    return "NotImplementedError" in function.__code__.co_names


def test_there_are_ten():
    tests = (FOLDER / "test_exercises.py").read_text()
    assert len(NAMES) == 10
    assert re.findall(r"^def test_(\w+)\(load\)", tests, re.M) == NAMES
    assert set(NAMES) <= {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", NAMES)
def test_it_has_all_of_its_parts(name):
    section = DOCUMENT.split(f". {name}\n")[1].split("\n## ")[0]
    assert re.search(r"^\*(\d+ minutes|An evening)", section, re.M)
    assert "<details><summary>Hint</summary>" in section
    word = re.search(r"^    python -m pytest exercises -k (\w+)", section, re.M)[1]
    assert [other for other in NAMES if word in other] == [name]  # it runs this test alone
    starter, _ = functions(FOLDER / f"{name}.py")
    assert starter
    if SOLUTIONS.exists():
        solution, _ = functions(SOLUTIONS / f"{name}.py")
        assert solution.items() <= starter.items()  # a student may write helpers


def test_the_solutions_pass():
    if not SOLUTIONS.exists():
        pytest.skip("exercises/solutions has been removed")
    printed = run_exercises("--solutions")
    assert "10 passed" in printed, printed


def test_the_starters_fail_until_they_are_solved():
    """With a NotImplementedError if nothing is written yet; half a solution may fail otherwise."""
    starters = {name: functions(FOLDER / f"{name}.py")[1].values() for name in NAMES}
    if not any(any(to_be_written) for to_be_written in starters.values()):
        pytest.skip("every exercise in exercises/ has been solved")
    unsolved = [name for name in NAMES if any(starters[name])]
    printed = run_exercises("-k", " or ".join(f"test_{name}" for name in unsolved))
    assert f"{len(unsolved)} failed" in printed and " passed" not in printed, printed
    for name in unsolved:
        error = "NotImplementedError" if all(starters[name]) else ""
        assert re.search(rf"^FAILED \S+::test_{name} - {error}", printed, re.M), printed
