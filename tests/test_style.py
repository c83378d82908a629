"""Checks that lines and functions are short, in code, tests and shell."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "common", "data", "exercises", "exercises/solutions", "experiments", "show")
FOLDERS += ("tests", "tests/robustness")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))
SHELL = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.sh"))
PAGE = sorted(path for kind in ("js", "html") for path in (ROOT / "show").glob(f"*.{kind}"))


def test_the_files_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in PYTHON + SHELL}
    expected = {"flow.py", "common/checkpoint.py", "data/prepare.py", "experiments/bench.py"}
    assert names >= expected | {"tests/test_style.py", "tests/robustness/soak.py", "speedrun.sh"}


def test_no_line_is_longer_than_100_characters():
    long = []
    for path in PYTHON + SHELL + PAGE:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if len(line) > 100:
                long.append(f"{path.relative_to(ROOT)}:{number} has {len(line)} characters")
    assert not long, "\n".join(long)


def test_no_function_is_longer_than_60_lines():
    long = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)
