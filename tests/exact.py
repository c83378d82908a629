"""A network for the tests that knows everything: the exact posterior of the world of toy.py."""

import numpy as np
import torch

from model import Config
from toy import TEXT, TEXTS, L, V, n_tokens, path, posterior, states

ONCE_IN_10_000 = {3: 21.1, 15: 44.3}  # degrees of freedom: chi-square exceeded by chance that often


class ExactNetwork:
    """logits = ln p(x_1[i] | x_t), for x_t (B, L) at times t (B,).

    Under the mask source the token V is MASK. Its logit is 5, which must not matter. `perturb` is
    added to the logit of symbol 0, so that the network is wrong.
    """

    def __init__(self, source="uniform", perturb=0.0):
        self.source, self.perturb = source, perturb
        self.config = Config(vocab_size=n_tokens(source), block_size=L)

    def __call__(self, x_t, t, h=None):
        times, rows = t.unique(return_inverse=True)  # (T,), (B,)
        p = np.stack([posterior(self.source, time) for time in times.double().tolist()])
        table = torch.from_numpy(np.log(p + 1e-300)).float()  # (T, states, L, V)
        state = x_t[:, 0] * self.config.vocab_size + x_t[:, 1]  # (B,)
        logits = torch.full((*x_t.shape, self.config.vocab_size), 5.0)
        logits[..., :V] = table[rows, state]
        logits[..., 0] += self.perturb
        return logits


def count_texts(network, sampler, steps, n, noise=None, **options):
    """How often each of the 16 texts is among n texts of a sampler such as flow.generate, (16,).
    The noise is random tokens, or everywhere the token `noise`."""
    x_0 = torch.randint(V, (n, L)) if noise is None else torch.full((n, L), noise)
    parts = x_0.split(2500)  # faster: they stay in the cache
    x_1 = torch.cat([sampler(network, part, steps, **options) for part in parts])
    assert x_1.max() < V  # no MASK is left
    return np.bincount(x_1[:, 0] * V + x_1[:, 1], minlength=V**L)


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def quadrature():
    """40 times in (0, 1) and their weights: Gauss and Legendre's."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return zip((nodes + 1) / 2, weights / 2)


def exact_bound(network, loss):
    """Integral over t of E[loss(logits, x_1, x_t, t)], nats per text, over every pair (x_1, x_t).
    The loss is flow.generalized_kl, or another one of its kind."""
    every_x_t = torch.tensor(states(network.source))
    x_t = every_x_t.repeat(len(TEXTS), 1)  # (texts * states, L)
    x_1 = torch.tensor(TEXTS).repeat_interleave(len(every_x_t), dim=0)
    total = 0.0
    for time, weight in quadrature():
        t = torch.full((len(x_t),), time)
        losses = loss(network(x_t, t), x_1, x_t, t).sum(1).double().numpy()
        joint = TEXT.reshape(-1, 1) * path(network.source, time)  # (texts, states)
        total += weight * (joint.flatten() * losses).sum()
    return total
