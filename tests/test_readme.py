"""Checks README and docs: tables agree with toy.py and with one another, what is named exists."""

import re
from pathlib import Path

import pytest

import toy

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAPER = (ROOT / "docs/paper.md").read_text()


def table_after(words, text=README):
    """The rows of the first table behind `words`, each a list of cells; without its heading."""
    lines = text[text.index(words) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.strip() for cell in cells])
    return rows[2:]


def test_the_table_of_the_exact_world():
    """Every figure of "Why few steps are hard" is that of toy.py, to its three decimals."""
    shown = {}
    for source, rule, grid, *errors in table_after("**Why few steps are hard.**", PAPER):
        power = 1 if grid == "uniform" else int(grid.removeprefix("power "))
        shown[source, rule, power] = [float(error) for error in errors]
    computed = {(source, rule, power): errors for source, rule, power, errors in toy.table_rows()}
    assert shown.keys() == computed.keys()
    for row, errors in computed.items():
        assert shown[row] == pytest.approx(errors, abs=5.1e-4), row


def test_the_figures_of_the_sentence_below_it():
    text = PAPER[PAPER.index("`euler` is the rule of Meta's") :].split("\n\n")[0]
    computed = {(rule, power): errors[3] for _, rule, power, errors in toy.table_rows()[:8]}
    names = [("euler", 1), ("averaged", 1), ("euler-forced", 1), ("cumulative", 1)]
    names += [("euler", 2), ("cumulative", 2)]
    numbers = [float(number) for number in re.findall(r"0\.\d{3}", text)]
    assert numbers == pytest.approx([computed[name] for name in names], abs=5.1e-4)


def test_the_functions_of_the_maths_table_exist():
    for *_, where in table_after("## The maths in one screen"):
        module, name = where.strip("`").split(".")
        assert re.search(rf"^def {name}\(", (ROOT / f"{module}.py").read_text(), re.M), where


def test_the_files_it_names_exist():
    named = re.findall(r"`([\w/]+(?:\.py|\.sh|/))`", README)
    named += re.findall(r"\]\((docs/[^)]+)\)", README)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists() and "out/" not in name] == []


def test_the_readme_is_a_page():
    assert len(README.encode()) <= 9_216 and README.count("\n") <= 130


def test_the_stories_of_its_results_are_those_of_the_docs():
    """Seeds 1 and 2 of DFM and FS-DFM, from the table of docs/results.md."""
    stories = (ROOT / "docs/results.md").read_text()
    shown = {row[0]: row[1:4] for row in table_after("## What comes of it")}
    measured = {row[0]: row[1:] for row in table_after("## The speedrun", stories)}
    columns = {"DFM": (0, 8), "FS-DFM": (4, 9)}
    for name, (first, second) in columns.items():
        for cell, steps in zip(shown[name], ("8", "64", "1,024")):
            cells = [measured[steps][column].split(" ")[0] for column in (first, second)]
            assert cell == ", ".join(filter(None, cells)), (name, steps)
