"""Trained networks of stories -> weights/, as int8, and the tables of weights/README.md.

    python experiments/pack.py     out-long/ -> weights/{judge,dfm,fsdfm,dmd}.pt

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
    parser.add_argument("--out", type=Path, default="out-long", help="folder of the checkpoints")
    out = parser.parse_args().out
    print("| file | iterations | minutes | bytes |\n| --- | ---: | ---: | ---: |")
    for stage in ("judge", *NETWORKS):
        print(pack(stage, out))
    print("\n| network | steps | float32 | int8 |\n| --- | ---: | ---: | ---: |")
    for stage in NETWORKS:
        for steps in STEPS:
            shares = [right_stories(folder / f"{stage}.pt", steps) for folder in (out, TO)]
            print(f"| {stage} | {steps} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
