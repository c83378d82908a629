"""The race as a moving picture, for a README and for slides: a GIF by matplotlib's Pillow writer.

    python sample.py --gif race.gif

While the runners of few steps are at work, a picture is shown for each step of the fastest; then
the clock runs faster, as the title says.
"""

import matplotlib

matplotlib.use("Agg")  # draws into a file, without a screen
import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from tqdm import tqdm

from common.files import replace, write_safely
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

# ------------------------------------------------------------------------------------------------
# when pictures are taken


def picture_times(runs):
    """Seconds of the network, one for each picture."""
    fastest = min(runs, key=lambda run: run.seconds[-1])
    few = [run for run in runs if run.steps <= FEW_STEPS]
    times = {*fastest.seconds, *(run.seconds[-1] for run in few)}
    start, end = max(times), max(run.seconds[-1] for run in runs)
    times |= {start + (end - start) * i / REST for i in range(1, REST + 1)}
    return sorted(times) + [end] * STILL


# ------------------------------------------------------------------------------------------------
# one picture


def draw_words(axis, lines):
    """The lines of a pane, word by word, in a grid of characters."""
    for y, line in enumerate(lines[:LINES]):
        x = 0
        for piece, status in line:
            word = piece.lstrip(" ")
            x += len(piece) - len(word)
            letters, background = COLOURS[status]
            box = background and {"facecolor": background, "edgecolor": "none", "pad": 1.2}
            axis.text(x, y, word, color=letters, bbox=box, family="monospace", fontsize=12.3,
                      va="center", fontweight="bold" if status in ("new", "changed") else None)
            x += len(word)


def draw_pane(axis, run, seconds, tokenizer, mask_id):
    step = run.step_at(seconds)
    axis.clear()
    axis.set_xlim(-0.5, COLUMNS + 0.5)
    axis.set_ylim(LINES, -3.6)
    axis.axis("off")
    axis.text(0, -2.6, f"{run.label}, {run.steps:,} steps", fontsize=15, fontweight="bold")
    told = f"step {step:,}, {run.seconds[step]:.2f} s"
    if step == run.steps:
        told += f": {run.verdict()}"
    axis.text(0, -1.5, told, fontsize=12)
    draw_words(axis, wrap(words_of(run, step, tokenizer, mask_id), COLUMNS))


def draw_legend(figure):
    x = 0.02
    for status, meaning in STATUSES.items():
        letters, background = COLOURS[status]
        box = background and {"facecolor": background, "edgecolor": "none", "pad": 2}
        figure.text(x, 0.03, meaning, color=letters, bbox=box, fontsize=12)
        x += 0.035 + 0.0088 * len(meaning)


def write_gif(path, runs, tokenizer, mask_id):
    """The moving picture of at most three runs."""
    runs = runs[:3]
    width = 4.6 * len(runs)
    figure, axes = plt.subplots(1, len(runs), figsize=(width, 4.6), squeeze=False)
    figure.subplots_adjust(left=0.02, right=0.99, top=0.99, bottom=0.08, wspace=0.04)
    draw_legend(figure)

    def draw(seconds):
        for axis, run in zip(axes[0], runs):
            draw_pane(axis, run, seconds, tokenizer, mask_id)

    times = picture_times(runs)
    animation = FuncAnimation(figure, draw, frames=times, init_func=lambda: None)
    with tqdm(total=len(times), desc="drawing", leave=False, delay=1) as bar:
        write_safely(path, lambda temporary: save_as_gif(animation, bar, temporary))
    plt.close(figure)


def save_as_gif(animation, bar, temporary):
    # the writer takes its format from the name, which is a temporary one
    named = temporary.with_name(temporary.name + ".gif")
    try:
        writer = PillowWriter(fps=PER_SECOND)
        animation.save(named, writer, dpi=80, progress_callback=lambda i, n: bar.update())
        replace(named, temporary)
    finally:
        named.unlink(missing_ok=True)
