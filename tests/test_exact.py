"""Checks flow.py in the exact world of toy.py: 2 tokens, 4 symbols, and the exact posterior.

The real sampler draws from the distribution that toy.py multiplies out of transition matrices, for
every rule, number of steps, time grid and source, with and without given tokens. The loss bounds
the likelihood. What toy.py says about these distributions is checked in test_toy.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from exact import UNIFORM_STEPS, ExactNetwork, world_config, write
from flow import UPDATES, Sampler, generalized_kl, sample_source
from toy import ENTROPY, RULES, TEXT, TEXTS, L, V
from toy import n_tokens, path, posterior, sampled_distribution, states, transition

SOURCES = ("uniform", "mask")
ONCE_IN_10_000 = {3: 21.1, 15: 44.3}  # degrees of freedom: chi-square exceeded by chance that often


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def count_texts(source, n, steps, sampler=UNIFORM_STEPS):
    """How often each of the 16 texts is among n texts of the real sampler, (16,)."""
    x_0 = sample_source((n, L), world_config(source))
    parts = x_0.split(2500)  # faster: they stay in the cache
    x_1 = torch.cat([write(ExactNetwork(source), part, steps, sampler) for part in parts])
    assert x_1.max() < V  # no MASK is left
    return np.bincount(x_1[:, 0] * V + x_1[:, 1], minlength=V**L)


# ------------------------------------------------------------------------------------------------
# the sampler's distribution


def test_the_rules_are_those_of_toy():
    assert set(UPDATES) == set(RULES)


@pytest.mark.parametrize("source", SOURCES)
def test_the_networks_posterior_is_that_of_toy(source):
    x_t = torch.tensor(states(source))
    for t in (0.0, 0.25, 0.5, 0.875):
        times = torch.full((len(x_t),), t)
        p = ExactNetwork(source)(x_t, times)[..., :V].double().softmax(-1)
        np.testing.assert_allclose(p, posterior(source, t), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps, power", [(1, 1.0), (4, 1.0), (8, 2.0), (64, 2.0)])
@pytest.mark.parametrize("rule", UPDATES)
def test_the_real_sampler_draws_from_it(source, steps, power, rule):
    """At 64 steps all rules are close to the texts, and fewer samples do."""
    n = 20_000 if steps == 64 else 50_000
    counts = count_texts(source, n, steps, Sampler(power, rule))
    expected = n * sampled_distribution(source, steps, rule, power).flatten()
    assert chi_square(counts, expected) < ONCE_IN_10_000[15]


def test_one_rule_is_not_taken_for_another():
    """The test above can fail: at 8 steps, with 50,000 samples, each rule would exceed the bound
    in the place of any other, by the mean of chi-square."""
    for rule in UPDATES:
        for other in set(UPDATES) - {rule}:
            p, q = (sampled_distribution("uniform", 8, name, 2.0) for name in (rule, other))
            assert 15 + 50_000 * ((p - q) ** 2 / q).sum() > 2 * ONCE_IN_10_000[15], (rule, other)


@pytest.mark.parametrize("source", SOURCES)
def test_step_sizes_of_a_list(source):
    """The transitions of 0.5, 0.2 and 0.3, multiplied."""
    n, sizes = 50_000, [0.5, 0.2, 0.3]
    symbols = n_tokens(source)
    now = np.full(16, 1 / 16) if source == "uniform" else np.eye(25)[-1]
    for t, h, last in zip((0.0, 0.5, 0.7), sizes, (False, False, True)):
        now = now @ transition(source, t, h, last)
    expected = n * now.reshape(symbols, symbols)[:V, :V].flatten()
    assert chi_square(count_texts(source, n, sizes), expected) < ONCE_IN_10_000[15]


@pytest.mark.parametrize("steps", [1, 8])
def test_a_given_token_under_the_uniform_source(steps):
    """It never changes. The network takes it for noise while t is small: after one step the other
    token is drawn from its marginal."""
    n, value = 50_000, 2
    x_0 = torch.stack([torch.full((n,), value), torch.randint(V, (n,))], dim=1)
    x_1 = write(ExactNetwork("uniform"), x_0, steps, given=torch.tensor([[True, False]]))
    now = np.full(V, 1 / V)
    for i in range(steps):
        step = transition("uniform", i / steps, 1 / steps, last=i == steps - 1)
        now = now @ step.reshape(V, V, V, V)[value].sum(1)
    assert (x_1[:, 0] == value).all()
    counts = np.bincount(x_1[:, 1], minlength=V)
    assert chi_square(counts, n * now) < ONCE_IN_10_000[3]
    if steps == 1:
        np.testing.assert_allclose(now, TEXT.sum(0), atol=1e-9)


@pytest.mark.parametrize("steps", [2, 4])
def test_renoise_draws_from_its_own_chain(steps):
    """x_1 ~ p at every step, then the path to the next time: the product of these matrices."""
    n = 50_000
    counts = count_texts("uniform", n, steps, Sampler(1.0, "renoise"))
    now = np.full(16, 1 / 16)
    for i in range(steps):
        p = posterior("uniform", i / steps)  # (states, L, V)
        now = now @ (p[:, 0, :, None] * p[:, 1, None, :]).reshape(16, 16)  # x_1
        if i < steps - 1:
            now = now @ path("uniform", (i + 1) / steps)
    assert chi_square(counts, n * now) < ONCE_IN_10_000[15]


class TokenTimes(ExactNetwork):
    """The exact network where the first token has t = 1: it is known, and decides about the
    second."""

    def __init__(self):
        super().__init__("uniform")
        self.config = replace(self.config, given_share=0.5)

    def __call__(self, x_t, t, h=None):
        assert t.shape == x_t.shape and (t[:, 0] == 1).all()
        text = torch.from_numpy(TEXT).float()
        of_second = text[x_t[:, 0]] / text[x_t[:, 0]].sum(1, keepdim=True)  # (B, V)
        kappa = t[:, 1:].float()  # x_t[1] is text with probability kappa, else uniform noise
        likelihood = kappa * F.one_hot(x_t[:, 1], V) + (1 - kappa) / V  # (B, V)
        logits = torch.full((*x_t.shape, V), -30.0)
        logits.scatter_(-1, x_t[..., None], 0.0)
        logits[:, 1] = (of_second * likelihood).clamp(min=1e-30).log()
        return logits


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_given_token_whose_time_is_1(steps):
    """A network trained with given tokens gets a time for every token, 1 where one is given. The
    other token then is drawn from the exact conditional, in any number of steps, under the uniform
    source, too."""
    n, value = 50_000, 2
    x_0 = torch.stack([torch.full((n,), value), torch.randint(V, (n,))], dim=1)
    sampler = Sampler(grid_power=1.0, update="averaged")  # exact for a single token
    x_1 = write(TokenTimes(), x_0, steps, sampler, given=torch.tensor([[True, False]]))
    assert (x_1[:, 0] == value).all()
    counts = np.bincount(x_1[:, 1], minlength=V)
    expected = n * TEXT[value] / TEXT[value].sum()
    assert chi_square(counts, expected) < ONCE_IN_10_000[3]


@pytest.mark.parametrize("steps", [1, 8])
def test_a_given_token_under_the_mask_source(steps):
    """The other token is drawn from the exact conditional, in any number of steps."""
    n, value = 50_000, 2
    x_0 = torch.tensor([[value, V]]).expand(n, 2)
    x_1 = write(ExactNetwork("mask"), x_0, steps, given=torch.tensor([[True, False]]))
    assert (x_1[:, 0] == value).all()
    counts = np.bincount(x_1[:, 1], minlength=V)
    expected = n * TEXT[value] / TEXT[value].sum()
    assert chi_square(counts, expected) < ONCE_IN_10_000[3]


# ------------------------------------------------------------------------------------------------
# the loss bounds the likelihood


def quadrature():
    """40 times in (0, 1) and their weights: Gauss and Legendre's."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return zip((nodes + 1) / 2, weights / 2)


def exact_bound(source, perturb=0.0):
    """Integral over t of E[generalised KL], nats per text, by flow.generalized_kl over every pair
    (x_1, x_t)."""
    config, network = world_config(source), ExactNetwork(source, perturb=perturb)
    n_states = len(states(source))
    x_t = torch.tensor(states(source)).repeat(len(TEXTS), 1)  # (texts * states, 2)
    x_1 = torch.tensor(TEXTS).repeat_interleave(n_states, dim=0)
    total = 0.0
    for time, weight in quadrature():
        t = torch.full((len(x_t),), time)
        loss = generalized_kl(network(x_t, t), x_1, x_t, t, config).sum(1).double().numpy()
        joint = TEXT.reshape(-1, 1) * path(source, time)  # (texts, states)
        total += weight * (joint.flatten() * loss).sum()
    return total


def summed_bound(source):
    """The same at the exact posterior in NumPy, from the definition: the rate times the sum over
    tokens of 1[same] - p(x_t) - 1[other] ln p(x_1)."""
    total = 0.0
    for time, weight in quadrature():
        p, joint = posterior(source, time), TEXT.reshape(-1, 1) * path(source, time)
        for a, text in enumerate(TEXTS):
            for b, state in enumerate(states(source)):
                for place, (now, truth) in enumerate(zip(state, text)):
                    loss = 1.0 if now == truth else -np.log(p[b, place, truth])
                    loss -= p[b, place, now] if now < V else 0.0
                    total += weight / (1 - time) * joint[a, b] * loss
    return total


def test_mask_bound_is_tight():
    assert exact_bound("mask") == pytest.approx(ENTROPY, rel=1e-5)


def test_uniform_bound_is_summed_right_and_is_not_tight():
    """The mixture of conditional paths is not Markov under the uniform source: what the last jump
    tells is lost."""
    bound = exact_bound("uniform")
    assert bound == pytest.approx(summed_bound("uniform"), rel=1e-5)
    assert bound > ENTROPY + 0.05


@pytest.mark.parametrize("source", SOURCES)
def test_a_wrong_posterior_has_a_larger_bound(source):
    right = exact_bound(source)
    assert exact_bound(source, perturb=0.5) > right + 0.01
    assert exact_bound(source, perturb=-0.5) > right + 0.01
