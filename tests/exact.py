"""A network for the tests that knows everything: the exact posterior of the world of toy.py."""

import numpy as np
import torch

from flow import Sampler, generate
from model import ModelConfig
from toy import L, V, posterior

UNIFORM_STEPS = Sampler(grid_power=1.0)


def world_config(source, exponent=1.0):
    return ModelConfig(vocab_size=V, block_size=L, source=source, exponent=exponent)


class ExactNetwork:
    """logits = ln p(x_1[i] | x_t), for x_t (B, L) at times t (B,).

    MASK's logit is 5, which must not matter. `perturb` is added to the logit of symbol 0, so that
    the network is wrong.
    """

    def __init__(self, source, exponent=1.0, perturb=0.0):
        self.config = world_config(source, exponent)
        self.perturb = perturb

    def __call__(self, x_t, t, h=None):
        times, rows = t.unique(return_inverse=True)  # (T,), (B,)
        kappas = times.double() ** self.config.exponent
        p = np.stack([posterior(self.config.source, kappa) for kappa in kappas.tolist()])
        table = torch.from_numpy(np.log(p + 1e-300)).float()  # (T, states, L, V)
        state = x_t[:, 0] * self.config.n_tokens + x_t[:, 1]  # (B,)
        logits = torch.full((*x_t.shape, self.config.n_tokens), 5.0)
        logits[..., :V] = table[rows, state]
        logits[..., 0] += self.perturb
        return logits


def write(network, x_0, steps, sampler=UNIFORM_STEPS, **options):
    """The real sampler, flow.generate, with uniform steps unless a Sampler says otherwise."""
    return generate(network, x_0, steps, sampler, **options)
