"""Trained networks -> weights/, as int8.

    python experiments/pack.py     out-long/ -> weights/{judge,dfm,fsdfm,dmd}.pt, and a table
    python experiments/pack.py out-books weights/books

The EMA is kept where there is one, and nothing that training alone needs. What int8 costs:
weights/README.md. Before: show/page.py, which has the int8 format.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # sample.py is there

import config.command  # before torch

import os

import torch

from sample import WEIGHTS, load_checkpoint
from show.page import quantize

KEPT = ("stage", "config", "settings", "iteration", "seconds", "tokenizer")


def pack(source, target, stage):
    """SOURCE/STAGE.pt -> TARGET/STAGE.pt. Its line of the table."""
    checkpoint, path = load_checkpoint(f"{source}/{stage}.pt"), f"{target}/{stage}.pt"
    packed = {name: checkpoint[name] for name in KEPT}
    packed |= {"model": quantize(checkpoint["ema"] or checkpoint["model"]), "ema": None}
    torch.save(packed, f"{path}.new")
    os.replace(f"{path}.new", path)
    cells = f"{checkpoint['iteration']:,} | {checkpoint['seconds'] / 60:.0f}"
    return f"| `{stage}.pt` | {cells} | {os.path.getsize(path):,} |"


if __name__ == "__main__":
    print("| file | iterations | minutes | bytes |\n| --- | ---: | ---: | ---: |")
    source, target = sys.argv[1:] or ("out-long", WEIGHTS)
    os.makedirs(target, exist_ok=True)
    for name in ("judge", "dfm", "fsdfm", "dmd", "longer"):
        if os.path.exists(f"{source}/{name}.pt"):
            print(pack(source, target, name))
