"""Does what README, lecture and exercises say work as it stands? The lecture's Python is a doctest,
and the commands are run with the networks that come with the project."""

import doctest
import json
import re
import shlex
import shutil

import pytest

from command import ROOT, copy_project, run
from experiments.notebook import notebook

DOCUMENTS = ("README.md", "docs/lecture.md")
# these train, take longer than a minute, or are tested elsewhere (test_commands.py, test_show.py)
ELSEWHERE = ("train.py", "--out mine", "--html", "prepare.py stories", "--temperatures")


def commands(name):
    """The lines of a document that begin with `python SCRIPT`: indented ones, and those of "Run"
    between backticks."""
    text = (ROOT / name).read_text()
    found = re.findall(r"^    (python \S+\.py.*)$", text, re.M)
    for paragraph in re.findall(r"^\*\*Run\*\* .*$", text, re.M):
        found += re.findall(r"`(python \S+\.py[^`]*)`", paragraph.split("**See**")[0])
    found = [re.split(r"\s#", line)[0].strip() for line in found]
    return [line for line in found if not any(words in line for words in ELSEWHERE)]


ALL = list(dict.fromkeys(line for name in DOCUMENTS for line in commands(name)))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with its networks, and a text of one's own."""
    folder = copy_project(tmp_path_factory.mktemp("documents"))
    shutil.copytree(ROOT / "weights", folder / "weights")
    (folder / "my.txt").write_text((ROOT / "README.md").read_text() * 8)
    run(folder, "data/prepare.py", "stories")
    return folder


def test_the_commands_are_found():
    assert len(ALL) >= 8
    assert {"python toy.py", "python sample.py --race"} <= set(ALL)


@pytest.mark.parametrize("line", ALL)
def test_a_command(project, line):
    result = run(project, *shlex.split(line)[1:])
    assert result.stdout.strip()


def test_the_numbers_of_the_lecture():
    """Every `>>>` prints what stands below it."""
    failed, tried = doctest.testfile(str(ROOT / "docs/lecture.md"), module_relative=False)
    assert tried >= 30 and not failed


def test_the_notebook_is_that_of_its_script():
    assert json.loads((ROOT / "docs/nanodfm.ipynb").read_text()) == notebook()


def test_the_notebook_runs(project):
    """All cells, at the tiny size."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    book = nbformat.reads(json.dumps(notebook()), as_version=4)
    environment = {"PRESET": "tiny", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = nbclient.NotebookClient(
            book, timeout=600, resources={"metadata": {"path": str(project)}}
        )
        client.execute()
    printed = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert "not written yet" in str(printed[-1]) and "image/png" in str(printed[-3])
