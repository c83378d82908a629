"""For the tests: the exact world of toy.py as a network, a network that keeps its calls, counts.

What is drawn at random is counted and compared by Pearson's chi-square, at 4 standard deviations: a
right program exceeds the bound in one of 30,000 seeds.
"""

import math

import numpy as np
import torch

import flow
from model import Config
from toy import TEXT, TEXTS, L, V, n_tokens, path, posterior, states


def have_distribution(samples, p):
    """Whether samples (n,) int64 are draws from p (k,), by chi-square (Wilson & Hilferty 1931)."""
    p, n, freedom = torch.as_tensor(p), len(samples), len(p) - 1
    counts = samples.bincount(minlength=len(p))
    bound = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3
    return ((counts - n * p) ** 2 / (n * p)).sum() < bound


def number_of(x):
    """The number of a text (B, L) in TEXTS: (B,)."""
    return x[:, 0] * V + x[:, 1]


class ExactNetwork:
    """logits = ln p(x_1[i] | x_t) by Bayes' rule, for x_t (B, L) at times t (B,).

    Under the mask source the token V is MASK. Its logit is 5, which must not matter. `text` is the
    distribution of the texts, (V, V).
    """

    def __init__(self, source="uniform", text=TEXT):
        self.source, self.text = source, text
        self.config = Config(vocab_size=n_tokens(source), block_size=L)

    def __call__(self, x_t, t, h=None):
        times, rows = t.unique(return_inverse=True)  # (T,), (B,)
        p = np.stack([posterior(self.source, k, self.text)
                      for k in flow.kappa(times.double()).tolist()])
        table = torch.from_numpy(np.log(p + 1e-300)).float()  # (T, states, L, V)
        logits = torch.full((*x_t.shape, self.config.vocab_size), 5.0)
        logits[..., :V] = table[rows, x_t[:, 0] * self.config.vocab_size + x_t[:, 1]]
        return logits


class Recorder(torch.nn.Module):
    """A network of 6 tokens, whose logits follow from the token, t and h. It keeps its calls."""

    def __init__(self):
        super().__init__()
        self.config, self.calls = Config(6, block_size=16), []
        self.table = torch.nn.Parameter(torch.randn(6, 6))

    def forward(self, x_t, t, h=None):
        self.calls.append((x_t, t, h))
        h = torch.zeros(len(t)) if h is None else h
        return self.table[x_t] * (1 + t.reshape(len(t), -1, 1) + 3 * h[:, None, None])


def texts_of(network, sampler, steps, n=50_000, **options):
    """The numbers (n,) of n texts of a sampler such as flow.generate, from random tokens."""
    parts = torch.randint(V, (n, L)).split(2500)  # faster: they stay in the cache
    x_1 = torch.cat([sampler(network, part, steps, **options) for part in parts])
    assert x_1.max() < V  # no MASK is left
    return number_of(x_1)


def losses_of_all_pairs(loss, source, logits, t):
    """For each text x_1 and each state x_t, (16, states) nats; logits (states, L, tokens). The loss
    is flow.generalized_kl, or another one of its kind."""
    x_t = torch.tensor(states(source))
    x_1, n = torch.tensor(TEXTS).repeat_interleave(len(x_t), 0), 16 * len(x_t)
    losses = loss(logits.repeat(16, 1, 1), x_1, x_t.repeat(16, 1), torch.full((n,), t))
    return losses.sum(1).view(16, -1)


def exact_bound(network, loss):
    """Integral over t of E[loss(logits, x_1, x_t, t)], nats of each text x_1, (16,)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)  # Gauss's quadrature on [-1, 1]
    x_t, bound = torch.tensor(states(network.source)), np.zeros(16)
    for t, weight in zip((nodes + 1) / 2, weights / 2):
        logits = network(x_t, torch.full((len(x_t),), t))
        losses = losses_of_all_pairs(loss, network.source, logits, t).double().numpy()
        bound += weight * (path(network.source, flow.kappa(t)) * losses).sum(1)
    return bound
