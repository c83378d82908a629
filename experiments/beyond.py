"""Four ways to spend training time.

    python experiments/beyond.py                   stories -> beyond/stories.md, stories.png
    python experiments/beyond.py --data pydocs     real text -> beyond/pydocs.md, pydocs.png
    python experiments/beyond.py --seeds 1 2       trained and measured with each seed

    DFM                     as `train.py dfm` trains it
    compute-matched DFM     for as long as DFM and dmd together, by the clock of their checkpoints
    FS-DFM                  distilled from the DFM (distill.py)
    distribution matching   dmd, from the same DFM (matching.py)

All draw with the best sampler we know for them (docs/results.md): stories by renoise with shared
noise, other text with the leave-one-out temperature, dmd by renoise, the others by the jump. Of
stories the picture has right ones against steps; of other text perplexity against entropy at 4 and
8 steps, a point for each temperature. Run it again to go on where it stopped. Before: matching.py,
docs/results.md.
"""

import sys
from pathlib import Path

# `python experiments/beyond.py` puts experiments/ on the path, and train.py is one folder above
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common.early  # first: Ctrl-C is quiet from here on

import matplotlib.pyplot as plt

from common.checkpoint import load_checkpoint
from common.command import Parser, number, run_command, seed_number
from common.files import write_safely, write_text
from common.report import read_report
from experiments.ablate import run_script
from plot import (
    ENTROPY, GREY, LABELS, LOOK, PERPLEXITY, STYLES, label_ends, lowest_variety, plain_log_scale,
)
from train import PRESETS

NAMES = {"dfm": "DFM", "longer": "compute-matched DFM"} | LABELS  # in the order of the table
NAMES |= {"many": "DFM, default sampler"}
LONGER = STYLES["dfm"] | {"color": "#7fa8d9", "marker": "D"}
LOOKS = {"dfm": STYLES["dfm"], "longer": LONGER} | STYLES  # in the order of the legend
STEPS = {"stories": (1, 2, 4, 8, 16), "text": (4, 8)}
MANY = 1024  # of the DFM, for stories
SAMPLERS = {"stories": ["--update", "renoise", "--shared-noise"], "text": ["--leave-one-out"]}
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)  # of text
REPETITIVE = 0.5  # bits: text with so much less entropy than real text is left out of the picture

# ------------------------------------------------------------------------------------------------
# training and measuring


def longer_iterations(folder):
    """How many iterations the DFM could have made in the time of DFM and dmd together."""
    dfm, dmd = (load_checkpoint(folder / f"{stage}.pt") for stage in ("dfm", "dmd"))
    return round(dfm["iteration"] * (1 + dmd["seconds"] / dfm["seconds"]))


def train_all(seed, folder, arguments):
    """Trains what is missing, in `folder`, and the compute-matched DFM in its folder "longer"."""
    flags = ["--resume", "--seed", seed, "--data", arguments.data]
    flags += ["--preset", arguments.preset] if arguments.preset else []
    for stage in ("judge", "dfm", "fsdfm", "dmd"):
        run_script("train.py", stage, *flags, "--out", folder)
    iterations = longer_iterations(folder)
    run_script("train.py", "dfm", *flags, "--out", folder / "longer", "--iterations", iterations)


def measure_all(seed, folder, arguments):
    """[row of eval.json] of all four, the compute-matched DFM's with "longer" as their model, and
    of stories the DFM's in 1,024 steps of the default sampler as "many"; and the measures of real
    text."""
    stories = arguments.data == "stories"
    flags = ["--data", arguments.data, "--seed", seed, "--num-samples", arguments.num_samples]
    flags += ["--judge", folder / "judge.pt"]
    few = STEPS["stories" if stories else "text"]
    best = SAMPLERS["stories"] if stories else [*SAMPLERS["text"], "--temperatures", *TEMPERATURES]
    jobs = [("", folder, ["dfm", "fsdfm", "dmd"], few, best)]
    jobs += [("longer", folder / "longer", ["dfm"], few, best)]
    if stories:
        fewer = ["--slow-samples", min(256, arguments.num_samples)]
        jobs += [("many", folder, ["dfm"], [MANY], fewer)]
    rows = []
    for name, out, models, steps, own in jobs:
        run_script("eval.py", *flags, *own, "--steps", *steps, "--out", out, "--models", *models)
        report = read_report(out / "eval.json")
        renamed = {"model": name} if name else {}
        rows += [
            row | renamed | {"seed": seed} for row in report["rows"]
            if row["model"] in models and row["steps"] in steps
        ]
    return rows, report["real"]


# ------------------------------------------------------------------------------------------------
# table and picture


def table(rows):
    """Markdown: a line for each network, seed and temperature, a column for each number of
    steps."""
    steps = sorted({row["steps"] for row in rows})
    lines = ["| network | seed | temperature | " + " | ".join(map(str, steps)) + " |"]
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(steps))
    cells = {}
    for row in sorted(rows, key=lambda row: list(NAMES).index(row["model"])):
        if "right" in row:
            variety = f" ({lowest_variety(row):.2f})" if row["variety"] else ""
            text = f"{row['right']:.3f} ± {row['right_error']:.3f}{variety}"
        else:
            text = f"{row['perplexity']:.0f} ± {row['perplexity_error']:.0f}"
            text += f" ({row['entropy']:.2f}; {row['entropy_4grams']:.3f})"
        cells.setdefault((row["model"], row["seed"], row["temperature"]), {})[row["steps"]] = text
    for (model, seed, temperature), texts in cells.items():
        line = f"| {NAMES[model]} | {seed} | {temperature:g} | "
        lines.append(line + " | ".join(texts.get(n, "") for n in steps) + " |")
    return "\n".join(lines) + "\n"


def mean_over_seeds(rows, x, y):
    """x, mean y and its standard error over the samples of all seeds, for rows of one line."""
    points = {}
    for row in rows:
        points.setdefault(row[x], []).append(row)
    means, errors = [], []
    for group in points.values():
        means.append(sum(row[y] for row in group) / len(group))
        errors.append(sum(row[y + "_error"] ** 2 for row in group) ** 0.5 / len(group))
    return list(points), means, errors


def draw_right(axis, rows):
    """Right stories against steps: a line for each network, the mean over the seeds."""
    ends = []
    for model in LOOKS:
        own = [row for row in rows if row["model"] == model]
        steps, means, errors = mean_over_seeds(own, "steps", "right")
        axis.errorbar(steps, means, errors, **LOOKS[model])
        ends.append((means[-1], NAMES[model], LOOKS[model]["color"]))
    own = [row for row in rows if row["model"] == "many"]
    _, [many], _ = mean_over_seeds(own, "steps", "right")
    axis.axhline(many, color=GREY, linestyle="--")
    ends.append((many, f"DFM, {MANY:,} steps", GREY))
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, map(str, steps))
    axis.set_xlabel("sampling steps")
    axis.set_ylabel("share of stories without a mistake")
    axis.set_ylim(-0.02, 1.02)
    label_ends(axis, ends)


def draw_frontier(axis, rows, real, steps):
    """Perplexity against entropy, over temperatures: a line for each network and seed."""
    for model in LOOKS:
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
            own = [row for row in own if row["steps"] == steps]
            own = [row for row in own if row["entropy"] > real["entropy"] - REPETITIVE]
            names = ("entropy", "perplexity", "perplexity_error", "entropy_error")
            x, y, dy, dx = ([row[column] for row in own] for column in names)
            axis.errorbar(x, y, dy, dx, label=NAMES[model] if seed == rows[0]["seed"] else None,
                          **LOOKS[model])
    axis.plot(real["entropy"], real["perplexity"], "*", color=GREY, markersize=18,
              label="real text")
    plain_log_scale(axis)
    axis.set_title(f"{steps} steps")
    axis.set_xlabel(ENTROPY)
    axis.set_ylabel(PERPLEXITY)


def draw(rows, real, title):
    """The figure: one panel for stories, one for each number of steps for other text."""
    plt.rcParams.update(LOOK)
    panels = 1 if "right" in real else len(STEPS["text"])
    figure, axes = plt.subplots(1, panels, figsize=(10 if panels == 1 else 14, 5.6),
                                layout="constrained", squeeze=False)
    if panels == 1:
        draw_right(axes[0, 0], rows)
    else:
        for axis, steps in zip(axes[0], STEPS["text"]):
            draw_frontier(axis, rows, real, steps)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
    if panels > 1:
        axes[0, 0].legend(frameon=False)
    figure.suptitle(title)
    return figure


# ------------------------------------------------------------------------------------------------
# the command


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data", default="stories", help="name given to data/prepare.py (default: stories)")
    add("--out", type=Path, default=Path("beyond"), help="folder that is written (default: beyond)")
    add("--preset", choices=PRESETS, help="that of train.py (default: its own choice)")
    add("--seeds", type=seed_number, nargs="+", default=[1],
        help="of training and of the samples (default: 1)")
    add("--num-samples", type=number(int, 1, 10**6), default=256,
        help="texts of a figure (default: 256)")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        folder = arguments.out / f"{arguments.data}, seed {seed}"
        train_all(seed, folder, arguments)
        measured, real = measure_all(seed, folder, arguments)
        rows += measured
    text = table(rows)
    write_text(arguments.out / f"{arguments.data}.md", text)
    title = f"seed{'s' if len(arguments.seeds) > 1 else ''} "
    title += f"{', '.join(map(str, arguments.seeds))}; {arguments.num_samples} texts a point"
    figure = draw(rows, real, title)
    write_safely(
        arguments.out / f"{arguments.data}.png",
        lambda temporary: figure.savefig(temporary, dpi=120, format="png"),
    )
    print(text)


if __name__ == "__main__":
    run_command(main)
