"""The pictures of what eval.py measured.

    python plot.py        out/eval.json -> out/curve.png, and out/frontier.png if there are several temperatures

The curve: perplexity and entropy against steps. The frontier: perplexity against entropy, the fairest comparison there is,
since both fall together when the draws are made safer; a model is better where its line lies lower at equal entropy.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, also where there is no screen
import matplotlib.pyplot as plt

from checkpoint import Parser, UserError, run_command, write_safely

LINE_STYLES = ("-", "--", ":", "-.")
STYLES = {"dfm": ("DFM", "#1f5fa8", "o"), "fsdfm": ("FS-DFM", "#d1495b", "s")}


def draw(report):
    """The figure: left perplexity (log-log), right entropy of tokens; bars are one standard error."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    for axis, measure in ((left, "perplexity"), (right, "entropy")):
        for model, (label, colour, marker) in STYLES.items():
            rows = sorted((row for row in report["rows"] if row["model"] == model and row["temperature"] == 1), key=lambda row: row["steps"])
            if not rows:
                continue
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
    rule = f", {report['key']['update']} steps" if report["key"]["update"] else ""
    figure.suptitle(f"{report['length']} tokens from noise{rule}; bars: one standard error of {sample_counts(report['rows'])} samples")
    return figure


def draw_frontier(report):
    """The figure: a line for each model and number of steps, a point for each temperature, real text as a star."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axis = plt.subplots(figsize=(10, 7), layout="constrained")
    shown = [row for row in report["rows"] if len(temperatures(report, row)) > 1]
    all_steps = sorted({row["steps"] for row in shown})
    for model, (label, colour, marker) in STYLES.items():
        for steps in all_steps:
            rows = sorted((row for row in shown if (row["model"], row["steps"]) == (model, steps)), key=lambda row: row["temperature"])
            if not rows:
                continue
            x, y, dx, dy = ([row[key] for row in rows] for key in ("entropy", "perplexity", "entropy_error", "perplexity_error"))
            style = LINE_STYLES[all_steps.index(steps) % len(LINE_STYLES)]
            axis.errorbar(x, y, dy, dx, label=f"{label}, {steps:,} steps", color=colour, marker=marker, linestyle=style, capsize=2)
            for row in rows:
                axis.annotate(f"{row['temperature']:g}", (row["entropy"], row["perplexity"]), (5, -13), textcoords="offset points", fontsize=9)
    axis.plot(report["real"]["entropy"], report["real"]["perplexity"], "*", color="#444444", markersize=18, linestyle="", label="real text")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_minor_formatter("{x:.0f}")
    axis.set_xlabel("entropy of a sample's tokens, bits")
    axis.set_ylabel("generative perplexity (lower is better)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.suptitle(f"{report['length']} tokens; beside each point its temperature; bars: one standard error of {sample_counts(shown)} samples")
    return figure


def temperatures(report, row):
    """Those at which the row's model was measured with as many steps."""
    return {other["temperature"] for other in report["rows"] if (other["model"], other["steps"]) == (row["model"], row["steps"])}


def sample_counts(rows):
    """The numbers of samples behind the points, such as "8 to 64"."""
    counts = sorted({row["samples"] for row in rows})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of eval.json and of the pictures (default: out)")
    arguments = parser.parse_args()
    path = arguments.out / "eval.json"
    if not path.exists():
        raise UserError(f"there is no {path}: make it with `python eval.py`")
    try:
        report = json.loads(path.read_text())
        figures = {"curve.png": draw(report)}
        if len({row["temperature"] for row in report["rows"]}) > 1:
            figures["frontier.png"] = draw_frontier(report)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not a report of eval.py ({type(error).__name__}): delete it and run `python eval.py`") from error
    for name, figure in figures.items():
        write_safely(arguments.out / name, lambda temporary, figure=figure: figure.savefig(temporary, dpi=150, format="png"))
        print(f"wrote {arguments.out / name}")


if __name__ == "__main__":
    run_command(main)
