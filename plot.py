"""The pictures of what eval.py measured.

    python plot.py     OUT/eval.json -> OUT/headline.png, OUT/stories.png, OUT/curve.png
                       with several temperatures also OUT/frontier.png, OUT/variety.png;
                       each as SVG, too

Headline  right stories against the number of steps, in large type, for a projector.
Stories   right stories against the number of steps, and what is wrong with the others.
Variety   right stories against their variety, a point for each temperature.
Curve     perplexity and entropy against the number of steps, at temperature 1.
Frontier  perplexity against entropy, a point for each temperature. It is the fairest comparison,
          since a lower temperature lowers both. A model is better where its line is lower at equal
          entropy.

Error bars are one standard error over samples. Before: eval.py.
"""

import common.early  # first: Ctrl-C is quiet from here on

from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file, without a screen
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

from common.checkpoint import LABELS
from common.command import Parser, UserError, run_command
from common.files import OUT, write_safely
from common.report import read_report
from data.stories import KINDS
from eval import FEW
from flow import Sampler

STYLES = {
    "dfm": {"color": "#1f5fa8", "marker": "o", "linewidth": 2, "capsize": 3},
    "fsdfm": {"color": "#d1495b", "marker": "s", "linewidth": 2, "capsize": 3},
    "dmd": {"color": "#2a9d5c", "marker": "^", "linewidth": 2, "capsize": 3},
}
LINE_STYLES = ("-", "--", ":", "-.")  # of the frontier, by the number of steps
GREY = "#444444"  # of real text
PERPLEXITY = "generative perplexity (lower is better)"
ENTROPY = "token entropy, bits"
LABEL_HEIGHT = 0.065  # of a line of text, as a share of the axes
LOOK = {"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}

# ------------------------------------------------------------------------------------------------
# rows of the report


def column(rows, name):
    return [row[name] for row in rows]


def curve_rows(report, model):
    """The model's rows at temperature 1, by steps."""
    rows = [row for row in report["rows"] if (row["model"], row["temperature"]) == (model, 1)]
    return sorted(rows, key=lambda row: row["steps"])


def frontier_rows(report, model, steps):
    """The model's rows with this number of steps, by temperature; [] if there is only one."""
    rows = [row for row in report["rows"] if (row["model"], row["steps"]) == (model, steps)]
    return sorted(rows, key=lambda row: row["temperature"]) if len(rows) > 1 else []


def label(model, rows):
    """The model's name, and its sampler where that is one of its own."""
    own = [name for name, used in (
        ("renoise", rows[0].get("update") == "renoise"),
        ("shared noise", rows[0].get("shared_noise")),
    ) if used]
    return LABELS[model] + (f" ({', '.join(own)})" if own else "")


def title(report, rows):
    """What the rows have in common: length, sampler, and how many samples are behind them."""
    parts = [f"{report['length']} tokens"]
    for name in ("update", "shared_noise", "leave_one_out", "grid_power", "step_conditioning"):
        default = getattr(Sampler(), name)
        value = report["key"].get(name, default)  # reports of older versions lack some
        if value != default:
            parts.append(f"{name.replace('_', ' ')} {value}")
    fewest, most = min(column(rows, "samples")), max(column(rows, "samples"))
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return ", ".join(parts) + f"; error bars: one standard error over {count} samples"


# ------------------------------------------------------------------------------------------------
# the figures


def plain_log_scale(axis):
    """A vertical log scale with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_minor_formatter(LogFormatter())  # only as many labels as there is room for


def steps_axis(axis, rows):
    """A horizontal log scale of the numbers of steps."""
    ticks = sorted(set(column(rows, "steps")))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks], rotation=45)
    axis.set_xlabel("sampling steps")
    axis.grid(alpha=0.25)


def label_ends(axis, ends):
    """Names at the right end of lines instead of a legend, in their colours: ends are (height in
    data, name, colour). Names that would overlap are moved apart."""
    to_axes = axis.transData + axis.transAxes.inverted()
    labels = sorted((to_axes.transform((1, y))[1], name, colour) for y, name, colour in ends)
    highest = 1.0
    for i in reversed(range(len(labels))):  # from above, leaving room for those below
        height, name, colour = labels[i]
        height = max(min(height, highest), i * LABEL_HEIGHT)
        axis.text(1.02, height, name, transform=axis.transAxes, va="center", color=colour)
        highest = height - LABEL_HEIGHT


def draw_lines(axis, lines, measure, real=None):
    """A measure against the number of steps, a line for each model of {model: rows}, and a dashed
    one at the height of real text."""
    for model, rows in lines.items():
        values, errors = column(rows, measure), column(rows, measure + "_error")
        if rows:
            axis.errorbar(column(rows, "steps"), values, errors, **STYLES[model])
    if real:
        axis.axhline(real[measure], color=GREY, linestyle="--")
    steps_axis(axis, [row for rows in lines.values() for row in rows])


def ends_of(lines, measure, real=None):
    """What label_ends needs for the lines of draw_lines."""
    ends = [(rows[-1][measure], label(model, rows), STYLES[model]["color"])
            for model, rows in lines.items() if rows]
    return ends + ([(real[measure], "real text", GREY)] if real else [])


def draw_curve(report):
    """The figure: left perplexity, right entropy, against the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    lines = {model: curve_rows(report, model) for model in LABELS}
    for axis, measure in zip(axes, ("perplexity", "entropy")):
        draw_lines(axis, lines, measure, report["real"])
    plain_log_scale(axes[0])
    axes[0].set_ylabel(PERPLEXITY)
    axes[1].set_ylabel(ENTROPY)
    label_ends(axes[1], ends_of(lines, "entropy", report["real"]))
    figure.suptitle(title(report, [row for rows in lines.values() for row in rows]))
    return figure


def draw_headline(report):
    """The figure that speaks across a room: right stories against the number of steps, and an arrow
    from the best student in FEW steps to the DFM in the most."""
    figure, axis = plt.subplots(figsize=(12, 6.75), layout="constrained")
    lines = {model: curve_rows(report, model) for model in LABELS}
    lines = {model: rows for model, rows in lines.items() if rows}
    for model, rows in lines.items():
        style = STYLES[model] | {"linewidth": 4, "markersize": 10}
        errors = column(rows, "right_error")
        axis.errorbar(column(rows, "steps"), column(rows, "right"), errors, **style)
    few = [row for model, rows in lines.items() if model != "dfm"
           for row in rows if row["steps"] == FEW]
    if few and lines.get("dfm"):
        best, most = max(few, key=lambda row: row["right"]), lines["dfm"][-1]
        start, end = ((row["steps"], row["right"]) for row in (best, most))
        arrow = {"arrowstyle": "<|-|>", "linewidth": 2.5, "color": GREY, "shrinkA": 9, "shrinkB": 9}
        arrow["connectionstyle"] = "arc3,rad=-0.12"
        axis.annotate("", end, start, arrowprops=arrow)
        seconds = most["seconds_per_sample"] / best["seconds_per_sample"]
        calls = most["steps"] / best["steps"]
        text = f"{calls:.0f} times fewer calls, {seconds:.0f} times less time"
        axis.text(most["steps"], 1.09, text, ha="right", color=GREY)
    steps_axis(axis, [row for rows in lines.values() for row in rows])
    axis.set_ylim(-0.02, 1.16)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.set_ylabel("stories without a mistake")
    label_ends(axis, [(rows[-1]["right"], LABELS[model], STYLES[model]["color"])
                      for model, rows in lines.items()])
    return figure


def draw_stories(report):
    """The figure: left the share of right stories against the number of steps, right the mistakes
    of FEW steps by kind."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
    lines = {model: curve_rows(report, model) for model in LABELS}
    draw_lines(axes[0], lines, "right")
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("share of stories without a mistake")
    label_ends(axes[0], ends_of(lines, "right"))
    lines = {model: rows for model, rows in lines.items() if rows}
    height = 0.8 / len(lines)
    for i, (model, rows) in enumerate(lines.items()):
        for row in (row for row in rows if row["steps"] == FEW):
            places = [k + (i + 0.5) * height - 0.4 for k in range(len(KINDS))]
            counts = [row["mistakes_by_kind"][kind] for kind in KINDS]
            style = {"color": STYLES[model]["color"], "label": f"{LABELS[model]}, {FEW} steps"}
            axes[1].barh(places, counts, height, **style)
    axes[1].set_yticks(range(len(KINDS)), KINDS)
    axes[1].invert_yaxis()
    axes[1].set_xlabel("mistakes a story")
    if axes[1].patches:  # FEW steps were measured
        axes[1].legend(frameon=False)
    figure.suptitle(title(report, [row for rows in lines.values() for row in rows]))
    return figure


def lowest_variety(row):
    """The lowest variety of the five kinds of slots (data/stories.py); 0 without right stories."""
    return min(row["variety"].values(), default=0)


def draw_temperatures(axis, rows, x, y, dx, dy, style):
    """A line through points (x, y) with their errors, and the temperature beside each."""
    axis.errorbar(x, y, dy, dx, **style)
    for row, *point in zip(rows, x, y):
        text = f"{row['temperature']:g}"
        axis.annotate(text, point, (5, -13), textcoords="offset points", fontsize=9)


def draw_frontier(report, points):
    """A figure with a line for each model and number of steps, a point for each temperature.

    points(rows) are the x, y, dx, dy of rows. The axes are the caller's to name.
    """
    figure, axis = plt.subplots(figsize=(10, 7), layout="constrained")
    steps = sorted(set(column(report["rows"], "steps")))
    lines = {(model, n): frontier_rows(report, model, n) for model in LABELS for n in steps}
    lines = {key: rows for key, rows in lines.items() if rows}
    drawn_steps = sorted({n for _, n in lines})
    for (model, n), rows in lines.items():
        line_style = LINE_STYLES[drawn_steps.index(n) % len(LINE_STYLES)]
        label = f"{LABELS[model]}, {n:,} step{'s' if n > 1 else ''}"
        style = STYLES[model] | {"linestyle": line_style, "label": label}
        draw_temperatures(axis, rows, *points(rows), style)
    axis.grid(alpha=0.25)
    shown = [row for rows in lines.values() for row in rows]
    figure.suptitle(f"{title(report, shown)}\nbeside each point: temperature")
    return figure


def draw_perplexity_frontier(report):
    """The figure: perplexity against entropy, and a star for real text."""
    names = ("entropy", "perplexity", "entropy_error", "perplexity_error")
    figure = draw_frontier(report, lambda rows: [column(rows, name) for name in names])
    axis = figure.axes[0]
    star = {"color": GREY, "marker": "*", "markersize": 18, "linestyle": "", "label": "real text"}
    axis.plot(report["real"]["entropy"], report["real"]["perplexity"], **star)
    plain_log_scale(axis)
    axis.set_xlabel(ENTROPY)
    axis.set_ylabel(PERPLEXITY)
    axis.legend(frameon=False, handlelength=3)
    return figure


def draw_variety(report):
    """The figure: right stories against the variety of the right ones, where there are any."""
    figure = draw_frontier(
        report | {"rows": [row for row in report["rows"] if row["variety"]]},
        lambda rows: (
            [lowest_variety(row) for row in rows], column(rows, "right"), None,
            column(rows, "right_error"),
        ),
    )
    axis = figure.axes[0]
    axis.set_xlabel("variety of the right stories: lowest slot entropy / that of true stories")
    axis.set_ylabel("share of stories without a mistake")
    axis.legend(frameon=False, handlelength=3)
    return figure


def draw_all(report):
    """{file name: figure} of a report."""
    plt.rcParams.update(LOOK)
    figures = {}
    stories = "right" in report["real"]
    if any(curve_rows(report, model) for model in LABELS):
        figures["curve.png"] = draw_curve(report)
        if stories:
            figures["stories.png"] = draw_stories(report)
            with plt.rc_context({"font.size": 20}):
                figures["headline.png"] = draw_headline(report)
    steps = set(column(report["rows"], "steps"))
    if any(frontier_rows(report, model, n) for model in LABELS for n in steps):
        figures["frontier.png"] = draw_perplexity_frontier(report)
        if stories and any(column(report["rows"], "variety")):
            figures["variety.png"] = draw_variety(report)
    return figures


# ------------------------------------------------------------------------------------------------
# the command


def main():
    parser = Parser(__doc__)
    text = "folder of eval.json and of the pictures (default: out)"
    parser.add_argument("--out", type=Path, default=OUT, help=text)
    out = parser.parse_args().out
    path = out / "eval.json"
    if not path.exists():
        raise UserError(f"there is no {path}: make it with `python eval.py` and the same --out")
    figures = draw_all(read_report(path))
    if not figures:
        raise UserError(
            f"{path} has nothing to draw: run `python eval.py` at temperature 1 or at several"
        )
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = (out / name).with_suffix(f".{kind}")
            write_safely(path, partial(figure.savefig, dpi=150, format=kind))
        print(f"wrote {out / name}, and as SVG")


if __name__ == "__main__":
    run_command(main)
