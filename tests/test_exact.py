"""Checks flow.py in the exact world of toy.py: 2 tokens, 4 symbols, and the exact posterior.

The real sampler draws from the distribution that toy.py multiplies out of transition matrices, for
every number of steps, time grid and jump rule, with and without given tokens. The loss bounds the
likelihood. What toy.py says about these distributions is checked in test_toy.py.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import extras.samplers as samplers
import flow
from exact import ONCE_IN_10_000, ExactNetwork, chi_square, count_texts, exact_bound, quadrature
from flow import generalized_kl, generate, time_grid
from sample import at_temperature, fill
from toy import ENTROPY, RULES, TEXT, TEXTS, L, V, cumulative, path, posterior
from toy import sampled_distribution, states, token_path

# the rules of toy.py, as samplers; "euler-forced" is no one's
SAMPLERS = {"cumulative": generate, "averaged": samplers.averaged, "euler": samplers.euler}


def test_the_networks_posterior_is_that_of_toy():
    x_t = torch.tensor(states("uniform"))
    for t in (0.0, 0.25, 0.5, 0.875):
        p = ExactNetwork()(x_t, torch.full((len(x_t),), t)).double().softmax(-1)
        np.testing.assert_allclose(p, posterior("uniform", t), rtol=1e-5, atol=1e-9)


def test_the_path_is_that_of_toy():
    n, one = 50_000, token_path("uniform", 0.25)  # (x_1, x_t)
    x_t = flow.sample_path(torch.tensor([0, 3]).expand(n, L), torch.full((n,), 0.25), V)
    counts = np.bincount(x_t[:, 0] * V + x_t[:, 1], minlength=16)
    expected = n * np.outer(one[0], one[3]).flatten()
    assert chi_square(counts, expected) < ONCE_IN_10_000[15]


# ------------------------------------------------------------------------------------------------
# the sampler's distribution


@pytest.mark.parametrize("steps, power", [(1, 1.0), (4, 1.0), (8, 2.0), (64, 2.0)])
@pytest.mark.parametrize("rule", SAMPLERS)
def test_the_real_sampler_draws_from_it(steps, power, rule):
    """At 64 steps all rules are close to the texts, and fewer samples do."""
    n = 10_000 if steps == 64 else 50_000
    counts = count_texts(ExactNetwork(), SAMPLERS[rule], steps, n, power=power)
    expected = n * sampled_distribution("uniform", steps, rule, power).flatten()
    assert chi_square(counts, expected) < ONCE_IN_10_000[15]


def test_one_rule_is_not_taken_for_another():
    """The test above can fail: at 8 steps, with 50,000 samples, each rule would exceed the bound
    in the place of any other, by the mean of chi-square."""
    for rule in RULES:
        for other in set(RULES) - {rule}:
            p, q = (sampled_distribution("uniform", 8, name, 2.0) for name in (rule, other))
            assert 15 + 50_000 * ((p - q) ** 2 / q).sum() > 2 * ONCE_IN_10_000[15], (rule, other)


def test_the_grid_is_uniform_or_of_power_2():
    """The sampler's default, and that of the paper."""
    n = 50_000
    for sampler, power in ((generate, 2.0), (samplers.uniform_grid, 1.0)):
        counts = count_texts(ExactNetwork(), sampler, 4, n)
        expected = n * sampled_distribution("uniform", 4, power=power).flatten()
        assert chi_square(counts, expected) < ONCE_IN_10_000[15]


@pytest.mark.parametrize("steps", [2, 4])
def test_renoise_draws_from_its_own_chain(steps):
    """x_1 ~ p at every step, then the path to the next time. `renoise` ends with the likeliest."""
    n, times, now = 50_000, time_grid(steps), np.full(16, 1 / 16)
    for i in range(steps):
        p = posterior("uniform", times[i])  # (states, L, V)
        now = now @ (p[:, 0, :, None] * p[:, 1, None, :]).reshape(16, 16)  # x_1
        now = now @ path("uniform", times[i + 1])  # at t = 1 it is x_1 itself
    counts = count_texts(ExactNetwork(), partial(generate, step=samplers.renoise_step), steps, n)
    assert chi_square(counts, n * now) < ONCE_IN_10_000[15]
    assert count_texts(ExactNetwork(), samplers.renoise, 1, 9)[4 * 3 + 2] == 9


def test_a_temperature():
    """p ** (1/T), renormalised: one step from noise shows it."""
    n, T = 50_000, 0.5
    first, second = (TEXT.sum(axis) ** (1 / T) for axis in (1, 0))
    expected = n * np.outer(first / first.sum(), second / second.sum()).flatten()
    counts = count_texts(at_temperature(ExactNetwork(), T), generate, 1, n)
    assert chi_square(counts, expected) < ONCE_IN_10_000[15]


# ------------------------------------------------------------------------------------------------
# given tokens


class TokenTimes(ExactNetwork):
    """The exact network where the first token has t = 1: it is known, and decides about the
    second."""

    def __call__(self, x_t, t, h=None):
        assert t.shape == x_t.shape and (t[:, 0] == 1).all()
        text = torch.from_numpy(TEXT).float()
        of_second = text[x_t[:, 0]] / text[x_t[:, 0]].sum(1, keepdim=True)  # (B, V)
        kappa = t[:, 1:].float()  # x_t[1] is text with probability kappa, else uniform noise
        likelihood = kappa * F.one_hot(x_t[:, 1], V) + (1 - kappa) / V  # (B, V)
        logits = torch.zeros(*x_t.shape, V)  # those of the given token must not matter
        logits[:, 1] = (of_second * likelihood).clamp(min=1e-30).log()
        return logits


def second_token(value, steps):
    """The distribution of the second token after so many steps, where the first is known: from
    noise, a matrix for each step."""
    prior, times, now = TEXT[value] / TEXT[value].sum(), time_grid(steps), np.full(V, 1 / V)
    for i in range(steps):
        t, h = times[i], times[i + 1] - times[i]
        p = prior * (t * np.eye(V) + (1 - t) / V)  # (x_t, x_1)
        p /= p.sum(1, keepdims=True)
        change = 1 - p.diagonal() if i == steps - 1 else cumulative(p.diagonal(), t, h)
        step = (change / (1 - p.diagonal()))[:, None] * p
        np.fill_diagonal(step, 1 - change)
        now = now @ step
    return now


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("sampler", ["cumulative", "averaged"])
def test_a_given_token(sampler, steps):
    """It never changes, and the network is told that its time is 1. The rule "averaged" then draws
    the other token from the exact conditional, in any number of steps."""
    n, value = 50_000, 2
    template = torch.tensor([[value, -1]]).expand(n, L)
    x_1 = fill(TokenTimes(), template, steps, SAMPLERS[sampler])
    assert (x_1[:, 0] == value).all()
    exact = TEXT[value] / TEXT[value].sum()
    expected = exact if sampler == "averaged" else second_token(value, steps)
    counts = np.bincount(x_1[:, 1], minlength=V)
    assert chi_square(counts, n * expected) < ONCE_IN_10_000[3]


# ------------------------------------------------------------------------------------------------
# the loss bounds the likelihood


def summed_bound():
    """exact_bound at the exact posterior in NumPy, from the definition: the rate times the sum over
    tokens of 1[same] - p(x_t) - 1[other] ln p(x_1)."""
    total = 0.0
    for time, weight in quadrature():
        p, joint = posterior("uniform", time), TEXT.reshape(-1, 1) * path("uniform", time)
        for a, text in enumerate(TEXTS):
            for b, state in enumerate(states("uniform")):
                for place, (now, truth) in enumerate(zip(state, text)):
                    loss = 1.0 if now == truth else -np.log(p[b, place, truth])
                    total += weight / (1 - time) * joint[a, b] * (loss - p[b, place, now])
    return total


def test_the_bound_is_summed_right_and_is_not_tight():
    """The mixture of conditional paths is not Markov under the uniform source: what the last jump
    tells is lost."""
    bound = exact_bound(ExactNetwork(), generalized_kl)
    assert bound == pytest.approx(summed_bound(), rel=1e-5)
    assert bound > ENTROPY + 0.05


@pytest.mark.parametrize("largest_weight", [float("inf"), 5.0])
def test_a_wrong_posterior_has_a_larger_loss(largest_weight):
    """Also where the weight is clipped."""
    loss = partial(generalized_kl, largest_weight=largest_weight)
    right, low, high = (exact_bound(ExactNetwork(perturb=x), loss) for x in (0, -0.5, 0.5))
    assert min(low, high) > right + 0.01
