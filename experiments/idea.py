"""The idea in five pictures, which README and lecture show: python experiments/idea.py

    idea-path.png       a story on its path from noise x_0 to text x_1
    idea-guess.png      what the network predicts for each token of an x_t
    idea-jump.png       one step: which tokens jump, and where to
    idea-product.png    what one step writes in the exact world of toy.py, and what more steps do
    idea-shortcut.png   the shortcut teacher: two half steps teach one step

Words and probabilities are those of the DFM that comes with the project (weights/dfm.pt), drawn
with a fixed seed; the fourth picture is exact. Before: toy.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # flow.py is there

import config.command  # before torch

import random

import matplotlib.pyplot as plt
import torch

from data.stories import make_story
from experiments.one_step import draw_squares
from flow import cumulative_scalar, jump
from sample import load_model
from toy import TEXT, sampled_distribution, total_variation

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 12  # tokens of a story
GUESSES = 3  # words under a token
TEXT_COLOUR, NOISE_COLOUR, JUMP_COLOUR = "#1f5fa8", "#6b6b6b", "#a35f00"
T, H = 0.25, 0.5  # the step that is drawn

# ------------------------------------------------------------------------------------------------
# a story on its path


def load_story():
    """(network, tokenizer, x_1, x_0, u), (1, L) each. On the path from x_0 to x_1 a token of x_t is
    that of x_1 if its u, uniform in [0, 1), is below kappa(t) = t."""
    model, tokenizer = load_model(ROOT / "weights/dfm.pt")
    story = make_story(random.Random(4))
    row = story + " [pad]" * model.config.block_size
    x_1 = torch.tensor(tokenizer.encode(row).tolist())[None, : model.config.block_size]
    torch.manual_seed(2)
    x_0 = torch.randint_like(x_1, model.config.vocab_size)
    return model, tokenizer, x_1, x_0, torch.rand(x_1.shape)


def words_axis(height):
    """A figure with a column for each token, x = 0, 1, ..., and no frame."""
    figure, axis = plt.subplots(figsize=(12, height), layout="constrained")
    axis.set_xlim(-1.6, SHOWN - 0.4)
    axis.axis("off")
    return figure, axis


def write_words(axis, y, tokens, is_text, tokenizer, note, changed=()):
    """A row of words at height y: text in blue, noise in grey, those that jumped in orange."""
    axis.text(-0.7, y, note, ha="right", va="center", color=NOISE_COLOUR)
    for i in range(SHOWN):
        word = tokenizer.decode([int(tokens[i])])
        colour = TEXT_COLOUR if is_text[i] else NOISE_COLOUR
        colour = JUMP_COLOUR if i in changed else colour
        weight = "normal" if colour == NOISE_COLOUR else "bold"
        axis.text(i, y, word, ha="center", va="center", color=colour, fontweight=weight)


def draw_path(model, tokenizer, x_1, x_0, u):
    """Five times of the path, a row each."""
    times = (0, 0.25, 0.5, 0.75, 1)
    figure, axis = words_axis(2.4)
    axis.set_ylim(-len(times) + 0.4, 0.6)
    for row, t in enumerate(times):
        is_text = u < t
        x_t = torch.where(is_text, x_1, x_0)
        write_words(axis, -row, x_t[0], is_text[0], tokenizer, f"t = {t:g}")
    return figure


def draw_guess(model, tokenizer, x_1, x_0, u):
    """x_t, and under every token the words that are most probable in the text x_1 there."""
    is_text = u < T
    x_t = torch.where(is_text, x_1, x_0)
    with torch.no_grad():
        p = model(x_t, torch.tensor([T])).softmax(-1)[0]  # (L, V)
    figure, axis = words_axis(2.4)
    axis.set_ylim(-GUESSES - 0.6, 0.6)
    write_words(axis, 0, x_t[0], is_text[0], tokenizer, f"x_t, t = {T:g}")
    axis.text(-0.7, -2, "posterior", ha="right", va="center", color=NOISE_COLOUR)
    best = p[:SHOWN].topk(GUESSES)
    for i in range(SHOWN):
        for k in range(GUESSES):
            share, y = best.values[i, k].item(), -k - 1.1
            if share >= 0.01:
                axis.barh(y, 0.94, 0.8, left=i - 0.47, color="#f0f4f9")
                axis.barh(y, 0.94 * share, 0.8, left=i - 0.47, color="#c0d6f0")
                word = tokenizer.decode([best.indices[i, k].item()])
                axis.text(i, y, f"{word} {100 * share:.0f}%", ha="center", va="center", fontsize=8)
    return figure


def draw_jump(model, tokenizer, x_1, x_0, u):
    """x_t, the probability that each token jumps in a step of size h, and x_{t+h}."""
    is_text = u < T
    x_t = torch.where(is_text, x_1, x_0)
    t, h = torch.tensor([T]), torch.tensor([H])
    with torch.no_grad():
        logits = model(x_t, t)
        p_stay = logits.softmax(-1).gather(-1, x_t[..., None])[0, :, 0]  # (L,)
        p_jump = 1 - torch.exp(-h * cumulative_scalar(t, h) * (1 - p_stay))
        torch.manual_seed(1)
        after = jump(x_t, logits, t, h)
    figure, axis = words_axis(1.7)
    axis.set_ylim(-2.6, 0.6)
    write_words(axis, 0, x_t[0], is_text[0], tokenizer, f"x_t, t = {T:g}")
    axis.text(-0.7, -1, "P(jump)", ha="right", va="center", color=NOISE_COLOUR)
    for i in range(SHOWN):
        axis.text(i, -1, f"{p_jump[i]:.2f}", ha="center", va="center", fontsize=11)
    changed = (after != x_t)[0, :SHOWN].nonzero().flatten().tolist()
    is_right = (after == x_1)[0]
    write_words(axis, -2, after[0], is_right, tokenizer, f"x_(t+h), h = {H:g}", changed)
    return figure


# ------------------------------------------------------------------------------------------------
# the exact world, and the teacher


def draw_product():
    """The distribution of texts that 1, 2 and 8 steps write, beside the true one."""
    texts = {"true texts": TEXT}
    for n in (1, 2, 8):
        texts[f"{n} step{'s' * (n > 1)}"] = sampled_distribution("uniform", n, power=2)
    figure, axes = plt.subplots(1, len(texts), figsize=(12, 3.7), layout="constrained")
    for axis, (name, p) in zip(axes, texts.items()):
        draw_squares(axis, p, "{:.0f}%")
        wrong = total_variation(p, TEXT)
        axis.set_title(name if p is TEXT else f"{name}: {100 * wrong:.0f}% wrong")
    axes[0].set_ylabel("first token")
    return figure


def arrow(axis, start, end, colour, bend):
    """A curved arrow."""
    style = {"arrowstyle": "-|>", "linewidth": 3, "color": colour, "shrinkA": 9, "shrinkB": 9,
             "mutation_scale": 22, "connectionstyle": f"arc3,rad={bend}"}
    axis.annotate("", end, start, arrowprops=style)


def draw_shortcut():
    """The student's one step above, the teacher's two half steps below."""
    figure, axis = plt.subplots(figsize=(12, 3.4), layout="constrained")
    axis.set_xlim(-0.25, 2.25)
    axis.set_ylim(-1.3, 1.15)
    axis.axis("off")
    axis.plot([0, 2], [0, 0], color="#cccccc", linewidth=2, zorder=0)
    for x, name in enumerate(("t", "t + h/2", "t + h")):
        axis.plot(x, 0, "o", color="#444444", markersize=10)
        axis.text(x, -0.34, name, ha="center", color="#444444")
    arrow(axis, (0, 0), (2, 0), JUMP_COLOUR, -0.32)
    axis.text(1, 0.55, "student: one step of h", ha="center", color=JUMP_COLOUR, fontweight="bold")
    for x in (0, 1):
        arrow(axis, (x, 0), (x + 1, 0), TEXT_COLOUR, 0.32)
    arrow(axis, (1, 0), (2, 0), TEXT_COLOUR, 0.48)  # the third jump, from x_b to x_c
    for x, calls in enumerate(("l1 at x_t", "l2 at x_a, l3 at x_b", "l4 at x_c")):
        axis.text(x, -0.9, calls, ha="center", color=TEXT_COLOUR)
    text = "teacher (EMA of the student), steps of h/2: target = (l1 + 2 l2 + 2 l3 + l4) / 6"
    axis.text(1, -1.2, text, ha="center", color=TEXT_COLOUR, fontweight="bold")
    return figure


def main():
    plt.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    story = load_story()
    pictures = {"path": draw_path(*story), "guess": draw_guess(*story), "jump": draw_jump(*story),
                "product": draw_product(), "shortcut": draw_shortcut()}
    for name, figure in pictures.items():
        path = ROOT / f"docs/idea-{name}.png"
        figure.savefig(path, dpi=100)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
