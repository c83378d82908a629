"""The tests that decide: one for each exercise of docs/exercises.md."""

import math
import os

import numpy as np
import pytest
import torch

import flow
import toy
from config.command import autocast
from data.stories import parse, variety
from sample import WEIGHTS, load_model


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
    both = torch.tensor([0.75**2, 2 * 0.25 * 0.75, 0.25**2])
    pairs = x_t[1].view(-1, 2).sum(1)
    assert shares_agree(pairs, both), "two tokens of a text decide independently"
    pairs = load("path").sample_path(x_1[:2], x_0[:2], torch.full((2,), 0.25)).sum(0)
    assert shares_agree(pairs, both), "and so do two texts"


def test_posterior(load):
    posterior = load("posterior").posterior
    for t in (0.0, 0.25, 0.9):
        exact = toy.posterior("uniform", t)  # (states, 2, V)
        for state, x_t in enumerate(toy.states("uniform")):
            np.testing.assert_allclose(posterior(toy.TEXT, x_t, t), exact[state], atol=1e-9)


def test_jump(load):
    """From t = 0.25 to 0.625 half of the noise stays: S = 1/2. Every other token is a 1, and the
    others are a 3 with a posterior of their own."""
    jump, n = load("jump").jump, 100_000
    certain = torch.tensor([0.0, 1.0, 0.0, 0.0])
    for first in (torch.tensor([0.1, 0.2, 0.3, 0.4]), certain):
        p = torch.stack([first, torch.tensor([0.5, 0.4, 0.1, 0.0])]).repeat(n, 1)  # (2n, 4)
        x_t = torch.tensor([1, 3]).repeat(n)
        step = jump(x_t, p.clone(), 0.25, 0.375, last=False)
        end = jump(x_t, p.clone(), 0.75, 0.25, last=True)
        assert step.shape == end.shape == (2 * n,)
        for i in (0, 1):
            p_stay = p[i, x_t[i]]
            moved = 1 - 0.5 ** (1 - p_stay)
            expected = moved * p[i] / (1 - p_stay) if p_stay < 1 else torch.zeros(4)
            expected[x_t[i]] = 1 - moved
            assert shares_agree(step[i::2], expected), f"p = {p[i]}, x_t = {x_t[i]}"
            assert shares_agree(end[i::2], p[i]), "the last step draws from p"


def test_marginals(load):
    module = load("marginals")
    written = module.one_step(toy.TEXT)
    np.testing.assert_allclose(written, toy.sampled_distribution("uniform", 1), atol=1e-9)
    assert module.kl(written, toy.TEXT) == pytest.approx(0.9000, abs=1e-4)
    marginals = toy.TEXT.sum(1), toy.TEXT.sum(0)
    total_correlation = -sum((p * np.log(p)).sum() for p in marginals) - toy.ENTROPY
    assert module.kl(toy.TEXT, written) == pytest.approx(total_correlation)  # 0.7371
    assert module.kl(toy.TEXT, toy.TEXT) == pytest.approx(0)
    assert module.kl(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])) == pytest.approx(math.log(2))


def test_scalar(load, monkeypatch):
    monkeypatch.setattr(flow, "kappa", lambda t: t**2)
    module = load("scalar")
    for t, h in ((0.0, 0.5), (0.25, 0.125), (0.5, 0.45)):
        times = np.linspace(t, t + h, 100_001)
        rates = np.array([module.rate(time) for time in times])
        integral = ((rates[1:] + rates[:-1]) / 2).mean()  # trapezoids
        assert module.cumulative_scalar(t, h) == pytest.approx(integral, rel=1e-6)
        ours = flow.cumulative_scalar(torch.tensor(t), torch.tensor(h))
        assert module.cumulative_scalar(t, h) == pytest.approx(ours.item(), rel=1e-4)
    almost_1 = 1 - 2.0**-40  # here a sum over many small steps is far from the integral
    g = module.cumulative_scalar(0.0, almost_1)
    assert g == pytest.approx(39 * math.log(2), rel=1e-6)


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


def entropy(p):
    return -(p * p.log()).sum(-1)


def test_sharpening(load):
    module = load("sharpening")
    pair = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    torch.testing.assert_close(module.mean_of_probabilities(pair), torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(module.mean_of_logits(pair), torch.tensor([0.75, 0.25]))
    three = torch.tensor([[0.9, 0.1], [0.25, 0.75], [0.25, 0.75]])  # here g has more entropy
    torch.testing.assert_close(module.mean_of_probabilities(three), torch.tensor([7, 8]) / 15)
    torch.testing.assert_close(module.mean_of_logits(three), torch.tensor([0.5, 0.5]))
    for _ in range(20):  # but never for two predictions of two symbols
        p = (3 * torch.randn(2, 2)).softmax(-1)
        m, g = module.mean_of_probabilities(p), module.mean_of_logits(p)
        assert entropy(g) <= entropy(m) + 1e-6
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


DEFAULT, OF = 0.846, 1600  # share of right stories of flow.generate in 8 steps, of so many


@torch.no_grad()
def test_eight_steps(load):
    torch.manual_seed(5)
    n, sampler = 256, load("eight_steps").sampler
    model, tokenizer = load_model(os.path.join(WEIGHTS, "dfm.pt"))
    noise = torch.randint(model.config.vocab_size, (n, model.config.block_size))
    with autocast(noise.device):
        x_1 = torch.cat([sampler(model, rows, 8) for rows in noise.split(64)])
    readings = [parse(tokenizer.decode(row)) for row in x_1.tolist()]
    right = [reading for reading in readings if not reading.mistakes]
    yours = len(right) / n
    error = math.sqrt(DEFAULT * (1 - DEFAULT) / OF + yours * (1 - yours) / n)
    print(f"right with flow.generate {DEFAULT}, with yours {yours:.3f}; error {error:.3f}")
    assert yours > DEFAULT + 2 * error, "not more right stories by two standard errors"
    lowest = min(variety(right).values())
    print(f"variety of yours {lowest:.3f}")
    assert lowest >= 0.95, "the right stories are too much alike"
