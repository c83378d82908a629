"""Trained networks of stories -> weights/, as int8, with a README that says how they were made.

    python experiments/pack.py     out/ -> weights/{judge,dfm,fsdfm,dmd}.pt, weights/README.md

What int8 costs is measured: right stories of the float32 weights and of the int8 ones, the same
noise for both. Before: common/quantize.py.
"""

import sys
from pathlib import Path

# `python experiments/pack.py` puts experiments/ on the path, and train.py is one folder above
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common.early  # first: Ctrl-C is quiet from here on

from tqdm import tqdm

from common.checkpoint import (
    LABELS, STAGES, WEIGHTS, load_checkpoint, load_model, must_be_ours, save_checkpoint,
)
from common.command import Parser, UserError, number, run_command
from common.device import pick_device
from common.files import OUT, file_hash, write_text
from common.quantize import quantize
from data.dataset import Dataset
from data.stories import can_check
from eval import machine_name, measure_stories, plus_minus, timed_samples
from flow import Sampler

COLUMNS = {"dfm": (8, 64), "fsdfm": (4, 8), "dmd": (4, 8)}  # steps that are measured
SEED = 1


def pack(stage, out):
    """Writes weights/STAGE.pt: the EMA where there is one, and nothing that training needs."""
    checkpoint = load_checkpoint(out / f"{stage}.pt")
    must_be_ours(checkpoint, out / f"{stage}.pt", stage)
    weights = quantize(checkpoint["ema"] or checkpoint["model"])
    kept = {name: value for name, value in checkpoint.items() if name not in ("auxiliary", "file")}
    packed = kept | {"model": weights, "ema": None, "optimizers": []}
    save_checkpoint(WEIGHTS / f"{stage}.pt", packed, first=True)
    return checkpoint


def right_stories(path, steps, num_samples, dataset, device):
    """Right stories of a checkpoint, as text: mean ± standard error."""
    model, _ = load_model(path, device)
    shape = (num_samples, model.config.block_size)
    with tqdm(total=num_samples * steps, desc=f"measuring {path}", unit="step", leave=False,
              delay=1) as bar:
        x_1, _ = timed_samples(model, shape, steps, Sampler(), SEED, 64,
                               callback=lambda step, x_t: bar.update(len(x_t)))
    row = {"samples": num_samples} | measure_stories(x_1, dataset)
    return plus_minus(row, "right", 3)


def accuracy_lines(arguments, dataset, device):
    """Markdown: right stories of float32 and int8 weights."""
    lines = ["| network | steps | float32 | int8 |", "| --- | ---: | ---: | ---: |"]
    for stage, counts in COLUMNS.items():
        for steps in counts:
            shares = [
                right_stories(path / f"{stage}.pt", steps, arguments.num_samples, dataset, device)
                for path in (arguments.out, WEIGHTS)
            ]
            lines.append(f"| {LABELS[stage]} | {steps} | {' | '.join(shares)} |")
            print(lines[-1], flush=True)
    return lines


def file_lines(checkpoints):
    """Markdown: how each file was made."""
    lines = ["| file | iterations | minutes | bytes | SHA-256 |"]
    lines.append("| --- | ---: | ---: | ---: | --- |")
    for stage, checkpoint in checkpoints.items():
        path = WEIGHTS / f"{stage}.pt"
        minutes = checkpoint["seconds"] / 60
        cells = [f"`{stage}.pt`", f"{checkpoint['iteration']:,}", f"{minutes:.0f}"]
        cells += [f"{path.stat().st_size:,}", f"`{file_hash(path)[:16]}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=OUT, help="folder of the checkpoints (default: out)")
    add("--preset", default="cpu", help="with which they were trained, for the README")
    add("--num-samples", type=number(int, 1, 10**6), default=1024,
        help="stories of a figure (default: 1024)")
    add("--machine", default="", help="a few words on the machine that trained them")
    add("--device", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    dataset = Dataset("stories")
    if not can_check(dataset.tokenizer):
        raise UserError("data/stories has other tokens than stories: prepare it again")
    checkpoints = {stage: pack(stage, arguments.out) for stage in STAGES}
    settings = checkpoints["dfm"]["settings"]
    machine = arguments.machine or machine_name(device)
    accuracy = "\n".join(accuracy_lines(arguments, dataset, device))
    files = "\n".join(file_lines(checkpoints))
    text = f"""# Trained networks

Used by `sample.py` and `demo.sh` as long as nothing has been trained in `out/`. They write the
stories of `data/stories.py`. Made by

    python data/prepare.py stories
    for stage in judge dfm fsdfm dmd; do python train.py $stage --preset {arguments.preset}; done
    python experiments/pack.py --preset {arguments.preset}

with seed {settings['seed']}, on {machine}:

{files}

Matrices are int8, a row with a scale of its own (`common/quantize.py`). What that costs: right
stories ± one standard error, {arguments.num_samples:,} stories, seed {SEED}, each with its default
sampler:

{accuracy}
"""
    write_text(WEIGHTS / "README.md", text)


if __name__ == "__main__":
    run_command(main)
