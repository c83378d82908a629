"""Can tokens that are drawn one by one agree in a single step? In the exact world of toy.py.

    python experiments/one_step.py          prints a table, and draws out/one-step.png

A network predicts every token by itself, so a step draws from a product of marginals,
p_1(a) p_2(b), in which the two tokens of a text do not agree. Distribution matching does not train
the student p(y | x_0) to predict x_1, but to write texts that are distributed as true texts are.
Both tokens can read the noise x_0. For every x_0 the student writes a product, but over the x_0 a
*mixture* of 16 products, which is as good as any distribution of 16 texts. Under the mask source
there is one x_0 alone, and no mixture.

How is that trained, when nobody knows the probability of a text? Noise the student's texts to a
time s. There the posterior of x_1 can be learned, for the student's texts (a) as for true ones (f).
Where a is above f the student writes the token too often:

    loss = sum over s of E_z sum_v p(v | x_0) (ln a(v | z) - ln f(v | z))

where z is on the path from x ~ p to s, with no gradient through a, f and z. Here Bayes' rule gives
a and f, and sums replace samples. The loss stands still where student and text have the same
distribution.

Sources: D-MMD (arXiv 2603.20155) and IDLM (2602.19066) for the loss. Before: toy.py. Read next:
extras/matching.py.
"""

import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # toy.py is one folder above

from toy import PRODUCT_OF_MARGINALS, TEXT, L, V, path, posterior, softmax, total_variation

UPDATES, LEARNING_RATE = 200, 4.0
TIMES = np.linspace(0.02, 0.98, 9)  # s, where the posteriors are compared


def kl(p, q):
    """KL(p || q) in nats, of two distributions of texts (V, V)."""
    return float((p * np.log(np.maximum(p, 1e-300) / q)).sum())


def written_texts(p):
    """The distribution (V, V) of one-step texts of a student p(y | x_0), (noises, L, V)."""
    return (p[:, 0, :, None] * p[:, 1, None, :]).mean(0)


def log_posteriors(texts):
    """ln p(x_1[i] = y | z) at each of TIMES, (times, states, L, V), for texts distributed so."""
    return np.log([posterior("uniform", s, np.maximum(texts, 1e-12)) for s in TIMES])


def loss_gradient(p, log_f):
    """d loss / d p, (noises, L, V): the mean over z and s of ln a - ln f.

    p (noises, L, V) is the student, and log_f the log_posteriors of true texts. z has the uniform
    source's noise, whatever the source of x_0."""
    log_a = log_posteriors(written_texts(p))
    texts = (p[:, 0, :, None] * p[:, 1, None, :]).reshape(len(p), -1)  # (noises, 16): of each x_0
    gradient = np.zeros_like(p)
    for i, s in enumerate(TIMES):
        z = texts @ path("uniform", s)  # (noises, states): p(z | x_0)
        gradient += np.einsum("nz,zlv->nlv", z, log_a[i] - log_f[i])
    return gradient / len(TIMES)


def match(source, seed=0):
    """Trains a student from scratch: (its texts (V, V), KL(texts || TEXT) before each update).

    The uniform source has 16 different x_0, the mask source one."""
    noises = V**L if source == "uniform" else 1
    logits = 0.01 * np.random.default_rng(seed).normal(size=(noises, L, V))
    log_f = log_posteriors(TEXT)
    history = []
    for _ in range(UPDATES):
        p = softmax(logits)
        history.append(kl(written_texts(p), TEXT))
        gradient = loss_gradient(p, log_f)
        logits -= LEARNING_RATE * p * (gradient - (p * gradient).sum(-1, keepdims=True))
    return written_texts(softmax(logits)), history


def draw_squares(axis, p, form):
    """A distribution of texts (V, V) as squares, with the percent of each in the given form."""
    axis.imshow(p, cmap="Blues", vmin=0, vmax=TEXT.max())
    for (a, b), share in np.ndenumerate(p):
        colour = "white" if share > 0.6 * TEXT.max() else "black"
        axis.text(b, a, form.format(100 * share), ha="center", va="center", color=colour)
    axis.set_xlabel("second token")
    axis.set_xticks(range(V))
    axis.set_yticks(range(V))


def draw(texts, histories):
    """The figure: each distribution of texts as 4 x 4 squares, and KL against updates."""
    plt.rcParams.update({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(texts) + 1, figsize=(18, 4.6), layout="constrained")
    for axis, (name, p) in zip(axes, texts.items()):
        draw_squares(axis, p, "{:.0f}")
        axis.set_title(f"{name}\nKL {kl(p, TEXT):.4f}", fontsize=13)
    axes[0].set_ylabel("first token; percent of texts")
    for source, history in histories.items():
        axes[-1].semilogy(np.maximum(history, 1e-6), label=f"{source} source", linewidth=3)
    axes[-1].set_xlabel("updates of distribution matching")
    axes[-1].set_ylabel("KL(written || true), nats")
    axes[-1].grid(alpha=0.25)
    axes[-1].legend(frameon=False)
    return figure


def main():
    matched = {source: match(source) for source in ("mask", "uniform")}
    texts = {
        "true texts": TEXT,
        "independent draws": PRODUCT_OF_MARGINALS,
        "matched, mask source": matched["mask"][0],
        "matched, uniform source": matched["uniform"][0],
    }
    print("Texts of one step                KL(written || true), nats   total variation")
    for name, p in texts.items():
        print(f"{name:32} {kl(p, TEXT):25.4f} {total_variation(p, TEXT):17.4f}")
    figure = draw(texts, {source: history for source, (_, history) in matched.items()})
    os.makedirs("out", exist_ok=True)
    figure.savefig("out/one-step.png", dpi=100)


if __name__ == "__main__":
    main()
