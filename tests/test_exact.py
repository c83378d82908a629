"""Proves the whole method in an exact world (exact.py): 2 tokens, 4 symbols, and a network that knows the truth.

The sampler's distribution is computed exactly, by multiplying transition matrices over its 16 (or 25) states, and:
the real sampler draws from it; it tends to the distribution of texts; one step gives the product of marginals, which
is why few steps are hard; the cumulative scalar comes closer than Euler; the loss bounds the likelihood.
"""

import math

import numpy as np
import pytest
import torch

from exact import TEXT, TEXTS, ExactNetwork, V, path, posterior, sampled_distribution, states, total_variation, transition, world_config, write
from flow import generalized_kl, sample_source

PRODUCT_OF_MARGINALS = np.outer(TEXT.sum(1), TEXT.sum(0))
ENTROPY = -(TEXT * np.log(TEXT)).sum()
SOURCES = ("uniform", "mask")


# the sampler's distribution


@pytest.mark.parametrize("source", SOURCES)
def test_one_step_gives_the_product_of_marginals(source):
    np.testing.assert_allclose(sampled_distribution(source, 1), PRODUCT_OF_MARGINALS, atol=1e-9)
    assert total_variation(PRODUCT_OF_MARGINALS, TEXT) > 0.5  # far from the truth: few steps are hard


@pytest.mark.parametrize("rule", ["cumulative", "euler"])
def test_mask_error_is_one_over_steps(rule):
    """Two masked tokens go wrong only if one step shows both, in which case they are drawn independently. With the
    cumulative scalar each is shown at a uniform time, so that happens with probability 1/n exactly."""
    for n in (1, 2, 4, 8, 64):
        error = total_variation(sampled_distribution("mask", n, rule), TEXT) / total_variation(PRODUCT_OF_MARGINALS, TEXT)
        if rule == "cumulative":
            assert error == pytest.approx(1 / n, rel=1e-6)
        else:
            assert 1 / n - 1e-9 <= error < 1.1 / n


README_TABLE = {  # source, rule, easing: total variation after 1, 2, 4, 8, 16 and 64 steps
    ("uniform", "euler", 1): (0.561, 0.380, 0.212, 0.110, 0.055, 0.014),
    ("uniform", "cumulative", 1): (0.561, 0.379, 0.199, 0.087, 0.032, 0.002),
    ("uniform", "cumulative", 2): (0.561, 0.305, 0.130, 0.028, 0.007, 0.003),
    ("mask", "euler", 1): (0.561, 0.293, 0.146, 0.072, 0.036, 0.009),
    ("mask", "cumulative", 1): (0.561, 0.281, 0.140, 0.070, 0.035, 0.009),
    ("mask", "cumulative", 2): (0.561, 0.351, 0.184, 0.093, 0.047, 0.012),
}


@pytest.mark.parametrize("source, rule, easing", README_TABLE)
def test_the_table_of_the_readme(source, rule, easing):
    errors = [total_variation(sampled_distribution(source, n, rule, easing), TEXT) for n in (1, 2, 4, 8, 16, 64)]
    assert errors == pytest.approx(README_TABLE[source, rule, easing], abs=5.1e-4)  # its figures have three decimals


@pytest.mark.parametrize("rule, order", [("cumulative", 0.7), ("euler", 1.0)])
def test_uniform_error_vanishes_with_steps(rule, order):
    """Euler's error halves with every doubling. The cumulative scalar's falls faster at first (its two leading
    terms have opposite signs), and from some hundred steps on like (log n) / n, whose slope here is near 0.7."""
    errors = [total_variation(sampled_distribution("uniform", n, rule), TEXT) for n in (1024, 2048, 4096)]
    assert errors[-1] < 1e-3
    assert errors[0] == pytest.approx({"cumulative": 0.0016, "euler": 0.0009}[rule], abs=5.1e-5)  # the README's
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15 if rule == "cumulative" else 0.01)


@pytest.mark.parametrize("source", SOURCES)
def test_cumulative_scalar_is_closer_than_euler(source):
    for n in (4, 8, 16):
        cumulative, euler = (total_variation(sampled_distribution(source, n, rule), TEXT) for rule in ("cumulative", "euler"))
        assert cumulative < euler


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", [1, 4, 64])
@pytest.mark.parametrize("rule, easing", [("cumulative", 1.0), ("cumulative", 2.0), ("euler", 1.0)])
def test_the_real_sampler_draws_from_it(source, steps, rule, easing):
    n = 50_000
    x_1 = write(ExactNetwork(source, update=rule, easing=easing), sample_source((n, 2), world_config(source)), steps)
    counts = np.bincount(x_1[:, 0] * 4 + x_1[:, 1], minlength=16)
    expected = n * sampled_distribution(source, steps, rule, easing).flatten()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 44.3  # 15 degrees of freedom: exceeded by chance once in 10,000


@pytest.mark.parametrize("steps", [1, 8])
def test_a_given_token_under_the_uniform_source(steps):
    """It never changes, but is heeded only as its time comes: after one step the other token is drawn from its marginal."""
    n, given = 50_000, 2
    x_0 = torch.stack([torch.full((n,), given), torch.randint(V, (n,))], dim=1)
    x_1 = write(ExactNetwork("uniform"), x_0, steps, frozen=torch.tensor([[True, False]]))
    now = np.full(V, 1 / V)
    for i in range(steps):
        now = now @ transition("uniform", i / steps, 1 / steps).reshape(V, V, V, V)[given].sum(1)
    counts = np.bincount(x_1[:, 1], minlength=V)
    assert (x_1[:, 0] == given).all() and ((counts - n * now) ** 2 / (n * now)).sum() < 21.1  # 3 degrees of freedom: once in 10,000
    if steps == 1:
        np.testing.assert_allclose(now, TEXT.sum(0), atol=1e-9)


# the loss bounds the likelihood


def exact_bound(source, perturb=0.0):
    """Integral over t of E[generalised KL], in nats per text, by flow.generalized_kl over every (x_1, x_t)."""
    config, network = world_config(source), ExactNetwork(source, perturb=perturb)
    all_states = torch.tensor(states(source))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2):
        t = torch.full((len(all_states),), node, dtype=torch.float64).float()
        logits = network(all_states, t)
        for text, p_text, p_states in zip(TEXTS, TEXT.flatten(), path(source, node)):
            loss = generalized_kl(logits, torch.tensor([text]).expand(len(all_states), 2), all_states, t, config).sum(1)
            total += weight * p_text * float((torch.from_numpy(p_states) * loss.double()).sum())
    return total


def summed_bound(source):
    """The same at the exact posterior in NumPy, from the definition: rate * sum over tokens of
    1[same] - p(x_t) - 1[other] log p(x_1)."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2):
        p, joint = posterior(source, node), TEXT.reshape(-1, 1) * path(source, node)
        for a, text in enumerate(TEXTS):
            for b, state in enumerate(states(source)):
                for place in range(2):
                    now, truth = state[place], text[place]
                    p_now = p[b, place, now] if now < 4 else 0.0
                    same = now == truth
                    total += weight / (1 - node) * joint[a, b] * (same - p_now - (0 if same else np.log(p[b, place, truth])))
    return total


def test_mask_bound_is_tight():
    assert exact_bound("mask") == pytest.approx(ENTROPY, rel=1e-5)


def test_uniform_bound_is_summed_right_and_is_not_tight():
    """The mixture of conditional paths is not Markov under the uniform source: what the last jump tells is lost."""
    assert exact_bound("uniform") == pytest.approx(summed_bound("uniform"), rel=1e-5)
    assert exact_bound("uniform") > ENTROPY + 0.05


@pytest.mark.parametrize("source", SOURCES)
def test_a_wrong_posterior_has_a_larger_bound(source):
    assert exact_bound(source, perturb=0.5) > exact_bound(source) + 0.01
    assert exact_bound(source, perturb=-0.5) > exact_bound(source) + 0.01
