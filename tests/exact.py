"""An exact world for the tests: texts of 2 tokens over 4 symbols, whose distribution is known and strongly correlated.

Everything here is written out in NumPy float64 from the formulas, without the project's own functions, so that the
two can be compared. A state is a pair of tokens; under the mask source symbol 4 is MASK, and there are 25 states.
"""

import itertools

import numpy as np
import torch

from flow import generate, make_step, step_times
from model import ModelConfig

V, L = 4, 2
TEXT = np.array([[20, 1, 1, 1], [1, 12, 3, 1], [2, 1, 25, 1], [1, 4, 1, 26]], dtype=np.float64)  # pairs mostly agree
TEXT /= TEXT.sum()
TEXTS = list(itertools.product(range(V), repeat=L))


def world_config(source, exponent=1.0, update="cumulative", easing=1.0):
    return ModelConfig(vocab_size=V, block_size=L, source=source, exponent=exponent, update=update, easing=easing)


def states(source):
    return list(itertools.product(range(V + (source == "mask")), repeat=L))


def token_path(source, kappa):
    """(V, n_tokens): p(x_t = y | x_1 = x) of one token: text with probability kappa, else noise."""
    if source == "mask":
        return np.hstack([kappa * np.eye(V), np.full((V, 1), 1 - kappa)])
    return kappa * np.eye(V) + (1 - kappa) / V


def path(source, kappa):
    """(texts, states): p(x_t | x_1) of whole sequences; tokens are independent given the text."""
    return np.kron(token_path(source, kappa), token_path(source, kappa))


def posterior(source, kappa):
    """(states, L, V): p(x_1[i] | x_t) by Bayes' rule. States of probability 0 (at kappa = 0 or 1) get the limit inside."""
    kappa = min(max(kappa, 1e-12), 1 - 1e-12)
    joint = TEXT.reshape(-1, 1) * path(source, kappa)  # p(x_1, x_t)
    joint = (joint / joint.sum(0)).T.reshape(-1, V, V)  # (states, first token, second token)
    return np.stack([joint.sum(2), joint.sum(1)], axis=1)


class ExactNetwork:
    """Answers like a network that has learned everything: logits are the log of the exact posterior, and its hidden state, too."""

    read_out = staticmethod(lambda hidden: hidden)

    def __init__(self, source, exponent=1.0, perturb=0.0, update="cumulative", easing=1.0):
        self.config, self.source, self.perturb = world_config(source, exponent, update, easing), source, perturb

    def __call__(self, x_t, t, h=None, hidden=False):
        answer = torch.full((*x_t.shape, self.config.n_tokens), 5.0)  # MASK's logit must not matter
        base = self.config.n_tokens
        for time in t.unique():
            rows = t == time
            table = torch.from_numpy(np.log(posterior(self.source, time.item() ** self.config.exponent) + 1e-300)).float()
            answer[rows, :, :V] = table[x_t[rows, 0] * base + x_t[rows, 1]]
        answer[..., 0] += self.perturb
        return answer


def transition(source, t, h, rule="cumulative"):
    """(states, states): the probability of every step of the sampler, from the exact posterior, for kappa(t) = t."""
    p, all_states = posterior(source, t), states(source)
    last = t + h > 1 - 1e-9
    matrix = np.zeros((len(all_states), len(all_states)))
    for i, x in enumerate(all_states):
        moves = []  # for each place, the distribution of its next token
        for place, token in enumerate(x):
            q = np.append(p[i, place], 0.0)[: V + (source == "mask")]
            if source == "mask" and token != V:
                moves.append(np.eye(V + 1)[token])
            elif last:
                moves.append(q)
            else:
                survive = ((1 - t - h) / (1 - t)) if rule == "cumulative" else np.exp(-h / (1 - t))
                stay = survive ** (1 - q[token])
                away = q.copy()
                away[token] = 0
                move = (1 - stay) * away / away.sum()
                move[token] = stay
                moves.append(move)
        matrix[i] = np.kron(*moves)
    return matrix


def sampled_distribution(source, steps, rule="cumulative", easing=1):
    """(V, V): the exact distribution of the sampler's texts, by multiplying transition matrices."""
    size = V + (source == "mask")
    now = np.full(size**L, 1 / size**L) if source == "uniform" else np.eye(size**L)[-1]
    for i in range(steps):
        t, t_next = (1 - ((steps - j) / steps) ** easing for j in (i, i + 1))
        now = now @ transition(source, t, t_next - t, rule)
    return now.reshape(size, size)[:V, :V]


def write(network, x_0, steps, **options):
    """The real sampler: flow.generate by this network, in steps as in flow.step_times."""
    return generate(make_step(network), x_0, step_times(steps, network.config.easing), **options)


def total_variation(p, q):
    return 0.5 * np.abs(p - q).sum()
