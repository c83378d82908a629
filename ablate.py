"""What matters? Students that differ from the full FS-DFM in one thing each, from the same DFM and the same seeds.

    bash ablate.sh            trains and measures them all, or goes on where it stopped -> ablation/table.md, ablation/picture.png

Each variant is a row of VARIANTS: the flags that train.py gets. The judge and the DFM are those of speedrun.sh, in out/.
"""

import argparse
import csv
import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, also where there is no screen
import matplotlib.pyplot as plt

from checkpoint import Parser, UserError, run_command, write_safely

STEPS = [1, 2, 4, 8, 16, 1024]
FULL = "full FS-DFM"
VARIANTS = {
    FULL: [],
    "no teacher, data alone": ["--text-steps", "1"],
    "text for the finest step alone": ["--text-steps", "1024"],
    "Simpson's teacher": ["--teacher", "simpson"],
    "Heun's teacher": ["--teacher", "heun"],
    "probabilities averaged": ["--mean", "probabilities"],
    "Simpson, probabilities averaged": ["--teacher", "simpson", "--mean", "probabilities"],
    "no slow average": ["--ema-decay", "0"],
    "Euler": ["--update", "euler"],
    "not told h": ["--step-conditioning", "off"],
    "flat weights on h": ["--step-weights", "flat"],
    "paper's weights on h": ["--step-weights", "paper"],
    "paper's weights, loss and text": ["--text-steps", "1024", "--step-weights", "paper", "--largest-rate", "1e9"],
}


def command(*arguments):
    """Runs one of our commands; if it fails, so does this one, with the same status."""
    result = subprocess.run([sys.executable, *map(str, arguments)])
    if result.returncode:
        sys.exit(result.returncode)


def copy(source, target):
    """Copies a file of the speedrun. UserError if another is there already: the students beside it learned from that one."""
    if not source.exists():
        raise UserError(f"there is no {source}: run `bash speedrun.sh` first")
    if not target.exists():
        write_safely(target, lambda temporary: shutil.copyfile(source, temporary))
    elif not filecmp.cmp(source, target, shallow=False):
        raise UserError(f"{target} differs from {source}: move the folder {target.parent.parent} away, or name another with --ablation")


def measure(folder, model, judge, samples, seed, *flags):
    command("eval.py", "--models", model, "--out", folder, "--judge", judge, "--steps", *STEPS, "--num-samples", samples, "--seed", seed, *flags)
    report = json.loads((folder / "eval.json").read_text())
    return {row["steps"]: row for row in report["rows"]} | {"real": report["real"]}


def training_seconds(folder, stage):
    return float(list(csv.DictReader((folder / f"{stage}.csv").open()))[-1]["seconds"])


def run_all(arguments):
    """Trains and measures; [(name, seed, training seconds, {steps: row, "real": row})]."""
    judge, results = arguments.out / "judge.pt", []

    def add(name, seed, stage, folder, *flags):
        """Measures; flags are those of eval.py."""
        rows = measure(folder, stage, judge, arguments.num_samples, seed, *flags)
        results.append((name, seed, training_seconds(folder, stage), rows))

    def add_copy(name, seed, stage, source, *flags):
        """The same for a network that is trained already, perhaps with steps of another kind."""
        folder = arguments.ablation / f"{name}, seed {seed}"
        for file in (f"{stage}.pt", f"{stage}.csv"):
            copy(source / file, folder / file)
        add(name, seed, stage, folder, *flags)

    def train(name, seed, stage, dfm, *flags):
        """A folder with the trained network, and with the DFM in the folder `dfm`, if any, that it starts from; flags are those of train.py."""
        folder = arguments.ablation / f"{name}, seed {seed}"
        if dfm:
            copy(dfm / "dfm.pt", folder / "dfm.pt")
        preset = ["--preset", arguments.preset] if arguments.preset else []
        command("train.py", stage, "--resume", "--seed", seed, "--out", folder, *preset, *flags)
        return folder

    for seed in arguments.seeds:
        add_copy("DFM", seed, "dfm", arguments.out)
        add_copy("DFM, uniform steps", seed, "dfm", arguments.out, "--easing", "1")
        add_copy("DFM, Euler", seed, "dfm", arguments.out, "--update", "euler")
        for name in arguments.only or VARIANTS:
            folder = train(name, seed, "fsdfm", arguments.out, *VARIANTS[name])
            add(name, seed, "fsdfm", folder)
            if name == FULL:
                add_copy(f"{FULL}, uniform steps", seed, "fsdfm", folder, "--easing", "1")
        if not arguments.only:
            mask = train("DFM, mask source", seed, "dfm", None, "--source", "mask", "--easing", "1")
            add("DFM, mask source", seed, "dfm", mask)
            add(f"{FULL}, mask source", seed, "fsdfm", train(f"{FULL}, mask source", seed, "fsdfm", mask, "--easing", "1"))
    return results


def table(results):
    """Markdown: a line for each variant and seed; perplexity ± standard error, and entropy in bits, at every number of steps."""
    lines = ["| variant | seed | training | " + " | ".join(f"{n:,} step{'s' if n > 1 else ''}" for n in STEPS) + " |", "| --- | ---: | ---: |" + " ---: |" * len(STEPS)]
    for name, seed, seconds, rows in sorted(results, key=lambda result: [*map(lambda other: other[0], results)].index(result[0])):
        cells = (f"{rows[n]['perplexity']:,.0f} ± {rows[n]['perplexity_error']:.0f} ({rows[n]['entropy']:.2f})" for n in STEPS)
        lines.append(f"| {name} | {seed} | {seconds:.0f} s | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results):
    """Perplexity against entropy at 4, 8 and 16 steps: a point for each variant and seed. Below is better at equal entropy."""
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 3, figsize=(16, 6), layout="constrained")
    names = list(dict.fromkeys(name for name, *_ in results))
    for axis, steps in zip(axes, (4, 8, 16)):
        for i, name in enumerate(names):
            rows = [rows[steps] for other, _, _, rows in results if other == name]
            axis.errorbar([row["entropy"] for row in rows], [row["perplexity"] for row in rows], [row["perplexity_error"] for row in rows],
                          [row["entropy_error"] for row in rows], label=name, color=plt.cm.tab20(i), marker="o*sD^vP"[i % 7], markersize=9, linestyle="")  # fmt: skip
        real = results[0][3]["real"]
        axis.plot(real["entropy"], real["perplexity"], "*", color="#444444", markersize=16, label="real text")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_minor_formatter("{x:.0f}")
        axis.set_title(f"{steps} steps")
        axis.set_xlabel("entropy of a sample's tokens, bits")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("generative perplexity (lower is better)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the judge and the DFM (default: out)")
    parser.add_argument("--ablation", type=Path, default=Path("ablation"), help="folder that is written (default: ablation)")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", metavar="NAME", help="variants to train, of: " + "; ".join(VARIANTS) + " (default: all)")
    parser.add_argument("--preset", help="that of train.py (default: its own choice)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the students and of the draws (default: 1)")
    parser.add_argument("--num-samples", type=int, default=256, help="texts at up to 16 steps; 1,024 steps make 8 on a CPU (default: 256)")
    arguments = parser.parse_args()
    results = run_all(arguments)
    text = table(results)
    write_safely(arguments.ablation / "table.md", lambda path: path.write_text(text))
    figure = draw(results)
    write_safely(arguments.ablation / "picture.png", lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    print(text)


if __name__ == "__main__":
    run_command(main)
