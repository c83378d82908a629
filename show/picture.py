"""The race as a moving picture, for a README and for slides: a GIF by matplotlib's Pillow writer.

    python sample.py --gif race.gif

While the runners of few steps are at work, a picture is shown for each step of the fastest; then
the clock runs faster, as the title says.
"""

import matplotlib

matplotlib.use("Agg")  # draws into a file, without a screen
import matplotlib.pyplot as plt
from matplotlib.animation import PillowWriter
from tqdm import tqdm

from show.race import FEW_STEPS, words_of, wrap
from show.run import STATUSES

COLOURS = {  # letters, background
    "noise": ("#9a9a9a", None), "new": ("black", "#8fd3f4"), "changed": ("black", "#f5c04a"),
    "settled": ("black", None), "wrong": ("white", "#c0392b"),
}
COLUMNS, LINES = 40, 16  # characters of a pane
REST = 24  # pictures of what is left when the runners of few steps are done
STILL = 5  # pictures of the end
PER_SECOND = 2.5


def picture_times(runs):
    """Seconds of the network, one for each picture."""
    fastest = min(runs, key=lambda run: run.seconds[-1])
    times = {*fastest.seconds, *(run.seconds[-1] for run in runs if run.steps <= FEW_STEPS)}
    start, end = max(times), max(run.seconds[-1] for run in runs)
    times |= {start + (end - start) * i / REST for i in range(1, REST + 1)}
    return sorted(times) + [end] * STILL


def box(status, pad):
    background = COLOURS[status][1]
    return background and {"facecolor": background, "edgecolor": "none", "pad": pad}


def draw_words(axis, lines):
    """The lines of a pane, word by word, in a grid of characters."""
    for y, line in enumerate(lines[:LINES]):
        x = 0
        for piece, status in line:
            word = piece.lstrip(" ")
            x += len(piece) - len(word)
            axis.text(x, y, word, color=COLOURS[status][0], bbox=box(status, 1.2), va="center",
                      family="monospace", fontsize=12.3,
                      fontweight="bold" if status in ("new", "changed") else None)
            x += len(word)


def draw_pane(axis, run, seconds, tokenizer):
    step = run.step_at(seconds)
    axis.clear()
    axis.set_xlim(-0.5, COLUMNS + 0.5)
    axis.set_ylim(LINES, -3.6)
    axis.axis("off")
    axis.text(0, -2.6, run.title, fontsize=15, fontweight="bold")
    told = f"step {step:,}, {run.seconds[step]:.2f} s"
    if step == run.steps:
        told += f": {run.verdict()}"
    axis.text(0, -1.5, told, fontsize=12)
    draw_words(axis, wrap(words_of(run, step, tokenizer), COLUMNS))


def draw_legend(figure):
    x = 0.02
    for status, meaning in STATUSES.items():
        figure.text(x, 0.03, meaning, color=COLOURS[status][0], bbox=box(status, 2), fontsize=12)
        x += 0.035 + 0.0088 * len(meaning)


def write_gif(path, runs, tokenizer):
    """The moving picture of at most three runs."""
    runs = runs[:3]
    figure, axes = plt.subplots(1, len(runs), figsize=(4.6 * len(runs), 4.6), squeeze=False)
    figure.subplots_adjust(left=0.02, right=0.99, top=0.99, bottom=0.08, wspace=0.04)
    draw_legend(figure)
    writer = PillowWriter(fps=PER_SECOND)
    with writer.saving(figure, path, dpi=80):
        for seconds in tqdm(picture_times(runs), desc="drawing", leave=False, delay=1):
            for axis, run in zip(axes[0], runs):
                draw_pane(axis, run, seconds, tokenizer)
            writer.grab_frame()
    plt.close(figure)
