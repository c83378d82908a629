"""The pictures of what eval.py measured.

    python plot.py     OUT/eval.json -> OUT/curve.png, of stories OUT/stories.png, and where there
                       are several temperatures OUT/frontier.png
                       OUT/ladder.json (experiments/ladder.py) -> OUT/ladder.png
                       OUT/*.csv -> OUT/training.png, also while train.py runs

Curve     perplexity and entropy against the number of steps.
Stories   right stories against the number of steps, and what is wrong with the others.
Ladder    right stories in few steps, a rung for each idea.
Frontier  perplexity against entropy, a point for each temperature: the fairest comparison, since a
          lower temperature lowers both. A model is better where its line is lower.

Error bars are one standard error over texts; of right stories, 95% intervals. Before: eval.py.
"""

from config.command import parser_of, stop  # before torch

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, without a screen
import matplotlib.pyplot as plt

from data.stories import KINDS
from eval import FEW, LABELS

# colours that the colour-blind tell apart (Okabe and Ito 2008)
COLOURS = {"dfm": "#0072b2", "fsdfm": "#d55e00", "dmd": "#009e73"}
MARKERS = {"dfm": "o", "fsdfm": "s", "dmd": "^"}
LADDER_COLOURS = ["#f0a030", "#1f5fa8", "#7fb0e0", "#806000"]  # fewest steps first
GREY = "#444444"  # of real text
PERPLEXITY, ENTROPY = "generative perplexity (lower is better)", "token entropy, bits"
LOOK = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}


def lines_of(report):
    """{model: rows at temperature 1, by steps}."""
    lines = {}
    for row in sorted(report["rows"], key=lambda row: row["steps"]):
        if row["temperature"] == 1:
            lines.setdefault(row["model"], []).append(row)
    return lines


def error_bars(rows, measure):
    """Below and above each value: one standard error, or the 95% interval of right stories."""
    if measure != "right":
        return [row[f"{measure}_error"] for row in rows]
    return [[row["right"] - row["right_low"] for row in rows],
            [row["right_high"] - row["right"] for row in rows]]


def draw_line(axis, rows, measure, model):
    """A measure against the number of steps."""
    x, y = [row["steps"] for row in rows], [row[measure] for row in rows]
    axis.errorbar(x, y, error_bars(rows, measure), color=COLOURS[model], marker=MARKERS[model],
                  linewidth=2, capsize=3, label=LABELS[model])


def steps_axis(axis, rows):
    ticks = sorted({row["steps"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
    axis.set_xlabel("sampling steps")
    axis.grid(alpha=0.25)


def plain_log_scale(axis):
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel(PERPLEXITY)


def title(report, measure, form):
    """What the picture says of FEW steps, and below it of how many texts."""
    counts = sorted({row["texts"] for row in report["rows"]})
    texts = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    error = "95% interval" if measure == "right" else "one standard error"
    found = [f"{LABELS[model]} {row[measure]:{form}}" for model, rows in lines_of(report).items()
             for row in rows if row["steps"] == FEW]
    name = {"right": "Right stories", "perplexity": "Perplexity"}[measure]
    message = f"{name} in {FEW} steps: {', '.join(found)}\n" if found else ""
    return f"{message}{report['length']} tokens; error bars: {error} over {texts} texts"


def draw_curve(report):
    """Left perplexity, right entropy, against the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    for axis, measure in zip(axes, ("perplexity", "entropy")):
        for model, rows in lines_of(report).items():
            draw_line(axis, rows, measure, model)
        axis.axhline(report["real"][measure], color=GREY, linestyle="--", label="real text")
        steps_axis(axis, report["rows"])
    plain_log_scale(axes[0])
    axes[0].legend(frameon=False)
    axes[1].set_ylabel(ENTROPY)
    figure.suptitle(title(report, "perplexity", ".0f"))
    return figure


def draw_stories(report):
    """Left the share of right stories against the number of steps, right the mistakes of FEW steps
    by kind."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    lines = lines_of(report)
    for model, rows in lines.items():
        draw_line(axes[0], rows, "right", model)
    steps_axis(axes[0], report["rows"])
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("share of stories without a mistake")
    axes[0].legend(frameon=False)
    height = 0.8 / len(lines)
    for i, (model, rows) in enumerate(lines.items()):
        for row in (row for row in rows if row["steps"] == FEW):
            places = [k + (i + 0.5) * height - 0.4 for k in range(len(KINDS))]
            axes[1].barh(places, [row["mistakes"][kind] for kind in KINDS], height,
                         color=COLOURS[model], label=f"{LABELS[model]}, {FEW} steps")
    axes[1].set_yticks(range(len(KINDS)), KINDS)
    axes[1].invert_yaxis()
    axes[1].set_xlabel("mistakes a story")
    if axes[1].patches:  # FEW steps were measured
        axes[1].legend(frameon=False)
    figure.suptitle(title(report, "right", ".0%"))
    return figure


def draw_ladder(rows, report):
    """Right stories of each rung, a bar for each number of steps, and the DFM's in the most."""
    rungs = {row["rung"]: row["function"] for row in rows}
    counts = sorted({row["steps"] for row in rows})
    figure, axis = plt.subplots(figsize=(11, 1.5 + 0.85 * len(rungs)), layout="constrained")
    height = 0.8 / len(counts)
    for i, n in enumerate(counts):
        found = [row for row in rows if row["steps"] == n]
        places = [list(rungs).index(row["rung"]) + (i + 0.5) * height - 0.4 for row in found]
        bars = axis.barh(places, [row["right"] for row in found], 0.92 * height,
                         xerr=error_bars(found, "right"), capsize=3, label=f"{n} steps",
                         color=LADDER_COLOURS[i % 4])
        axis.bar_label(bars, [f"{row['right']:.1%}" for row in found], padding=4,
                       bbox={"facecolor": "white", "linewidth": 0, "pad": 1})
    many = max((row for row in report["rows"] if row["model"] == "dfm" and "right" in row),
               key=lambda row: row["steps"], default=None)
    if many and many["steps"] > max(counts):
        axis.axvline(many["right"], color=GREY, linestyle="--", zorder=0,
                     label=f"DFM, {many['steps']:,} steps")
    axis.set_yticks(range(len(rungs)), ["\n".join(pair) for pair in rungs.items()])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axis.set_xlabel("stories without a mistake (black: 95% intervals)")
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    few = [row for row in rows if row["steps"] == counts[0]]
    axis.set_title(f"{counts[0]} steps: from {few[0]['right']:.1%} right stories "
                   f"to {few[-1]['right']:.1%}", loc="left")
    return figure


def draw_frontier(report):
    """Perplexity against entropy, a line for each model and number of steps, the temperature beside
    each point, and a star for real text."""
    figure, axis = plt.subplots(figsize=(12, 7), layout="constrained")
    counts = sorted({row["steps"] for row in report["rows"]})
    for model, n in sorted({(row["model"], row["steps"]) for row in report["rows"]}):
        rows = [row for row in report["rows"] if (row["model"], row["steps"]) == (model, n)]
        rows.sort(key=lambda row: row["temperature"])
        x, y = [row["entropy"] for row in rows], [row["perplexity"] for row in rows]
        style = ("-", "--", ":", "-.")[counts.index(n) % 4]
        shift = (-24, 5) if model == "dfm" else (5, -13)  # of the labels: above the DFM's line
        axis.plot(x, y, style, color=COLOURS[model], marker=MARKERS[model],
                  label=f"{LABELS[model]}, {n:,} steps")
        axis.errorbar(x, y, [row["perplexity_error"] for row in rows], fmt="none", capsize=3,
                      color=COLOURS[model])
        for row in rows:
            axis.annotate(f"{row['temperature']:g}", (row["entropy"], row["perplexity"]), shift,
                          textcoords="offset points", fontsize=9)
    real = report["real"]
    axis.plot(real["entropy"], real["perplexity"], "*", color=GREY, markersize=18,
              label="real text")
    plain_log_scale(axis)
    axis.yaxis.set_minor_formatter("{x:,.0f}")
    axis.set_xlabel(ENTROPY)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, handlelength=5)
    axis.set_title("Of two networks the better has the lower line\n"
                   f"{report['length']} tokens; beside each point: temperature", loc="left")
    return figure


def draw_training(paths):
    """The losses that train.py writes to OUT/STAGE.csv, and on held-out text as points."""
    figure, axis = plt.subplots(figsize=(11, 5.4), layout="constrained")
    for path in paths:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        held_out = [row for row in rows if row["validation_loss"]]
        for some, column, style in ((rows, "loss", "-"), (held_out, "validation_loss", "o")):
            x, y = ([float(row[name]) for row in some] for name in ("iteration", column))
            label = f"{LABELS.get(path.stem, path.stem)}, {column.replace('_', ' ')}"
            axis.plot(x, y, style, color=COLOURS.get(path.stem, GREY), label=label)
    axis.set_xlabel("iteration")
    axis.set_ylabel("loss, nats a token")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    axis.set_title("Losses of different networks cannot be compared", loc="left")
    return figure


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--out", default="out", help="folder of eval.json (default: out)")
    out = Path(parser.parse_args().out)
    path, ladder, logs = out / "eval.json", out / "ladder.json", sorted(out.glob("*.csv"))
    report = {"real": {}, "rows": []}  # of the ladder or a training alone
    if path.exists():
        report = json.loads(path.read_text())
    elif not ladder.exists() and not logs:
        stop(f"there is no {path}: make it with `python eval.py` and the same --out")
    for name in {row["model"] for row in report["rows"]} - set(LABELS):  # one's own
        LABELS[name], COLOURS[name], MARKERS[name] = name, GREY, "x"
    plt.rcParams.update(LOOK)
    figures = {}
    if lines_of(report):
        figures["curve"] = draw_curve(report)
        if "right" in report["real"]:
            figures["stories"] = draw_stories(report)
    if len({row["temperature"] for row in report["rows"]}) > 1:
        figures["frontier"] = draw_frontier(report)
    if ladder.exists():
        figures["ladder"] = draw_ladder(json.loads(ladder.read_text()), report)
    if logs:
        figures["training"] = draw_training(logs)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
        print(f"wrote {out / name}.png")


if __name__ == "__main__":
    main()
