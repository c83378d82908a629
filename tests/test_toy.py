"""Checks toy.py, the exact world of 16 texts, against second computations: the posterior and a step
token by token, "averaged" by a matrix exponential."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from toy import PRODUCT_OF_MARGINALS, RULES, TEXT, V, posterior, sampled_distribution
from toy import states, time_grid, token_path, total_variation, transition

SOURCES = ("uniform", "mask")


def error_of(source, n, rule="cumulative", power=1):
    return total_variation(sampled_distribution(source, n, rule, power), TEXT)


def test_it_needs_numpy_alone():
    found = re.findall("^(?:import|from) .*", Path(toy.__file__).read_text(), re.M)
    assert found == ["import itertools", "import numpy as np"]


@pytest.mark.parametrize("source", SOURCES)
def test_posterior_is_bayes_rule(source):
    for kappa in (0.1, 0.5, 0.9):
        one, p = token_path(source, kappa), posterior(source, kappa)
        np.testing.assert_allclose(one.sum(1), 1)
        for i, (x, y) in enumerate(states(source)):
            joint = [[TEXT[a, b] * one[a, x] * one[b, y] for b in range(V)] for a in range(V)]
            joint = np.array(joint) / np.sum(joint)
            np.testing.assert_allclose(p[i], [joint.sum(1), joint.sum(0)], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_a_probability_and_tends_to_the_rate(rule):
    example = re.search(rf"^    {rule} .*\)  +(0\.\d+)  ", toy.__doc__, re.M)[1]
    assert RULES[rule](0.2, 0, 0.5) == pytest.approx(float(example), abs=5e-4)
    p_stay = np.linspace(0, 1, 11)
    for t in (0, 0.3, 0.9):
        change = RULES[rule](p_stay, t, 1 - t)
        assert ((0 <= change) & (change <= 1)).all()
        per_time = RULES[rule](p_stay, t, 1e-7) / 1e-7
        np.testing.assert_allclose(per_time, (1 - p_stay) / (1 - t), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("t, h", [(0, 0.5), (0.25, 0.25), (0.5, 0.49)])
def test_averaged_is_the_chain_with_p_held_still_and_textbook_euler(t, h):
    """The chain with the generator r (p(y) - [x = y]): the integral of r is ln(1/S)."""
    p = torch.tensor([0.2, 0.5, 0.05, 0.25], dtype=torch.float64)
    Q = p.expand(4, 4) - torch.eye(4, dtype=torch.float64)
    chain = torch.linalg.matrix_exp(math.log((1 - t) / (1 - t - h)) * Q).numpy()
    p = p.numpy()
    np.testing.assert_allclose(RULES["averaged"](p, t, h), 1 - chain.diagonal(), atol=1e-12)
    np.testing.assert_allclose(RULES["averaged"](p, t, h), h / (1 - t) * (1 - p), atol=1e-12)
    assert (RULES["cumulative"](p, t, h) > 1 - chain.diagonal() + 1e-3).all()


def slow_transition(source, p, t, h, last, rule):
    """The same transitions, token by token."""
    matrix = np.ones((len(p), len(p)))
    for (i, x), (j, y) in itertools.product(enumerate(states(source)), repeat=2):
        for place, (token, token_next) in enumerate(zip(x, y)):
            q = [*p[i, place], 0.0]  # MASK has probability 0
            if source == "mask" and token != V:
                matrix[i, j] *= token == token_next
            elif last:
                matrix[i, j] *= q[token_next]
            else:
                change = RULES[rule](q[token], t, h)
                jump = change * q[token_next] / (1 - q[token])
                matrix[i, j] *= 1 - change if token == token_next else jump
    return matrix


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_against_a_second_computation(source, rule):
    for t, h, last in [(0, 0.25, False), (0.5, 0.125, False), (0.75, 0.25, True)]:
        p = posterior(source, t)
        matrix = transition(source, p, t, h, last, rule)
        np.testing.assert_allclose(matrix.sum(1), 1)
        expected = slow_transition(source, p, t, h, last, rule)
        np.testing.assert_allclose(matrix, expected, atol=1e-12)


def test_the_table_of_the_docstring():
    for power in (1, 2):
        errors = [f"{error_of('uniform', 8, rule, power):.3f}" for rule in RULES]
        assert re.search(" +".join(errors), toy.__doc__)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", RULES)
def test_one_step_and_very_many(source, rule):
    one_step = sampled_distribution(source, 1, rule)
    np.testing.assert_allclose(one_step, PRODUCT_OF_MARGINALS, atol=1e-9)
    assert error_of(source, 256, rule) < 0.01 < 0.5 < error_of(source, 1, rule)


@pytest.mark.parametrize("power", [1, 2])
def test_mask_source_is_mdlm(power):
    """A token is unmasked at a uniform time, so with P = h / (1 - t) in a step. Two are drawn
    independently only if one step unmasks both: with probability sum of h^2."""
    for rule in ("averaged", "cumulative"):
        assert RULES[rule](0, 0.5, 0.25) == pytest.approx(0.25 / (1 - 0.5))
    for n in (1, 2, 8, 64):
        both = (np.diff(time_grid(n, power)) ** 2).sum()
        assert error_of("mask", n, power=power) == pytest.approx(both * error_of("mask", 1))
