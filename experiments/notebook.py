"""Writes docs/nanodfm.ipynb, the lecture's run for a free GPU or a CPU.

    python experiments/notebook.py

The cells stand below, text and code in turn. Code is plain Python, so that the notebook runs in any
Jupyter; with the environment variable PRESET=tiny it runs in a minute and learns next to nothing.
Before: docs/lecture.md.
"""

import json
import sys
from pathlib import Path

# `python experiments/notebook.py` puts experiments/ on the path, and common/ is one folder above
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common.early  # first: Ctrl-C is quiet from here on

from common.command import Parser, run_command
from common.files import write_text

CELLS = [
    ("text", """
# nanoDFM: text in 8 steps instead of 1,024

A text diffusion model writes all tokens of a text at once, in many steps. This notebook shows one
that needs few: first with networks that come with the project, then with your own, trained here.
On two fast CPU cores the training takes about 10 minutes; nobody has timed it on a free GPU yet.

The lecture to read beside it is `docs/lecture.md`.
"""),
    ("code", """
import html
import os
import subprocess
import sys
from pathlib import Path

from IPython.display import HTML, Image, display

REPOSITORY = ""  # where to clone the project from, if this is not its folder already
PRESET = os.environ.get("PRESET", "cpu")  # "tiny" to see it run, "cpu" to see it learn

if Path("../flow.py").exists():
    os.chdir("..")
if not Path("flow.py").exists():
    if not REPOSITORY:
        raise SystemExit("This is not the project's folder: set REPOSITORY above to its address.")
    subprocess.run(["git", "clone", REPOSITORY, "nanodfm"], check=True)
    os.chdir("nanodfm")
sys.path.insert(0, os.getcwd())


def run(*arguments):
    \"\"\"`python ARGUMENTS`, with what it prints below the cell.\"\"\"
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, errors="replace")
    print(result.stdout)
    assert result.returncode == 0, "the command failed: its message is above"


import torch

print("GPU" if torch.cuda.is_available() else "CPU", torch.__version__)
"""),
    ("text", """
## A first text

From noise to a story in 8 steps, by a network of a megabyte that comes with the project.
`--check` lists its mistakes: stories have a grammar of their own, and a program finds every one.
"""),
    ("code", """
run("sample.py", "--steps", 8, "--check")
run("sample.py", "--model", "dfm", "--steps", 1, "--check")
"""),
    ("text", """
## The race

The same noise, three runs, one clock. Press play. Yellow tokens changed their mind, red ones are
wrong in the finished story. Move the mouse over a word to see how sure the network was.
"""),
    ("code", """
run("sample.py", "--html", "race.html", "--race", "dfm:256", "dfm:8", "dmd:8")
page = html.escape(Path("race.html").read_text("utf-8"))
display(HTML(f'<iframe srcdoc="{page}" width="100%" height="720"></iframe>'))
"""),
    ("text", """
## Train your own

A judge, which scores texts; a DFM, which needs many steps; and FS-DFM, distilled from it, which
needs few. After each of them a text that it writes.
"""),
    ("code", """
if not Path("data/stories/meta.json").exists():
    run("data/prepare.py", "stories")
for stage in ("judge", "dfm", "fsdfm"):
    run("train.py", stage, "--preset", PRESET, "--out", "mine", "--resume")
for model in ("dfm", "fsdfm"):
    run("sample.py", "--model", model, "--out", "mine", "--steps", 8, "--check")
"""),
    ("text", """
## Measure it

The share of right stories against the number of steps. Each point has an error bar: how much would
it move with other random numbers?
"""),
    ("code", """
steps = [1, 2] if PRESET == "tiny" else [1, 2, 4, 8, 16, 32, 64]
samples = 4 if PRESET == "tiny" else 128
run("eval.py", "--out", "mine", "--steps", *steps, "--num-samples", samples)
run("plot.py", "--out", "mine")
display(Image("mine/headline.png", width=700))
"""),
    ("text", """
## An exercise

In a step from t to t + h a token jumps with the probability 1 - S^(1 - p), where p is what the
posterior gives to the token that is there, and S = (1 - kappa(t + h)) / (1 - kappa(t)) with
kappa(t) = t. Write it. The cell below says whether it is right. Nine more are in
`docs/exercises.md`.
"""),
    ("code", """
def p_jump(p_stay, t, h):
    # your turn: replace the next line
    return None
"""),
    ("code", """
from toy import cumulative

yours = p_jump(0.2, 0.0, 0.5)
if yours is None:
    print("not written yet")
elif abs(yours - cumulative(0.2, 0.0, 0.5)) < 1e-6:
    print("right: 0.426 for p = 0.2, t = 0, h = 1/2")
else:
    print(f"{yours:.3f}, and it should be {cumulative(0.2, 0.0, 0.5):.3f}")
"""),
]


def notebook():
    """The notebook's content, as Jupyter's file format 4.5 wants it."""
    cells = []
    for number, (kind, text) in enumerate(CELLS):
        lines = text.strip().splitlines(keepends=True)
        cell = {"id": f"cell-{number}", "metadata": {}, "source": lines}
        if kind == "code":
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
        else:
            cells.append({"cell_type": "markdown", **cell})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main():
    parser = Parser(__doc__)
    path = ROOT / "docs/nanodfm.ipynb"
    parser.add_argument("--file", type=Path, default=path,
                        help="file that is written (default: docs/nanodfm.ipynb)")
    path = parser.parse_args().file
    write_text(path, json.dumps(notebook(), indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
