"""The tests that decide: one for each exercise of docs/exercises.md."""

import math

import numpy as np
import pytest
import torch

import flow
import toy


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    torch.set_num_threads(1)


def shares_agree(tokens, expected):
    """Whether the share of each symbol is within 4.5 standard errors of the expected one."""
    share = torch.bincount(tokens, minlength=len(expected)) / len(tokens)
    error = (expected * (1 - expected) / len(tokens)).sqrt() + 1e-9
    return bool(((share - expected).abs() < 4.5 * error).all())


def test_path(load):
    n = 20_000
    t = torch.tensor([0.0, 0.25, 0.7, 1.0])
    x_1, x_0 = torch.ones(4, n, dtype=torch.int64), torch.zeros(4, n, dtype=torch.int64)
    x_t = load("path").sample_path(x_1, x_0, t)
    assert x_t.shape == (4, n)
    for row, time in zip(x_t, t):
        assert shares_agree(row, torch.tensor([1 - time, time])), f"at t = {time:g}"
    pairs = x_t[1].view(-1, 2).sum(1)  # two tokens of a text decide independently
    assert shares_agree(pairs, torch.tensor([0.75**2, 2 * 0.25 * 0.75, 0.25**2]))


def test_posterior(load):
    posterior = load("posterior").posterior
    for t in (0.0, 0.25, 0.9):
        exact = toy.posterior("uniform", t)  # (states, 2, V)
        for state, x_t in enumerate(toy.states("uniform")):
            np.testing.assert_allclose(posterior(toy.TEXT, x_t, t), exact[state], atol=1e-9)


def test_jump(load):
    """From t = 0.25 to 0.625 half of the noise stays: S = 1/2."""
    jump, n = load("jump").jump, 100_000
    for p in (torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 1.0, 0.0, 0.0])):
        x_t = torch.full((n,), 1)
        moved = 1 - 0.5 ** (1 - p[1])
        expected = moved * p / (1 - p[1]) if p[1] < 1 else torch.zeros(4)
        expected[1] = 1 - moved
        drawn = jump(x_t, p.repeat(n, 1), 0.25, 0.375, last=False)
        assert drawn.shape == (n,) and shares_agree(drawn, expected)
        drawn = jump(x_t, p.repeat(n, 1), 0.75, 0.25, last=True)
        assert shares_agree(drawn, p), "the last step draws from p"


def test_marginals(load):
    module = load("marginals")
    written = module.one_step(toy.TEXT)
    np.testing.assert_allclose(written, toy.sampled_distribution("uniform", 1), atol=1e-9)
    assert module.kl(written, toy.TEXT) == pytest.approx(0.9000, abs=1e-4)
    assert module.kl(toy.TEXT, toy.TEXT) == pytest.approx(0)
    assert module.kl(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])) == pytest.approx(math.log(2))


def test_scalar(load):
    module = load("scalar")
    for t, h in ((0.0, 0.5), (0.25, 0.125), (0.5, 0.45)):
        times = np.linspace(t, t + h, 100_001)
        rates = np.array([module.rate(time) for time in times])
        integral = ((rates[1:] + rates[:-1]) / 2).mean()  # trapezoids
        assert module.cumulative_scalar(t, h) == pytest.approx(integral, rel=1e-6)
        ours = flow.cumulative_scalar(torch.tensor(t), torch.tensor(h), exponent=2.0)
        assert module.cumulative_scalar(t, h) == pytest.approx(ours.item(), rel=1e-4)


def test_shortcut(load):
    calls, jumps = [], []

    def teacher(x, t, h):
        calls.append((x, t, h))
        return {"x_t": 6.0, "x_a": 12.0, "x_b": 30.0, "x_c": -6.0}[x]

    def jump(x, logits, t, h):
        jumps.append((x, logits, t, h))
        return {"x_t": "x_a", "x_a": "x_b", "x_b": "x_c"}[x]

    value = load("shortcut").target(teacher, jump, "x_t", 0.25, 0.5)
    times = [("x_t", 0.25), ("x_a", 0.5), ("x_b", 0.5), ("x_c", 0.75)]
    assert calls == [(x, t, 0.25) for x, t in times]
    assert jumps == [("x_t", 6.0, 0.25, 0.25), ("x_a", 12.0, 0.5, 0.25), ("x_b", 30.0, 0.5, 0.25)]
    assert value == pytest.approx((6 + 2 * 12 + 2 * 30 - 6) / 6)


def test_ema(load):
    module = load("ema")
    assert module.update(2.0, 6.0, 0.75) == pytest.approx(3.0)
    assert module.half_life(0.5) == pytest.approx(1)
    assert module.half_life(0.9995) == pytest.approx(1385.95, abs=0.01)
    ema = 1.0
    for _ in range(round(module.half_life(0.98))):
        ema = module.update(ema, 0.0, 0.98)
    assert ema == pytest.approx(0.5, abs=0.01)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def test_sharpening(load):
    module = load("sharpening")
    pair = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    torch.testing.assert_close(module.mean_of_probabilities(pair), torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(module.mean_of_logits(pair), torch.tensor([0.75, 0.25]))
    for _ in range(20):  # each is the best q for its sum of KL
        p = torch.randn(4, 6).softmax(-1)
        m, g = module.mean_of_probabilities(p), module.mean_of_logits(p)
        for _ in range(20):
            other = (m.log() + 0.1 * torch.randn(6)).softmax(-1)
            assert kl(p, m).sum() <= kl(p, other).sum() + 1e-6
            other = (g.log() + 0.1 * torch.randn(6)).softmax(-1)
            assert kl(g, p).sum() <= kl(other, p).sum() + 1e-6


def test_matching_gradient(load):
    logits = torch.randn(5, 7, requires_grad=True)
    log_f, log_a = torch.randn(2, 5, 7).log_softmax(-1)
    (-(logits.softmax(-1) * (log_f - log_a)).sum()).backward()
    ours = load("matching_gradient").gradient(logits.detach(), log_f, log_a)
    torch.testing.assert_close(ours, logits.grad, rtol=1e-4, atol=1e-6)
    same = load("matching_gradient").gradient(logits.detach(), log_f, log_f)
    assert same.abs().max() < 1e-6  # student and text alike: nothing to learn


def stories(network, tokenizer, sampler, count):
    """Readings (data/stories.py) of so many stories in 8 steps."""
    from common.device import autocast
    from data.stories import parse

    x_0 = flow.sample_source((count, network.config.block_size), network.config)
    with autocast(x_0.device):
        x_1 = flow.generate(network, x_0, 8, sampler)
    return [parse(tokenizer.decode(row)) for row in x_1.tolist()]


def test_eight_steps(load):
    from common.checkpoint import WEIGHTS, load_model
    from data.stories import variety

    sampler, n = load("eight_steps").sampler(), 320
    network, tokenizer = load_model(WEIGHTS / "dfm.pt")
    right = []
    for settings in (flow.Sampler(), sampler):
        torch.manual_seed(5)
        readings = stories(network, tokenizer, settings, n)
        right.append([reading for reading in readings if not reading.mistakes])
    default, yours = (len(some) / n for some in right)
    error = math.sqrt((default * (1 - default) + yours * (1 - yours)) / n)
    print(f"right with the defaults {default:.3f}, with yours {yours:.3f} ± {error:.3f}")
    assert yours > default + 2 * error
    assert min(variety(right[1]).values()) >= 0.95
