"""Checks toy.py, the exact world of 16 texts: its tables, four jump rules and shortcut teacher.

The sampler's transitions are compared with a second computation, written out token by token; the
"averaged" rule with a matrix exponential; the teacher's expectation with a linear formula.
"""

import ast
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from toy import ENTROPY, PRODUCT_OF_MARGINALS, RULES, STEPS, TEXT, TEXTS, L, V
from toy import path, posterior, sampled_distribution, states, time_grid, token_path
from toy import total_variation, transition

SOURCES = ("uniform", "mask")
ONE_STEP = total_variation(PRODUCT_OF_MARGINALS, TEXT)
TABLE = {  # source, rule, power: total variation after 1, 2, 4, 8, 16 and 64 steps
    ("uniform", "euler", 1): (0.561, 0.380, 0.215, 0.118, 0.067, 0.023),
    ("uniform", "euler-forced", 1): (0.561, 0.380, 0.212, 0.110, 0.055, 0.014),
    ("uniform", "averaged", 1): (0.561, 0.379, 0.201, 0.097, 0.046, 0.011),
    ("uniform", "cumulative", 1): (0.561, 0.379, 0.199, 0.087, 0.032, 0.002),
    ("uniform", "euler", 2): (0.561, 0.308, 0.181, 0.113, 0.064, 0.018),
    ("uniform", "euler-forced", 2): (0.561, 0.308, 0.165, 0.086, 0.042, 0.010),
    ("uniform", "averaged", 2): (0.561, 0.305, 0.144, 0.067, 0.031, 0.007),
    ("uniform", "cumulative", 2): (0.561, 0.305, 0.130, 0.028, 0.007, 0.003),
    ("mask", "euler", 1): (0.561, 0.293, 0.146, 0.072, 0.036, 0.009),
    ("mask", "cumulative", 1): (0.561, 0.281, 0.140, 0.070, 0.035, 0.009),
    ("mask", "cumulative", 2): (0.561, 0.351, 0.184, 0.093, 0.047, 0.012),
}


def error_of(source, n, rule="cumulative", power=1):
    return total_variation(sampled_distribution(source, n, rule, power), TEXT)


@pytest.fixture(scope="module")
def printed():
    """What `python toy.py` prints, from a process of its own."""
    script = Path(toy.__file__)
    start = time.time()
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, cwd=script.parent
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert time.time() - start < 20
    return run.stdout


def test_toy_imports_numpy_only():
    tree = ast.parse(Path(toy.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = sorted(ast.unparse(node) for node in imports)
    assert found == ["import itertools", "import numpy as np"]


# ------------------------------------------------------------------------------------------------
# the texts, the path and the posterior


def test_the_texts():
    assert (V, L) == (4, 2)
    assert TEXT.shape == (V, V)
    assert TEXT.sum() == pytest.approx(1)
    assert TEXTS[0] == (0, 0)
    assert TEXTS[6] == (1, 2)
    assert len(TEXTS) == 16
    assert PRODUCT_OF_MARGINALS[1, 2] == pytest.approx(TEXT[1].sum() * TEXT[:, 2].sum())
    assert math.exp(ENTROPY) == pytest.approx(np.prod(TEXT**-TEXT))


def test_total_variation_of_known_distributions():
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert total_variation(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == 0.25
    assert total_variation(TEXT, TEXT) == 0


@pytest.mark.parametrize("source, n_states", [("uniform", 16), ("mask", 25)])
def test_states_and_path(source, n_states):
    assert len(states(source)) == n_states
    for kappa in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(token_path(source, kappa).sum(1), 1)
        np.testing.assert_allclose(path(source, kappa).sum(1), 1)
    one, both = token_path(source, 0.3), path(source, 0.3)
    for (a, b), row in zip(TEXTS, both, strict=True):
        for (x, y), probability in zip(states(source), row, strict=True):
            assert probability == pytest.approx(one[a, x] * one[b, y])


@pytest.mark.parametrize("source", SOURCES)
def test_posterior_is_bayes_rule(source):
    """Written out for every state and position; only states that can occur have one."""
    for kappa in (0.1, 0.5, 0.9):
        one, p = token_path(source, kappa), posterior(source, kappa)
        assert p.shape == (len(states(source)), L, V)
        for i, (x, y) in enumerate(states(source)):
            joint = [[TEXT[a, b] * one[a, x] * one[b, y] for b in range(V)] for a in range(V)]
            joint = np.array(joint) / np.sum(joint)
            np.testing.assert_allclose(p[i], [joint.sum(1), joint.sum(0)], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("source", SOURCES)
def test_posterior_at_both_ends(source):
    at_noise, at_text = posterior(source, 0.0), posterior(source, 1.0)
    np.testing.assert_allclose(at_noise[-1], [TEXT.sum(1), TEXT.sum(0)], atol=1e-9)
    text = states(source).index((1, 2))
    np.testing.assert_allclose(at_text[text], np.eye(V)[[1, 2]], atol=1e-9)


# ------------------------------------------------------------------------------------------------
# the four jump rules


def test_the_worked_example_of_the_four_rules():
    """t = 0, h = 1/2, p(x_t) = 0.2: the docstring's column "example"."""
    found = {name: rule(0.2, 0.0, 0.5) for name, rule in RULES.items()}
    expected = {"euler": 0.315, "euler-forced": 0.330, "averaged": 0.400, "cumulative": 0.426}
    assert found == pytest.approx(expected, abs=5e-4)
    for name, value in expected.items():
        assert re.search(rf"^    {name} .*  {value:.3f}  ", toy.__doc__, re.MULTILINE), name


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_a_probability_and_tends_to_the_rate(rule):
    p_stay = np.linspace(0, 1, 11)
    for t in (0.0, 0.3, 0.9):
        change = RULES[rule](p_stay, t, 1 - t)
        assert change.shape == (11,)
        assert ((0 <= change) & (change <= 1)).all()
        small = 1e-7
        np.testing.assert_allclose(
            RULES[rule](p_stay, t, small) / small, (1 - p_stay) / (1 - t), rtol=1e-5, atol=1e-8
        )


def test_the_forced_move_expels_a_sure_token_when_the_step_ends_at_1():
    """S = 0: that is why the last step draws x_1 ~ p instead."""
    assert RULES["cumulative"](0.99, 0.5, 0.5) == 1
    assert RULES["averaged"](0.99, 0.5, 0.5) == pytest.approx(0.01)


@pytest.mark.parametrize("t, h", [(0.0, 0.5), (0.25, 0.25), (0.5, 0.49)])
def test_frozen_p_is_the_averaged_rule_and_not_the_cumulative_one(t, h):
    """The chain with the generator r (p(y) - [x = y]) and p frozen: after the integral of r, which
    is ln(1/S), its transition matrix is exp(ln(1/S) Q)."""
    S = (1 - t - h) / (1 - t)
    p = torch.tensor([0.2, 0.5, 0.05, 0.25], dtype=torch.float64)
    Q = p.expand(4, 4) - torch.eye(4, dtype=torch.float64)
    chain = torch.linalg.matrix_exp(math.log(1 / S) * Q).numpy()
    p = p.numpy()
    np.testing.assert_allclose(1 - chain.diagonal(), (1 - S) * (1 - p), atol=1e-12)
    np.testing.assert_allclose(RULES["averaged"](p, t, h), 1 - chain.diagonal(), atol=1e-12)
    for x in range(4):
        change = RULES["averaged"](p[x], t, h)
        for y in set(range(4)) - {x}:
            assert chain[x, y] == pytest.approx(change * p[y] / (1 - p[x]), abs=1e-12)
    assert (RULES["cumulative"](p, t, h) > 1 - chain.diagonal() + 1e-3).all()
    if (t, h) == (0.0, 0.5):
        assert 1 - chain[0, 0] == pytest.approx(0.400, abs=1e-12)
        assert RULES["cumulative"](p[0], t, h) == pytest.approx(0.426, abs=5e-4)


# ------------------------------------------------------------------------------------------------
# one step


def slow_transition(source, t, h, last, rule):
    """The same transitions, token by token."""
    p, size = posterior(source, t), len(states(source))
    matrix = np.ones((size, size))
    for i, x in enumerate(states(source)):
        for j, y in enumerate(states(source)):
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
def test_transition_against_a_second_computation(source, rule):
    for t, h, last in [(0.0, 0.25, False), (0.5, 0.125, False), (0.75, 0.25, True)]:
        matrix = transition(source, t, h, last, rule)
        np.testing.assert_allclose(matrix.sum(1), 1)
        np.testing.assert_allclose(matrix, slow_transition(source, t, h, last, rule), atol=1e-12)


def test_the_averaged_rule_needs_no_special_last_step():
    """S = 0 makes it draw x_1 ~ p. The other rules end elsewhere without the flag."""
    last = transition("uniform", 0.75, 0.25, True)
    for rule in RULES:
        same = np.allclose(transition("uniform", 0.75, 0.25, False, rule), last, atol=1e-12)
        assert same == (rule == "averaged")


def test_last_is_a_flag_and_does_not_depend_on_the_time():
    """A step that ends at 1 may be an inner jump (the teacher's), and the flag decides."""
    inner = transition("uniform", 0.5, 0.5, last=False)
    assert inner.diagonal() == pytest.approx(0)  # S = 0: every token is expelled
    assert transition("uniform", 0.5, 0.5, last=True).diagonal().max() > 0.7


@pytest.mark.parametrize("forced, plain", [("euler-forced", "euler"), ("cumulative", "averaged")])
def test_the_forced_move_makes_no_difference_under_the_mask_source(forced, plain):
    for t, h in [(0.0, 0.25), (0.5, 0.25)]:
        pair = [transition("mask", t, h, False, rule) for rule in (forced, plain)]
        np.testing.assert_allclose(*pair, atol=1e-12)


# ------------------------------------------------------------------------------------------------
# the sampler's distribution


def test_time_grid():
    assert time_grid(4, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert time_grid(4, 2) == [0, 0.4375, 0.75, 0.9375, 1]
    assert time_grid(1, 2) == [0, 1]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rule", RULES)
def test_one_step_gives_the_product_of_marginals(source, rule):
    one_step = sampled_distribution(source, 1, rule)
    np.testing.assert_allclose(one_step, PRODUCT_OF_MARGINALS, atol=1e-9)
    assert ONE_STEP > 0.5  # far from the texts: few steps are hard


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("power", [1, 2])
def test_the_sampled_distribution_is_one(source, power):
    for rule in RULES:
        p = sampled_distribution(source, 5, rule, power)
        assert p.shape == (V, V)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1)


@pytest.mark.parametrize("rule, power", [("cumulative", 1), ("cumulative", 2), ("euler-forced", 1)])
def test_mask_error_is_the_probability_that_one_step_unmasks_both(rule, power):
    """Two masked tokens are drawn independently only if one step unmasks both. With cumulative
    each is unmasked at a uniform time, so the probability is the sum of h^2, 1/n at uniform h."""
    for n in (1, 2, 4, 8, 64):
        error = error_of("mask", n, rule, power) / ONE_STEP
        if rule == "cumulative":
            assert error == pytest.approx((np.diff(time_grid(n, power)) ** 2).sum(), rel=1e-6)
        else:
            assert 1 / n - 1e-9 <= error < 1.1 / n
        if (rule, power) == ("cumulative", 1):
            assert error == pytest.approx(1 / n, rel=1e-6)


@pytest.mark.parametrize(
    "rule, error, order, tolerance",
    [
        ("euler", 0.0028, 0.8, 0.05),
        ("euler-forced", 0.0009, 1.0, 0.01),
        ("averaged", 0.0006, 1.0, 0.01),
        ("cumulative", 0.0016, 0.7, 0.15),
    ],
)
def test_uniform_error_vanishes_with_steps(rule, error, order, tolerance):
    """Euler's with a forced move and the averaged rule's halve with every doubling. That of
    cumulative falls faster at first (its two leading terms have opposite signs), and from some
    hundred steps on like (log n) / n, whose slope here is near 0.7."""
    errors = [error_of("uniform", n, rule) for n in (1024, 2048, 4096)]
    assert errors[0] == pytest.approx(error, abs=6e-5)
    assert errors[-1] < 1e-3
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=tolerance)


@pytest.mark.parametrize("source", SOURCES)
def test_cumulative_is_closer_than_euler(source):
    for n in (4, 8, 16):
        assert error_of(source, n) < error_of(source, n, "euler-forced")
        assert error_of(source, n) < error_of(source, n, "euler")


@pytest.mark.parametrize("n", [4, 8, 16, 64])
@pytest.mark.parametrize("power", [1, 2])
def test_the_averaged_scale_gives_more_than_the_forced_move(n, power):
    """Each alone, and each added to the other."""
    euler, forced, averaged, both = (error_of("uniform", n, rule, power) for rule in RULES)
    assert both < averaged < forced < euler


# ------------------------------------------------------------------------------------------------
# the table


def test_the_rows_of_the_table():
    rows = toy.table_rows()
    assert STEPS == (1, 2, 4, 8, 16, 64)
    assert [row[:3] for row in rows] == list(TABLE)
    for source, rule, power, errors in rows:
        assert errors == pytest.approx(TABLE[source, rule, power], abs=5.1e-4)


def test_the_table_is_printed(printed):
    lines = [line.split() for line in printed.splitlines()]
    for (source, rule, power), errors in TABLE.items():
        grid = ["uniform"] if power == 1 else ["power", "2"]
        assert [source, rule, *grid, *(f"{error:.3f}" for error in errors)] in lines


def test_what_each_part_is_worth():
    """The figures of the docstring, and those under the printed table, at 8 steps."""
    for name, power in (("uniform, t_i", 1), ("power 2, t_i", 2)):
        line = next(line for line in toy.__doc__.splitlines() if line.strip().startswith(name))
        found = [float(number) for number in re.findall(r"0\.\d{3}", line)]
        expected = [error_of("uniform", 8, rule, power) for rule in RULES]
        assert found == pytest.approx(expected, abs=5.1e-4)
    text = " ".join(toy.__doc__.split())
    assert "take 0.118 to 0.087: the averaged scale alone reaches 0.097, the forced" in text
    assert "move alone 0.110," in text
    assert "(0.118 to 0.113) and most with both (0.087 to 0.028)" in text


def test_what_each_part_is_worth_is_printed(printed):
    text = " ".join(printed.split())
    assert "euler has 0.118. The averaged scale alone gives 0.097, the forced" in text
    assert "move alone 0.110, both 0.087. The grid of power 2 alone gives 0.113," in text
    assert "all three 0.028." in text


# ------------------------------------------------------------------------------------------------
# the shortcut teacher

X_T, T, H = TEXTS.index((0, 2)), 0.25, 0.5


def test_the_four_calls_have_the_teachers_times_and_jumps():
    assert toy.call_times(T, H) == [0.25, 0.5, 0.5, 0.75]
    jumps = toy.teacher_jumps(T, H)
    np.testing.assert_allclose(jumps[0], transition("uniform", 0.25, 0.25, False))
    np.testing.assert_allclose(jumps[1], transition("uniform", 0.5, 0.25, False))
    np.testing.assert_allclose(jumps[2], jumps[1])
    logits = toy.teacher_logits(T, H)
    np.testing.assert_allclose(toy.softmax(logits[3]), posterior("uniform", 0.75))


def test_the_target_is_the_weighted_mean_of_logits():
    drawn = [X_T, 5, 10, 3]
    l1, l2, l3, l4 = (
        np.log(posterior("uniform", when)[state])
        for when, state in zip((0.25, 0.5, 0.5, 0.75), drawn)
    )
    expected = (l1 + 2 * l2 + 2 * l3 + l4) / 6
    np.testing.assert_allclose(toy.target_logits(drawn, T, H), expected, rtol=1e-12)


def test_drawn_states_follow_the_jumps():
    """The three marginals of 4,000 draws against products of transitions, within 5 sigma."""
    rng = np.random.default_rng(0)
    draws = np.array([toy.draw_states(X_T, T, H, rng) for _ in range(4000)])
    assert (draws[:, 0] == X_T).all()
    p = np.eye(16)[X_T]
    for drawn, jump in zip(draws.T[1:], toy.teacher_jumps(T, H), strict=True):
        p = p @ jump
        counts = np.bincount(drawn, minlength=16)
        assert (np.abs(counts - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p))).all()


def test_the_expected_target_is_the_mean_over_draws():
    """By enumeration of the states that a call can reach, in plain loops."""
    expected = np.zeros((L, V))
    to_a, to_b, to_c = toy.teacher_jumps(T, H)
    l1, l2, l3, l4 = (np.log(posterior("uniform", when)) for when in (0.25, 0.5, 0.5, 0.75))
    for a in range(16):
        for b in range(16):
            for c in range(16):
                logits = (l1[X_T] + 2 * l2[a] + 2 * l3[b] + l4[c]) / 6
                odds = np.exp(logits)
                probability = to_a[X_T, a] * to_b[a, b] * to_c[b, c]
                expected += probability * odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(toy.expected_target(X_T, T, H), expected, rtol=1e-10)


def test_the_teachers_example_is_printed(printed):
    """Its columns by their own formulas: posterior, P(token changes), mean of logits, targets."""
    lines = printed.splitlines()
    calls = [line.split() for line in lines if re.match(r"l[1-4] ", line)]
    assert [call[0] for call in calls] == ["l1", "l2", "l3", "l4"]
    logits = []
    for call, time_of_call in zip(calls, (0.25, 0.5, 0.5, 0.75)):
        state = int(call[1]), int(call[2])
        p = posterior("uniform", time_of_call)[TEXTS.index(state)]
        logits.append(math.log(p[0, 0]))
        assert float(call[3]) == time_of_call
        assert [float(x) for x in call[4:12]] == pytest.approx(list(p.flatten()), abs=0.0051)
        if call[0] != "l4":
            survival = (1 - time_of_call - 0.25) / (1 - time_of_call)
            change = [1 - survival ** (1 - p[i, state[i]]) for i in range(L)]
            assert [float(x) for x in call[12:]] == pytest.approx(change, abs=0.0051)
    assert calls[0][1:3] == ["0", "2"]
    assert calls[1][1:3] != calls[2][1:3] or calls[2][1:3] != calls[3][1:3]  # something jumps
    mean = (logits[0] + 2 * logits[1] + 2 * logits[2] + logits[3]) / 6
    line = next(line for line in lines if line.endswith(f") / 6 = {mean:.2f}"))
    found = [float(x) for x in re.findall(r"\((-[\d.]+)\)", line.replace("((", "("))]
    assert float(re.match(r"\((-[\d.]+) \+", line)[1]) == pytest.approx(logits[0], abs=0.0051)
    assert found == pytest.approx(logits[1:], abs=0.0051)


def test_the_targets_are_printed(printed):
    """The mean over draws has less entropy than the posterior at x_t, and more than one draw's."""
    rows = {}
    for name in ("posterior at x_t", "target, this draw", "target, all draws"):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        rows[name] = np.array([float(x) for x in line[len(name) :].split()])
    at_x_t = posterior("uniform", T)[X_T]
    expected = toy.expected_target(X_T, T, H)
    for name, p in (("posterior at x_t", at_x_t), ("target, all draws", expected)):
        entropy = -(p * np.log(p)).sum(1)
        np.testing.assert_allclose(rows[name], [*p.flatten(), *entropy], atol=0.0051)
    ordered = [rows[name][8:] for name in ("target, this draw", "target, all draws")]
    assert (ordered[0] < ordered[1]).all()
    assert (ordered[1] < rows["posterior at x_t"][8:]).all()
