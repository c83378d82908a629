"""The picture: perplexity and entropy against steps, from what eval.py measured.

    python plot.py        out/eval.json -> out/curve.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, also where there is no screen
import matplotlib.pyplot as plt

from checkpoint import Parser, UserError, run_command, write_safely

STYLES = {"dfm": ("DFM", "#1f5fa8", "o"), "fsdfm": ("FS-DFM", "#d1495b", "s")}


def draw(report):
    """The figure: left perplexity (log-log), right entropy of tokens; bars are one standard error."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    for axis, measure in ((left, "perplexity"), (right, "entropy")):
        for model, (label, colour, marker) in STYLES.items():
            rows = sorted((row for row in report["rows"] if row["model"] == model), key=lambda row: row["steps"])
            steps, values, errors = ([row[key] for row in rows] for key in ("steps", measure, measure + "_error"))
            axis.errorbar(steps, values, errors, label=label, color=colour, marker=marker, linewidth=2, capsize=3)
        axis.axhline(report["real"][measure], color="#444444", linestyle="--", label="real text")
        axis.set_xscale("log", base=2)
        ticks = sorted({row["steps"] for row in report["rows"]})
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
        axis.set_xlabel("refinement steps")
        axis.grid(alpha=0.25)
    left.set_yscale("log")
    left.set_ylabel("generative perplexity (lower is better)")
    right.set_ylabel("entropy of a sample's tokens, bits")
    left.legend(frameon=False)
    figure.suptitle(f"{report['length']} tokens from noise; bars: one standard error of {sample_counts(report)} samples")
    return figure


def sample_counts(report):
    """The numbers of samples behind the points, such as "16 to 64"."""
    counts = sorted({row["samples"] for row in report["rows"]})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of eval.json and of the picture (default: out)")
    arguments = parser.parse_args()
    path = arguments.out / "eval.json"
    if not path.exists():
        raise UserError(f"there is no {path}: make it with `python eval.py`")
    try:
        figure = draw(json.loads(path.read_text()))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not a report of eval.py ({type(error).__name__}): delete it and run `python eval.py`") from error
    picture = arguments.out / "curve.png"
    write_safely(picture, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    print(f"wrote {picture}")


if __name__ == "__main__":
    run_command(main)
