"""What does each part of the method contribute? Students that differ from the full FS-DFM in one
thing each, of the same DFM and the same seed.

    bash speedrun.sh                 makes the judge and the DFM, in out/
    python experiments/ablate.py     trains and measures every row -> ablation/table.md, picture.png
    python experiments/ablate.py --seeds 1 2     the DFM of seed 2 is that of out-seed2/

Of stories the picture has the share of right ones at 8 steps, of other text perplexity and entropy.
Run it again to go on where it stopped: nothing is trained or measured twice. A row of the table is
a Row below: the flags that train.py and eval.py get. Each row has a folder of its own. The paper's
recipe and the mask source have a DFM of their own, too. Before: eval.py, docs/results.md.
"""

import filecmp
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# `python experiments/ablate.py` puts experiments/ on the path, and train.py is one folder above
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common.early  # first: Ctrl-C is quiet from here on

import matplotlib.pyplot as plt

from common import files
from common.checkpoint import load_checkpoint
from common.command import Parser, UserError, number, run_command, seed_number
from common.files import must_be_ordinary, write_safely, write_text
from common.report import read_report
from eval import FEW
from plot import ENTROPY, GREY, LOOK, PERPLEXITY, STYLES, lowest_variety, plain_log_scale
from train import PRESETS

STEPS = (1, 2, 4, 8, 16, 64)
DRAWN_STEPS = (4, 8, 16)
FULL = "full FS-DFM"

# glibc keeps large blocks instead of returning them: training on a CPU is faster (speedrun.sh)
TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=8000000000:glibc.malloc.mmap_max=0"}

# ------------------------------------------------------------------------------------------------
# the rows


@dataclass(frozen=True)
class Row:
    """A row of the table: a network, how it is trained and how it is sampled."""

    name: str
    training: str = ""  # flags of train.py
    sampling: str = ""  # flags of eval.py
    stage: str = "fsdfm"
    dfm: str = "DFM"  # the row whose network a student starts from
    copy_of: str = ""  # nothing is trained: the row whose network this is, or OUT


OUT = "--out"  # stands for the folder of the speedrun
ROWS = [
    Row("DFM", stage="dfm", copy_of=OUT),
    Row("DFM, uniform grid", sampling="--grid-power 1", stage="dfm", copy_of="DFM"),
    Row("DFM, library Euler", sampling="--update euler", stage="dfm", copy_of="DFM"),
    Row(FULL),
    Row(f"{FULL}, uniform grid", sampling="--grid-power 1", copy_of=FULL),
    Row(f"{FULL}, library Euler", sampling="--update euler", copy_of=FULL),
    Row(f"{FULL}, nearest trained h", sampling="--step-conditioning nearest", copy_of=FULL),
    Row("no teacher, data loss alone", "--data-steps 1"),
    Row("data loss at 1/1024 alone", "--data-steps 1024"),
    Row("Simpson teacher", "--teacher simpson"),
    Row("Heun teacher", "--teacher heun"),
    Row("mean of probabilities", "--mean probabilities"),
    Row("no EMA", "--ema-decay 0"),
    Row("library Euler", "--update euler", "--update euler"),
    Row("not conditioned on h", "--step-aware off"),
    Row("uniform step weights", "--step-weights uniform"),
    Row("paper's step weights", "--step-weights paper"),
    Row("trained on the sampled grid", "--training-grid sampler"),
    Row("published last jump", "--teacher-last-jump published"),
    # AdamW at the best of three learning rates on pydocs (docs/paper.md)
    Row("DFM, paper's recipe", "--recipe paper --learning-rate 1e-3", "--grid-power 1", "dfm"),
    Row("paper's recipe", "--recipe paper", "--grid-power 1", dfm="DFM, paper's recipe"),
    Row("paper's recipe, from our DFM", "--recipe paper", "--grid-power 1"),
    Row("paper's recipe, from our DFM, our grid", copy_of="paper's recipe, from our DFM"),
    Row("DFM, mask source", "--source mask", stage="dfm"),
    Row(f"{FULL}, mask source", dfm="DFM, mask source"),
]
STUDENTS = [row.name for row in ROWS if row.stage == "fsdfm" and not row.copy_of]


def rows_of(students):
    """The rows of the students named: each, its DFM, and the other ways to sample the two. The
    DFM of the speedrun is always there, to compare."""
    names = {"DFM", *students} | {row.dfm for row in ROWS if row.name in students}
    return [row for row in ROWS if row.name in names or row.copy_of in names]


@dataclass
class Result:
    """What came of a row with one seed."""

    name: str
    seed: int
    training_seconds: float
    measures: dict  # {steps: row of eval.json}
    real: dict  # the measures of real text


# ------------------------------------------------------------------------------------------------
# training and measuring


def run_script(name, *arguments):
    """Runs one of our commands. If it fails, this one ends with the same status."""
    command = [sys.executable, ROOT / name, *arguments]
    result = subprocess.run([str(word) for word in command], env=os.environ | TUNABLES)
    if result.returncode:
        sys.exit(result.returncode)


def folder_of(name, seed, arguments):
    """The folder of a row's network and measures. Those of a speedrun have its names."""
    if name == OUT:
        return arguments.out.with_name(arguments.out.name + (f"-seed{seed}" if seed != 1 else ""))
    return arguments.ablation / f"{name}, seed {seed}"


def copy(source, target, arguments):
    """Copies a file, once. UserError if the target exists and differs: what stands beside it
    belongs to another network."""
    if not source.exists():
        raise UserError(f"there is no {source}: run `bash speedrun.sh` first")
    must_be_ordinary(source)
    must_be_ordinary(target)
    if not target.exists():
        write_safely(target, lambda temporary: shutil.copyfile(source, temporary))
    elif not filecmp.cmp(source, target, shallow=False):
        raise UserError(
            f"{target} differs from {source}: move the folder {arguments.ablation} away, "
            "or name another with --ablation"
        )


def train(row, seed, arguments):
    """Trains the row's network, or copies it; returns its folder."""
    folder = folder_of(row.name, seed, arguments)
    if row.copy_of:
        source = folder_of(row.copy_of, seed, arguments)
        copy(source / f"{row.stage}.pt", folder / f"{row.stage}.pt", arguments)
        return folder
    if row.stage == "fsdfm":
        dfm = folder_of(row.dfm, seed, arguments) / "dfm.pt"
        copy(dfm, folder / "dfm.pt", arguments)
    preset = ["--preset", arguments.preset] if arguments.preset else []
    flags = ["--resume", "--seed", seed, "--data", arguments.data, "--out", folder, *preset]
    flags += row.training.split()
    run_script("train.py", row.stage, *flags)
    return folder


def measure(row, seed, folder, arguments):
    """Measures the row's network at all STEPS: a Result."""
    judge = folder_of(OUT, seed, arguments) / "judge.pt"
    flags = ["--models", row.stage, "--out", folder, "--judge", judge]
    flags += ["--data", arguments.data, "--steps", *STEPS, "--seed", seed]
    flags += ["--num-samples", arguments.num_samples]
    run_script("eval.py", *flags, *row.sampling.split())
    report = read_report(folder / "eval.json")
    measures = {one["steps"]: one for one in report["rows"] if one["temperature"] == 1}
    seconds = load_checkpoint(folder / f"{row.stage}.pt")["seconds"]
    return Result(row.name, seed, seconds, measures, report["real"])


# ------------------------------------------------------------------------------------------------
# table and picture


def table(results):
    """Markdown, a line for each row and seed: right stories ± standard error (the lowest variety),
    or perplexity ± standard error (entropy in bits), at every number of steps."""
    columns = [f"{n:,} step{'s' if n > 1 else ''}" for n in STEPS]
    lines = ["| variant | seed | training | " + " | ".join(columns) + " |"]
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(STEPS))
    for result in results:
        cells = [result.name, str(result.seed), f"{result.training_seconds:.0f} s"]
        for n in STEPS:
            row = result.measures[n]
            if "right" in row:
                variety = f" ({lowest_variety(row):.2f})" if row["variety"] else ""
                cells.append(f"{row['right']:.3f} ± {row['right_error']:.3f}{variety}")
                continue
            perplexity = f"{row['perplexity']:,.0f} ± {row['perplexity_error']:.0f}"
            cells.append(f"{perplexity} ({row['entropy']:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_right(results):
    """The figure: a bar for each row, sorted, of the share of right stories at FEW steps, a mean
    over the seeds with its standard error over the samples, a point for each seed, and the lowest
    variety of a slot and a seed."""
    plt.rcParams.update(LOOK)
    figure, axis = plt.subplots(figsize=(11, 8), layout="constrained")
    shares, errors, varieties = {}, {}, {}
    for result in results:
        row = result.measures[FEW]
        shares.setdefault(result.name, []).append(row["right"])
        errors.setdefault(result.name, []).append(row["right_error"])
        varieties.setdefault(result.name, []).append(lowest_variety(row))
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    for place, name in enumerate(sorted(means, key=means.get)):
        error = sum(e**2 for e in errors[name]) ** 0.5 / len(errors[name])
        colour = STYLES["dfm" if name.startswith("DFM") else "fsdfm"]["color"]
        axis.barh(place, means[name], xerr=error, color=colour, alpha=0.6, capsize=4)
        axis.plot(shares[name], [place] * len(shares[name]), "o", color=GREY, markersize=5)
        if min(shares[name]) > 0:
            axis.text(0.01, place, f"variety {min(varieties[name]):.2f}", va="center", fontsize=11)
    axis.set_yticks(range(len(means)), sorted(means, key=means.get))
    axis.set_xlim(0, 1)
    axis.set_xlabel(f"share of stories without a mistake, {FEW} steps; points: seeds")
    return figure


def draw_points(axis, results, name, steps, style):
    """A point for each seed of one row: perplexity against entropy, with standard errors."""
    rows = [result.measures[steps] for result in results if result.name == name]
    measures = ("entropy", "perplexity", "perplexity_error", "entropy_error")
    x, y, dy, dx = ([row[measure] for row in rows] for measure in measures)
    axis.errorbar(x, y, dy, dx, label=name, linestyle="", **style)


def draw(results):
    """The figure: perplexity against entropy, at 4, 8 and 16 steps. Lower is better at equal
    entropy."""
    plt.rcParams.update(LOOK)
    figure, axes = plt.subplots(1, 3, figsize=(18, 7.5), layout="constrained")
    names = list(dict.fromkeys(result.name for result in results))
    real = results[0].real
    for axis, steps in zip(axes, DRAWN_STEPS):
        for i, name in enumerate(names):
            style = {"color": plt.cm.tab20(i % 20), "marker": "o*sD^vP"[i % 7], "markersize": 9}
            draw_points(axis, results, name, steps, style)
        star = {"color": GREY, "marker": "*", "markersize": 16, "linestyle": ""}
        axis.plot(real["entropy"], real["perplexity"], label="real text", **star)
        plain_log_scale(axis)
        axis.set_title(f"{steps} steps")
        axis.set_xlabel(ENTROPY)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(PERPLEXITY)
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside right upper", frameon=False, fontsize=11)
    return figure


# ------------------------------------------------------------------------------------------------
# the command


def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data", default="stories", help="name given to data/prepare.py (default: stories)")
    add("--out", type=Path, default=files.OUT, help="folder of judge and DFM (default: out)")
    add("--ablation", type=Path, default=Path("ablation"),
        help="folder that is written (default: ablation)")
    add("--only", choices=STUDENTS, nargs="+", metavar="NAME", default=STUDENTS,
        help=f"students to train, of: {'; '.join(STUDENTS)} (default: all)")
    add("--preset", choices=PRESETS, help="that of train.py (default: its own choice)")
    add("--seeds", type=seed_number, nargs="+", default=[1],
        help="of training and of the samples (default: 1)")
    add("--num-samples", type=number(int, 1, 10**6), default=256,
        help="texts of a figure (default: 256)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    results = []
    for row in rows_of(arguments.only):
        for seed in arguments.seeds:
            folder = train(row, seed, arguments)
            results.append(measure(row, seed, folder, arguments))
    text = table(results)
    figure = draw_right(results) if "right" in results[0].real else draw(results)
    write_text(arguments.ablation / "table.md", text)
    write_safely(
        arguments.ablation / "picture.png",
        lambda temporary: figure.savefig(temporary, dpi=120, format="png"),
    )
    print(text)


if __name__ == "__main__":
    run_command(main)
