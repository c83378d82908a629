"""Where do few steps come from? Right stories in 4 and 8 steps, a rung for each idea.

    python experiments/ladder.py                  OUT/ladder.json, drawn by plot.py
    python experiments/ladder.py --steps 2 4 8 16 --num-samples 1024

The first rung is the DFM with the sampler of Meta's library; each of the others changes the one
before. Distribution matching keeps renoise, starts from the DFM again, and has a rung where it has
been trained. All rungs draw from the same seeds. Before: eval.py, extras/matching.py.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

from config.command import parser_of, pick_device, stop  # before torch

import json
import os

from tqdm import tqdm

from data.stories import can_check
from eval import draw_texts, lowest, measure_stories
from extras.samplers import euler_step, renoise, uniform_grid
from flow import generate
from sample import find_network, load_model

RUNGS = [  # what it is, where its code stands, network, sampler
    ("DFM: rate at t, uniform steps", "samplers.euler_step", "dfm",
     partial(generate, power=1.0, step=euler_step)),
    ("+ scalar and forced move", "flow.jump", "dfm", uniform_grid),
    ("+ steps that shrink", "flow.time_grid", "dfm", generate),
    ("+ shortcut teacher: FS-DFM", "shortcut_target", "fsdfm", generate),
    ("+ renoise", "samplers.renoise", "fsdfm", renoise),
    ("DFM + distribution matching", "matching_loss", "dmd", renoise),
]


def paths_of(out):
    """{network: file}: those of OUT, or those of weights/, never a mixture."""
    folder = os.path.dirname(find_network(out, "dfm"))
    paths = {name: os.path.join(folder, f"{name}.pt") for name in ("dfm", "fsdfm", "dmd")}
    return {name: path for name, path in paths.items() if name != "dmd" or os.path.exists(path)}


def table(rows, steps):
    """A line a rung, at most 100 columns."""
    lines = [f"{'right stories (95% interval)':30}{'function':20}"
             + "".join(f"{n:>12} steps" for n in steps)]
    for rung in dict.fromkeys(row["rung"] for row in rows):
        found = {row["steps"]: row for row in rows if row["rung"] == rung}
        line = f"{rung:30}{found[steps[0]]['function']:20}"
        for n in steps:
            row = found[n]
            line += f"{row['right']:.3f} {row['right_low']:.2f}-{row['right_high']:.2f}".rjust(18)
        lines.append(line)
    last = {row["steps"]: lowest(row["variety"]) for row in rows if row["rung"] == rows[-1]["rung"]}
    lines.append(f"{'variety on the last rung':50}" + "".join(f"{last[n]:>18}" for n in steps))
    return "\n".join(lines)


def main():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=[4, 8], help="(default: 4 8)")
    add("--num-samples", type=int, default=512, help="stories of each number (default: 512)")
    add("--seed", type=int, default=1, help="(default: 1)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    if min(*arguments.steps, arguments.num_samples) < 1:
        stop("--steps and --num-samples must be above 0")
    device, n = pick_device(arguments.device), arguments.num_samples
    networks = {}
    for name, path in paths_of(arguments.out).items():
        networks[name], tokenizer = load_model(path, device)
        if not can_check(tokenizer):
            stop(f"right ones are counted of stories, and {path} was trained on another text")
    rungs = [rung for rung in RUNGS if rung[2] in networks]
    bar = tqdm(total=n * len(rungs) * sum(arguments.steps), desc="the ladder", unit="step",
               unit_scale=True)
    rows = []
    for rung, function, name, sampler in rungs:
        for steps in arguments.steps:
            x, _ = draw_texts(networks[name], n, steps, sampler, 1.0, arguments.seed, bar.update)
            row, _ = measure_stories([tokenizer.decode(ids) for ids in x.tolist()])
            rows.append({"rung": rung, "function": function, "steps": steps, "texts": n} | row)
    bar.close()
    os.makedirs(arguments.out, exist_ok=True)
    path = os.path.join(arguments.out, "ladder.json")
    with open(f"{path}.new", "w") as file:
        json.dump(rows, file, indent=1)
    os.replace(f"{path}.new", path)
    print(table(rows, arguments.steps))


if __name__ == "__main__":
    main()
