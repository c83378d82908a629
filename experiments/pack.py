"""Trained networks of stories -> weights/, as int8, with a README that says how they were made.

    python experiments/pack.py     out-long/ -> weights/{judge,dfm,fsdfm,dmd}.pt, weights/README.md

Of a checkpoint the EMA is kept where there is one, and nothing that training alone needs. What int8
costs is measured: right stories of the float32 weights and of the int8 ones, from the same random
numbers. Before: show/page.py, which has the int8 format.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # sample.py is there

from config.command import pick_device  # before torch

import argparse
import os

import torch

from data.stories import check
from sample import WEIGHTS, load_checkpoint, load_model, write
from show.page import quantize

NETWORKS, STEPS, STORIES = ("dfm", "fsdfm", "dmd"), (4, 8), 512  # that are measured
TO = Path(WEIGHTS)
KEPT = ("stage", "config", "settings", "iteration", "seconds", "tokenizer")
README = """# Trained networks

Used by `sample.py`, `eval.py` and `demo.sh` for each network that has not been trained in `out/`.
They write the stories of `data/stories.py`. Made by

    python data/prepare.py stories
    for stage in judge dfm fsdfm; do python train.py $stage config/stories_long.py; done
    python -m extras.matching --out=out-long
    python experiments/pack.py

with seed {seed}{machine}:

{files}

Matrices are int8, a row with a scale of its own (`quantize` in `show/page.py`). What that costs:
right stories ± one standard error, {stories} stories, seed 1, each with its own sampler:

{accuracy}
"""


def pack(stage, out):
    """OUT/STAGE.pt -> weights/STAGE.pt. Its line of the table."""
    checkpoint = load_checkpoint(out / f"{stage}.pt")
    packed = {name: checkpoint[name] for name in KEPT}
    packed |= {"model": quantize(checkpoint["ema"] or checkpoint["model"]), "ema": None}
    path = TO / f"{stage}.pt"
    torch.save(packed, f"{path}.new")
    os.replace(f"{path}.new", path)
    cells = f"{checkpoint['iteration']:,} | {checkpoint['seconds'] / 60:.0f}"
    return f"| `{stage}.pt` | {cells} | {path.stat().st_size:,} |"


def right_stories(path, steps):
    """The share of right stories, as text: mean ± standard error."""
    model, tokenizer = load_model(path, pick_device())
    texts = write(model, tokenizer, num_samples=STORIES, steps=steps, seed=1)
    share = sum(not check(text) for text in texts) / STORIES
    return f"{share:.3f} ± {(share * (1 - share) / STORIES) ** 0.5:.3f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default="out-long", help="folder of the checkpoints (out-long)")
    add("--machine", default="", help="a few words on the machine that trained them")
    arguments = parser.parse_args()
    files = ["| file | iterations | minutes | bytes |", "| --- | ---: | ---: | ---: |"]
    files += [pack(stage, arguments.out) for stage in ("judge", *NETWORKS)]
    accuracy = ["| network | steps | float32 | int8 |", "| --- | ---: | ---: | ---: |"]
    for stage in NETWORKS:
        for steps in STEPS:
            shares = [right_stories(out / f"{stage}.pt", steps) for out in (arguments.out, TO)]
            accuracy.append(f"| {stage} | {steps} | {' | '.join(shares)} |")
            print(accuracy[-1], flush=True)
    (TO / "README.md").write_text(README.format(
        seed=load_checkpoint(TO / "dfm.pt")["settings"]["seed"],
        machine=f", on {arguments.machine}" if arguments.machine else "",
        files="\n".join(files), stories=STORIES, accuracy="\n".join(accuracy),
    ))


if __name__ == "__main__":
    main()
