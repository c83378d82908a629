"""Can tokens that are drawn one by one agree in a single step? In the exact world of toy.py.

    python experiments/one_step.py          prints a table, and draws out/one-step.png

A network predicts every token by itself, so a step draws from a product of marginals,
p_1(a) p_2(b), in which the two tokens of a text no longer agree. Two ways around that:

Shared noise. Both tokens draw with the same random numbers (flow.draw_with_shared_noise). Each of
    them still has its marginal exactly, and they agree wherever their marginals are alike.

Distribution matching. The student p(y | x_0) is trained so that the texts it writes are
    distributed as true texts are, and not so that it predicts x_1. Its noise x_0 can be read by
    both tokens: for every x_0 it writes a product, but over the x_0 it writes a *mixture* of 16
    products, which is as good as any distribution of 16 texts. Under the mask source there is one
    x_0 alone, and no mixture.

How is that trained, when nobody knows the probability of a text? Noise the student's texts to a
time s. There the posterior of x_1 can be learned, for the student's texts (a) as for true ones (f).
Where a is above f the student writes the token too often:

    loss = sum over s of E_z sum_v p(v | x_0) (ln a(v | z) - ln f(v | z))

where z is on the path from x ~ p to s, with no gradient through a, f and z. Here Bayes' rule gives
a and f, and sums replace samples. The loss stands still where student and text have the same
distribution.

Sources: D-MMD (arXiv 2603.20155) and IDLM (2602.19066) for the loss; Holenstein 2007 and Bavarian
et al. 2016 for shared noise. Before: toy.py.
"""

import sys
from pathlib import Path

import numpy as np

# `python experiments/one_step.py` puts experiments/ on the path, and toy.py is one folder above
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common.early  # first: Ctrl-C is quiet from here on

import matplotlib.pyplot as plt

from common.command import Parser, run_command
from common.files import write_safely
from plot import LOOK
from toy import PRODUCT_OF_MARGINALS, TEXT, L, V, path, posterior, softmax, total_variation

UPDATES, LEARNING_RATE = 200, 4.0
TIMES = np.linspace(0.02, 0.98, 9)  # s, where the posteriors are compared


def kl(p, q):
    """KL(p || q) in nats, of two distributions of texts (V, V)."""
    return float((p * np.log(np.maximum(p, 1e-300) / q)).sum())


# ------------------------------------------------------------------------------------------------
# shared noise


def shared_noise_texts(p_1, p_2, points=20_000):
    """The distribution (V, V) of two tokens that draw from p_1 and p_2 (V,) with the same noise.

    y_1 = argmin_v E_v / p_1(v), y_2 likewise, with E_v ~ Exp(1). The two are a and b != a if the
    ratio r = E_b / E_a is above p_1(b) / p_1(a) and below p_2(b) / p_2(a), and every other E_v is
    above E_a max(p_1(v) / p_1(a), r p_2(v) / p_2(b)). Integrated over E_a that leaves

        P(a, b) = integral of dr / (1 + r + sum over other v of max(...))^2
        P(a, a) = 1 / sum over all v of max(p_1(v) / p_1(a), p_2(v) / p_2(a))
    """
    texts = np.zeros((V, V))
    for a in range(V):
        texts[a, a] = 1 / np.maximum(p_1 / p_1[a], p_2 / p_2[a]).sum()
        for b in set(range(V)) - {a}:
            low, high = p_1[b] / p_1[a], p_2[b] / p_2[a]
            if low < high:
                r = low + (np.arange(points) + 0.5) / points * (high - low)  # midpoints
                others = [v for v in range(V) if v not in (a, b)]
                limits = [np.maximum(p_1[v] / p_1[a], r * p_2[v] / p_2[b]) for v in others]
                texts[a, b] = ((high - low) / (1 + r + sum(limits)) ** 2).mean()
    return texts


# ------------------------------------------------------------------------------------------------
# distribution matching


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


def match(source, updates=UPDATES, seed=0):
    """Trains a student from scratch: (its texts (V, V), KL(texts || TEXT) before each update).

    The uniform source has 16 different x_0, the mask source one."""
    noises = V**L if source == "uniform" else 1
    logits = 0.01 * np.random.default_rng(seed).normal(size=(noises, L, V))
    log_f = log_posteriors(TEXT)
    history = []
    for _ in range(updates):
        p = softmax(logits)
        history.append(kl(written_texts(p), TEXT))
        gradient = loss_gradient(p, log_f)
        logits -= LEARNING_RATE * p * (gradient - (p * gradient).sum(-1, keepdims=True))
    return written_texts(softmax(logits)), history


# ------------------------------------------------------------------------------------------------
# table and picture


def draw(texts, histories):
    """The figure: each distribution of texts as 4 x 4 squares, and KL against updates."""
    plt.rcParams.update(LOOK)
    figure, axes = plt.subplots(1, len(texts) + 1, figsize=(22, 4.6), layout="constrained")
    for axis, (name, p) in zip(axes, texts.items()):
        axis.imshow(p, cmap="Blues", vmin=0, vmax=TEXT.max())
        for (a, b), share in np.ndenumerate(p):
            colour = "white" if share > 0.6 * TEXT.max() else "black"
            axis.text(b, a, f"{100 * share:.0f}", ha="center", va="center", color=colour)
        axis.set_title(f"{name}\nKL {kl(p, TEXT):.4f}", fontsize=13)
        axis.set_xlabel("second token")
        axis.set_xticks(range(V))
        axis.set_yticks(range(V))
    axes[0].set_ylabel("first token; percent of texts")
    for source, history in histories.items():
        axes[-1].semilogy(np.maximum(history, 1e-6), label=f"{source} source", linewidth=3)
    axes[-1].set_xlabel("updates of distribution matching")
    axes[-1].set_ylabel("KL(written || true), nats")
    axes[-1].grid(alpha=0.25)
    axes[-1].legend(frameon=False)
    return figure


def main():
    parser = Parser(__doc__)
    parser.add_argument("--picture", type=Path, default=Path("out/one-step.png"),
                        help="file that is written (default: out/one-step.png)")
    arguments = parser.parse_args()
    matched = {source: match(source) for source in ("mask", "uniform")}
    texts = {
        "true texts": TEXT,
        "independent draws": PRODUCT_OF_MARGINALS,
        "shared noise": shared_noise_texts(TEXT.sum(1), TEXT.sum(0)),
        "matched, mask source": matched["mask"][0],
        "matched, uniform source": matched["uniform"][0],
    }
    print("Texts of one step                KL(written || true), nats   total variation")
    for name, p in texts.items():
        print(f"{name:32} {kl(p, TEXT):25.4f} {total_variation(p, TEXT):17.4f}")
    figure = draw(texts, {source: history for source, (_, history) in matched.items()})
    write_safely(
        arguments.picture, lambda temporary: figure.savefig(temporary, dpi=100, format="png")
    )


if __name__ == "__main__":
    run_command(main)
