"""Checks flow.py: the path's marginals, the loss, the jump rules, the draws and the sampler.

Closed forms only. The sampler against whole distributions is in test_exact.py, the published
numbers are in test_reference.py.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import flow
from exact import ExactNetwork, world_config, write
from flow import (
    MAX_STEP_START,
    UPDATES,
    Sampler,
    adjust_logits,
    categorical,
    cumulative_scalar,
    dfm_loss,
    draw_with_shared_noise,
    generalized_kl,
    generate,
    jump,
    jump_probability,
    kappa,
    leave_one_out_temperature,
    nearest_trained,
    posterior,
    rate,
    renoise,
    reveal,
    sample_path,
    sample_source,
    sample_times,
    sampler_step,
    survival,
    time_grid,
)
from model import ModelConfig
from toy import RULES

P = torch.tensor([0.1, 0.2, 0.3, 0.4])  # a posterior that is the same everywhere


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum().item()


def chi_square_bound(freedom, z=4.0):
    """The quantile that chance exceeds with probability 3e-5 (z = 4), by Wilson & Hilferty."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


class FixedNetwork:
    """Predicts P everywhere, and records the t and h of its calls. MASK's logit is 9."""

    def __init__(self, source="uniform"):
        self.config = ModelConfig(vocab_size=4, source=source)
        self.times, self.step_sizes = [], []

    def __call__(self, x_t, t, h):
        self.times.append(t[0].item())
        self.step_sizes.append(h[0].item())
        logits = torch.cat([P.log(), torch.full((self.config.n_tokens - 4,), 9.0)])
        return logits.expand(*x_t.shape, -1)


class RecordedJump:
    """Stands in for flow.jump: moves nothing, and records t, h and last of its calls."""

    def __init__(self):
        self.times, self.step_sizes, self.last = [], [], []

    def __call__(self, x_t, logits, t, h, config, last, update, shared_noise):
        self.times.append(t[0])
        self.step_sizes.append(h[0])
        self.last.append(last[0].item())
        return x_t


# ------------------------------------------------------------------------------------------------
# the path


@pytest.mark.parametrize("exponent, half", [(1.0, 0.5), (2.0, 0.25), (3.0, 0.125)])
def test_kappa_goes_from_noise_to_text(exponent, half):
    assert kappa(0.0, exponent) == 0.0
    assert kappa(1.0, exponent) == 1.0
    assert kappa(0.5, exponent) == half


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_the_rate_is_the_slope_of_minus_ln_of_the_noise(exponent):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    noise = [1 - kappa(t + shift, exponent) for shift in (-1e-6, 1e-6)]
    slope = (noise[0] / noise[1]).log() / 2e-6
    torch.testing.assert_close(rate(t, exponent), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_path_marginals(source, exponent):
    config = ModelConfig(vocab_size=5, source=source, exponent=exponent)
    n, t = 200_000, 0.3
    x_1 = torch.full((1, n), 2)
    x_t = sample_path(x_1, torch.tensor([t]), config)
    noise = 1 - t**exponent
    p = torch.full((5,), noise / 5) if source == "uniform" else torch.tensor([0, 0, 0, 0, 0, noise])
    p[2] += t**exponent
    counts = torch.bincount(x_t.flatten(), minlength=len(p)).float()
    possible = p > 0
    assert counts[~possible].sum() == 0
    bound = chi_square_bound(possible.sum().item() - 1)
    assert chi_square(counts[possible], n * p[possible]) < bound


def test_path_times_belong_to_their_own_sequence():
    config = ModelConfig(vocab_size=7, source="mask")
    x_1 = torch.ones(3, 50_000, dtype=torch.int64)
    x_t = sample_path(x_1, torch.tensor([0.0, 0.25, 1.0]), config)
    text = (x_t == 1).float().mean(1)
    assert text[0] == 0
    assert text[2] == 1
    assert abs(text[1] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 50_000)


def test_source():
    assert (sample_source((2, 9), ModelConfig(vocab_size=6, source="mask")) == 6).all()
    x_0 = sample_source((60_000,), ModelConfig(vocab_size=6))
    counts = torch.bincount(x_0, minlength=6).float()
    assert len(counts) == 6
    assert chi_square(counts, torch.full((6,), 10_000.0)) < chi_square_bound(5)


def test_times_are_spread_evenly():
    """One in every eighth of [0, MAX_TRAINING_TIME)."""
    for _ in range(20):
        t = sample_times(8).sort().values
        assert t.min() >= 0
        assert t.max() < 1
        assert torch.equal((t / 0.999 * 8).floor(), torch.arange(8.0))


# ------------------------------------------------------------------------------------------------
# the cumulative scalar and the four rules


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_cumulative_scalar_tends_to_the_rate(exponent):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    g = cumulative_scalar(t, torch.full_like(t, 1e-6), exponent)
    torch.testing.assert_close(g, rate(t, exponent), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_cumulative_scalar_is_the_mean_of_the_rate(exponent):
    t, h = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    middles = t + h * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    mean = rate(middles, exponent).mean()  # midpoint rule
    torch.testing.assert_close(cumulative_scalar(t, h, exponent), mean, rtol=1e-8, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_survival_of_two_halves_multiplies(exponent):
    t = torch.rand(100, dtype=torch.float64) * 0.5
    h = torch.rand(100, dtype=torch.float64) * 0.25
    halves = survival(t, h, exponent) * survival(t + h, h, exponent)
    torch.testing.assert_close(survival(t, 2 * h, exponent), halves)
    exponential = torch.exp(-h * cumulative_scalar(t, h, exponent))
    torch.testing.assert_close(survival(t, h, exponent), exponential)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("update", UPDATES)
def test_jump_probability_is_a_probability(exponent, update):
    """Also at t = 0 with h = 1, at the very end, and for a p(x_t) that is rounded above 1."""
    t = torch.cat([torch.linspace(0, 1, 101)[:-1], torch.tensor([0.0, 1 - 1e-6])])
    h = torch.cat([(1 - t[:-2]) * torch.rand(100), torch.tensor([1.0, 1e-6])])
    for p_stay in (0.0, 1e-7, 0.5, 1 - 1e-7, 1.0, 1 + 1e-6):
        p = jump_probability(torch.full_like(t, p_stay), t, h, exponent, update)
        assert torch.isfinite(p).all()
        assert (p >= 0).all()
        assert (p <= 1).all()


@pytest.mark.parametrize("update", UPDATES)
def test_the_rules_are_those_of_toy(update):
    """For kappa(t) = t, at random p(x_t), t and h."""
    p_stay, t, share = torch.rand(3, 1000, dtype=torch.float64)
    h = (1 - t) * share
    ours = jump_probability(p_stay, t, h, update=update)
    expected = RULES[update](p_stay.numpy(), t.numpy(), h.numpy())
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("update", UPDATES)
def test_worked_example_of_the_docstring(update):
    """kappa = t, t = 0, h = 1/2, p(x_t) = 0.2: the line of flow.py's docstring has the number."""
    t, h, p_stay = torch.tensor([0.0]), torch.tensor([0.5]), torch.tensor([0.2])
    found = jump_probability(p_stay, t, h, update=update).item()
    lines = [line.split() for line in flow.__doc__.splitlines()]
    line = next(words for words in lines if words[:1] == [update])
    assert f"{found:.3f}" in line


# ------------------------------------------------------------------------------------------------
# the loss


def plain_generalized_kl(logits, x_1, x_t, t, config, loss_weight_max=math.inf):
    """Token by token, from the definition, in Python floats."""
    loss = torch.zeros(x_t.shape)
    for b in range(len(x_t)):
        time, exponent = t[b].item(), config.exponent
        weight = exponent * time ** (exponent - 1) / (1 - time**exponent)
        weight = min(weight, loss_weight_max)
        for i in range(x_t.shape[1]):
            scores = [math.exp(v) for v in logits[b, i, : config.vocab_size].tolist()]
            p = [s / sum(scores) for s in scores]
            now, text = x_t[b, i].item(), x_1[b, i].item()
            if config.source == "mask":
                loss[b, i] = -weight * math.log(p[text]) if now == config.mask_id else 0.0
            else:
                loss[b, i] = -weight * (p[now] - (now == text) + (now != text) * math.log(p[text]))
    return loss


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("loss_weight_max", [math.inf, 1.5])
def test_generalized_kl(source, exponent, loss_weight_max):
    config = ModelConfig(vocab_size=6, source=source, exponent=exponent)
    x_1, t = torch.randint(6, (4, 30)), torch.tensor([0.05, 0.3, 0.6, 0.9])
    x_t = sample_path(x_1, t, config)
    logits = torch.randn(4, 30, config.n_tokens)
    loss = generalized_kl(logits, x_1, x_t, t, config, loss_weight_max)
    expected = plain_generalized_kl(logits, x_1, x_t, t, config, loss_weight_max)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------
# draws


def test_categorical_has_its_heavy_tail():
    """50 tokens of probability 1e-6 among the others: 100 of 2,000,000 draws are expected to be
    one of them, 2 each, and each is missed with probability exp(-2)."""
    n = 2_000_000
    p = torch.cat([torch.tensor([0.0, 0.6, 0.3]), torch.full((50,), 1e-6)])
    p = torch.cat([p, torch.logspace(-5, -2, 7)])
    p[1] += 1 - p.sum()
    counts = torch.zeros(len(p))
    for _ in range(200):
        counts += torch.bincount(categorical(p.expand(n // 200, -1)), minlength=len(p))
    assert counts[0] == 0
    tail, expected_tail = counts[3:53].sum(), n * p[3:53].sum()
    assert abs(tail - expected_tail) < 4 * expected_tail.sqrt()
    assert (counts[3:53] > 0).sum() > 30
    merged_counts = torch.cat([counts[1:3], counts[53:], tail[None]])
    merged_p = torch.cat([p[1:3], p[53:], p[3:53].sum()[None]])
    assert chi_square(merged_counts, n * merged_p) < chi_square_bound(len(merged_p) - 1)


def test_categorical_never_draws_a_weight_of_zero():
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e-30]])
    for _ in range(200):
        assert categorical(weights).tolist() == [2, 0, 3]


def test_categorical_at_the_edge_of_its_uniform_number(monkeypatch):
    """A uniform number of exactly 0 must not fall on a leading weight of zero."""
    monkeypatch.setattr(torch, "rand", torch.zeros)
    weights = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    assert categorical(weights).tolist() == [2, 0]


def almost_one(*shape, **options):
    return torch.full(shape, 1 - 2.0**-53, **options)


def test_categorical_at_the_other_edge(monkeypatch):
    """The largest uniform number below 1 must not fall on a trailing weight of zero, wherever its
    block ends."""
    monkeypatch.setattr(torch, "rand", almost_one)
    for last in (0, 62, 63, 64, 127, 128, 130):
        weights = torch.linspace(0.1, 3, 200)[None]
        weights[:, last + 1 :] = 0
        assert categorical(weights).item() == last


@pytest.mark.parametrize("V", [3, 63, 64, 65, 500, 1024])
def test_categorical_is_the_plain_form_of_its_docstring(V):
    """With the same uniform numbers, token for token; for weights of any shape (..., V)."""
    weights = torch.randn(40, 50, V).exp() * (torch.rand(40, 50, V) < 0.5)
    weights[..., -1] += 0.1
    torch.manual_seed(3)
    drawn = categorical(weights)
    torch.manual_seed(3)
    u = torch.rand(40, 50, 1, dtype=torch.float64)
    cumulative = weights.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True)
    assert torch.equal(drawn, expected.squeeze(-1))


def test_half_precision_logits_jump_as_often_as_in_float32():
    """In bfloat16 a p(x_t) of 0.999 is 1, and the token would never jump. Of n draws with
    probability q, within 5 standard deviations."""
    config, n = ModelConfig(vocab_size=4), 200_000
    logits = torch.tensor([8.0, 0, 0, 0], dtype=torch.bfloat16).expand(1, n, 4)
    q = 1 - 0.5 ** (3 / (math.exp(8) + 3))  # a step from t = 1/2 to 3/4
    x_t = torch.zeros(1, n, dtype=torch.int64)
    x_next = jump(x_t, logits, torch.tensor([0.5]), torch.tensor([0.25]), config)
    assert abs(x_next.count_nonzero() - n * q) < 5 * (n * q * (1 - q)) ** 0.5


def test_the_posterior_gives_mask_nothing():
    logits = torch.cat([P.log() + 3, torch.tensor([9.0])]).expand(2, 3, 5)
    p = posterior(logits, ModelConfig(vocab_size=4, source="mask"))
    torch.testing.assert_close(p, torch.cat([P, torch.zeros(1)]).expand(2, 3, 5))
    p = posterior(logits[..., :4].bfloat16(), ModelConfig(vocab_size=4))
    assert p.dtype == torch.float32
    assert p.shape == (2, 3, 4)


# ------------------------------------------------------------------------------------------------
# one step


@pytest.fixture(params=["plain", "compiled"])
def either_jump(request):
    """flow.jump, and flow.jump in a graph without breaks."""
    if request.param == "plain":
        return jump
    torch._dynamo.reset()  # or it gives up after 8 compilations
    return torch.compile(jump, backend="eager", fullgraph=True)


@pytest.mark.parametrize(
    "update, leave",
    [
        ("cumulative", 1 - 0.5**0.8),
        ("averaged", 0.5 * 0.8),
        ("euler", (1 - math.exp(-0.5)) * 0.8),
        ("euler-forced", 1 - math.exp(-0.5 * 0.8)),
    ],
    ids=UPDATES,
)
def test_jump_uniform(update, leave, either_jump):
    """Where a token goes from t = 1/2 to 3/4: it stays with probability 1 - leave. With `last`
    it is drawn from p."""
    config, n = ModelConfig(vocab_size=4), 200_000
    x_t, logits = torch.full((1, n), 1), P.log().expand(1, n, 4)
    t, h = torch.tensor([0.5]), torch.tensor([0.25])
    expected = leave * P / 0.8
    expected[1] = 1 - leave
    x_next = either_jump(x_t, logits, t, h, config, update=update)
    counts = torch.bincount(x_next.flatten(), minlength=4).float()
    assert chi_square(counts, n * expected) < chi_square_bound(3)
    x_next = either_jump(x_t, logits, t, h, config, torch.tensor([True]), update)
    counts = torch.bincount(x_next.flatten(), minlength=4).float()
    assert chi_square(counts, n * P) < chi_square_bound(3)


@pytest.mark.parametrize("last", [False, True])
def test_jump_mask_unmasks_each_token_once(either_jump, last):
    """A network that believes in MASK (logit 9) makes no difference."""
    config, n = ModelConfig(vocab_size=4, source="mask"), 200_000
    logits = torch.cat([P.log(), torch.tensor([9.0])]).expand(1, n, 5)
    x_t = torch.full((1, n), 4)
    x_t[:, ::2] = 1
    t, h, ends = torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([last])
    x_next = either_jump(x_t, logits, t, h, config, ends)
    assert (x_next[:, ::2] == 1).all()
    counts = torch.bincount(x_next[0, 1::2], minlength=5).float()
    if last:
        assert counts[4] == 0
        assert chi_square(counts[:4], n / 2 * P) < chi_square_bound(3)
    else:
        expected = n / 2 * torch.cat([0.5 * P, torch.tensor([0.5])])
        assert chi_square(counts, expected) < chi_square_bound(4)


@pytest.mark.parametrize(
    "last, share", [(None, 1 - (1e-8 / 0.5) ** 0.1), (False, 0.83), (True, 0.1)]
)
def test_a_step_that_ends_at_1(last, share):
    """Without `last` a token with p(x_t) = 0.9 moves with probability 0.83, as in the jumps of the
    published teacher. With `last` x_1 ~ p is drawn, and 0.10 move."""
    n, p = 200_000, torch.tensor([0.9, 0.05, 0.05])
    t, h = torch.tensor([0.5]), torch.tensor([0.5])
    ends = None if last is None else torch.tensor([last])
    x_t = torch.zeros(1, n, dtype=torch.int64)
    x_next = jump(x_t, p.log().expand(1, n, 3), t, h, ModelConfig(vocab_size=3), ends)
    moved = (x_next != 0).float().mean().item()
    assert abs(moved - share) < 4 * math.sqrt(share * (1 - share) / n) + 2e-4  # 0.83 is 0.8301
    published = jump_probability(torch.tensor([0.9]), t, h).item()
    assert published == pytest.approx(1 - (1e-8 / 0.5) ** 0.1, abs=1e-5)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("last", [False, True])
def test_a_token_at_t_1_is_given_and_stays(update, last):
    """With a time for every token. The others jump as they do with one time for all."""
    n, config = 50_000, ModelConfig(vocab_size=4)
    x_t, logits = torch.zeros(1, n, dtype=torch.int64), P.log().expand(1, n, 4)
    t, h, ends = torch.tensor([0.2]), torch.tensor([0.3]), torch.tensor([last])
    given = torch.arange(n)[None] % 2 == 0
    token_t = torch.where(given, 1.0, t[:, None])
    x_next = jump(x_t, logits, token_t, h[:, None], config, ends, update)
    assert (x_next[given] == 0).all()
    expected = 0.9 if last else jump_probability(P[0], t, h, update=update).item()
    moved = (x_next[~given] != 0).float().mean().item()
    assert abs(moved - expected) < 4 * math.sqrt(expected * (1 - expected) / (n / 2))


def test_jump_treats_each_sequence_at_its_own_time():
    """Times, step sizes and `last` of four sequences. At p(x_t) = 0 a token moves with probability
    1 - S. The third step ends at 1; the fourth, at p(x_t) = 1/2, is a last one."""
    n = 20_000
    x_t, logits = torch.zeros(4, n, dtype=torch.int64), torch.zeros(4, n, 50)
    logits[:3, :, 0] = -100.0
    logits[3, :, 0] = math.log(49)
    t, h = torch.tensor([0.0, 0.5, 0.9, 0.2]), torch.tensor([0.1, 0.4, 0.1, 0.1])
    last = torch.tensor([False, False, False, True])
    x_next = jump(x_t, logits, t, h, ModelConfig(vocab_size=50), last)
    moved = (x_next != 0).float().mean(1)
    for share, expected in zip(moved, [0.1, 0.8, 1.0, 0.5], strict=True):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / n)


# ------------------------------------------------------------------------------------------------
# shared noise


def test_draws_with_shared_noise_have_their_distributions():
    """Each token's draws alone: those of three different p, one of them with a weight of zero."""
    n = 20_000
    p = torch.stack([P, P.flip(0), torch.tensor([0.0, 2.0, 1.0, 1.0])])  # (L, V)
    drawn = draw_with_shared_noise(p.expand(n, -1, -1))  # (n, L)
    for i in range(3):
        counts = torch.bincount(drawn[:, i], minlength=4).double()
        expected = n * p[i] / p[i].sum()
        assert counts[expected == 0].sum() == 0
        kept = expected > 0
        assert chi_square(counts[kept], expected[kept]) < chi_square_bound(kept.sum().item() - 1)


def test_draws_with_shared_noise_agree():
    """P(y_1 = y_2 = v) = 1 / sum_w max(p_1(w) / p_1(v), p_2(w) / p_2(v)): the first arrival of both
    races is v if E_w is above E_v times the larger ratio for all w. Equal p always agree, and
    different ones at least as often as the bound of the docstring says."""
    n = 20_000
    p = torch.stack([P, P, P.flip(0)])
    drawn = draw_with_shared_noise(p.expand(n, -1, -1))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    ratios = torch.maximum(p[0] / p[0][:, None], p[2] / p[2][:, None])  # (v, w)
    agree = (1 / ratios.sum(1)).sum().item()
    found = (drawn[:, 0] == drawn[:, 2]).float().mean().item()
    assert abs(found - agree) < 4 * math.sqrt(agree * (1 - agree) / n)
    total_variation = 0.5 * (p[0] - p[2]).abs().sum().item()
    assert 1 - agree <= 2 * total_variation / (1 + total_variation)
    independent = (p[0] * p[2]).sum().item()
    assert agree > independent + 0.1


def test_texts_do_not_share_their_noise():
    """Two texts draw independently of each other: they agree as often as P . P says."""
    n = 20_000
    drawn = draw_with_shared_noise(P.expand(2 * n, 1, -1)).view(n, 2)
    agree = (P * P).sum().item()
    found = (drawn[:, 0] == drawn[:, 1]).float().mean().item()
    assert abs(found - agree) < 4 * math.sqrt(agree * (1 - agree) / n)


@pytest.mark.parametrize("update", [*UPDATES, "renoise"])
def test_shared_noise_reaches_every_rule(update):
    """In one step of a network that predicts P everywhere, the tokens of a text are all the same,
    and over the texts they have P."""
    n = 20_000
    x_1 = generate(FixedNetwork(), torch.zeros(n, 5, dtype=torch.int64), 1,
                   Sampler(update=update, shared_noise=True))
    assert (x_1 == x_1[:, :1]).all()
    counts = torch.bincount(x_1[:, 0], minlength=4).double()
    assert chi_square(counts, n * P) < chi_square_bound(3)


@pytest.mark.parametrize("update", [*UPDATES, "renoise"])
@pytest.mark.parametrize("shared_noise", [False, True])
def test_a_network_brings_its_own_sampler(update, shared_noise):
    """Where the Sampler leaves open how x_t moves, the network's config says it; a flag wins."""
    network, same = FixedNetwork(), FixedNetwork()
    network.config = replace(network.config, update=update, shared_noise=shared_noise)
    other = Sampler(update="averaged", shared_noise=not shared_noise)
    assert other.for_network(network.config) == replace(other, grid_power=2.0)
    texts = []
    for asked, sampler in [(network, Sampler()),
                           (same, Sampler(update=update, shared_noise=shared_noise))]:
        torch.manual_seed(5)
        texts.append(generate(asked, torch.zeros(50, 6, dtype=torch.int64), 4, sampler))
    assert torch.equal(*texts)


# ------------------------------------------------------------------------------------------------
# renoise


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_renoise_puts_x_1_on_the_path(source, exponent):
    """x_1 ~ P, then text with probability kappa(t + h), else noise. The last step has text alone.
    Under the mask source a token that is unmasked keeps its value, or is masked again."""
    n = 20_000
    config = ModelConfig(vocab_size=4, source=source, exponent=exponent)
    x_t = torch.full((2, n), config.mask_id if source == "mask" else 0)
    logits = P.log().expand(2, n, 4)
    t, h = torch.tensor([0.2, 0.2]), torch.tensor([0.3, 0.8])
    x = renoise(x_t, logits, t, h, config, last=torch.tensor([False, True]))
    share = kappa(0.5, exponent)
    noise = sample_noise_shares(source)  # (n_tokens,)
    expected = share * torch.nn.functional.pad(P, (0, len(noise) - 4)) + (1 - share) * noise
    counts = torch.bincount(x[0], minlength=len(noise)).double()
    assert chi_square(counts, n * expected) < chi_square_bound(len(noise) - 1)
    counts = torch.bincount(x[1], minlength=len(noise)).double()
    assert chi_square(counts[:4], n * P) < chi_square_bound(3) and counts[4:].sum() == 0
    if source == "mask":
        known = renoise(torch.full((1, n), 2), logits[:1], t[:1], h[:1], config)
        assert set(known.unique().tolist()) == {2, config.mask_id}


def sample_noise_shares(source):
    """The distribution of a token of noise."""
    return torch.tensor([0.25] * 4 if source == "uniform" else [0.0] * 4 + [1.0])


def test_renoise_leaves_given_tokens():
    config = FixedNetwork().config
    x_t = torch.full((1, 1000), 3)
    t = torch.cat([torch.ones(1, 500), torch.zeros(1, 500)], dim=1)  # the first half is given
    x = renoise(x_t, P.log().expand(1, 1000, 4), t, torch.full((1, 1), 0.1), config)
    assert (x[:, :500] == 3).all() and (x[:, 500:] != 3).any()


# ------------------------------------------------------------------------------------------------
# the time grid


def test_time_grid():
    assert time_grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert time_grid(4, power=2.0) == [0.0, 7 / 16, 12 / 16, 15 / 16, 1.0]
    assert time_grid(1, power=2.0) == [0.0, 1.0]
    assert time_grid([0.5, 0.25, 0.25]) == [0.0, 0.5, 0.75, 1.0]
    assert time_grid([0.1] * 10) == pytest.approx([i / 10 for i in range(11)])
    assert time_grid(1024, power=10.0)[-2] == MAX_STEP_START < 1


@pytest.mark.parametrize("steps", [0, -1, [], [0.5, 0.4], [1.5, -0.5], [0.0, 1.0]])
def test_time_grids_that_make_no_sense(steps):
    with pytest.raises(ValueError):
        time_grid(steps)


@pytest.mark.parametrize("power", range(1, 11))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 64, 1000, 1024])
def test_every_step_of_every_grid_can_be_used(steps, power, monkeypatch):
    """generate() marks the final jump, and no other, as the last. The times reach 1, never go
    back, and in float32 every rule's probability of a jump is finite and in [0, 1]."""
    recorded, network = RecordedJump(), FixedNetwork()
    monkeypatch.setattr(flow, "jump", recorded)
    generate(network, torch.zeros(1, 2, dtype=torch.int64), steps, Sampler(grid_power=power))
    assert recorded.last == [False] * (steps - 1) + [True]
    t, h = torch.stack(recorded.times), torch.stack(recorded.step_sizes)
    assert t.dtype == h.dtype == torch.float32
    assert torch.equal(torch.tensor(network.times), t)
    assert t[0] == 0
    assert t[-1] <= MAX_STEP_START
    assert (h >= 0).all()
    assert h[-1] >= 1 - MAX_STEP_START
    torch.testing.assert_close((t + h)[:-1], t[1:], rtol=0, atol=1e-7)
    assert t[-1] + h[-1] == 1
    p_stay = torch.tensor([0.0, 1e-6, 0.5, 0.999, 1.0])[:, None]
    for exponent in (1.0, 2.0, 3.0):
        for update in UPDATES:
            p_jump = jump_probability(p_stay, t[:-1], h[:-1], exponent, update)
            assert torch.isfinite(p_jump).all()
            assert ((0 <= p_jump) & (p_jump <= 1)).all()


def test_a_list_of_step_sizes_reaches_the_jump(monkeypatch):
    recorded = RecordedJump()
    monkeypatch.setattr(flow, "jump", recorded)
    generate(FixedNetwork(), torch.zeros(1, 2, dtype=torch.int64), [0.1, 0.2, 0.7])
    torch.testing.assert_close(torch.stack(recorded.times), torch.tensor([0.0, 0.1, 0.3]))
    torch.testing.assert_close(torch.stack(recorded.step_sizes), torch.tensor([0.1, 0.2, 0.7]))
    assert recorded.last == [False, False, True]


# ------------------------------------------------------------------------------------------------
# the sampler


@pytest.mark.parametrize("source, default", [("uniform", 2.0), ("mask", 1.0)])
def test_the_power_of_the_grid_depends_on_the_source(source, default):
    network = FixedNetwork(source)
    assert Sampler().for_network(network.config).grid_power == default
    assert Sampler(grid_power=1.5).for_network(network.config).grid_power == 1.5
    for sampler, power in [(Sampler(), default), (Sampler(grid_power=1.5), 1.5)]:
        network.times.clear()
        generate(network, sample_source((1, 2), network.config), 4, sampler)
        assert network.times == pytest.approx([1 - (1 - i / 4) ** power for i in range(4)])


def test_nearest_trained():
    """On a log scale: the border between 1/2 and 1 is 0.707."""
    h = torch.tensor([1.0, 0.72, 0.70, 0.5, 3 / 8, 1 / 3, 1 / 1000, 1 / 4096, 0.0])
    expected = [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 1 / 1024, 1 / 1024, 1 / 1024]
    assert nearest_trained(h).tolist() == expected


@pytest.mark.parametrize("conditioning", ["exact", "nearest"])
def test_the_networks_h_and_the_jumps_h(conditioning, monkeypatch):
    """With "nearest" the network is conditioned on a trained h, while the jump has the true one."""
    recorded, network = RecordedJump(), FixedNetwork()
    monkeypatch.setattr(flow, "jump", recorded)
    sampler = Sampler(grid_power=2.0, step_conditioning=conditioning)
    generate(network, torch.zeros(1, 2, dtype=torch.int64), 4, sampler)
    exact = [7 / 16, 5 / 16, 3 / 16, 1 / 16]
    nearest = [1 / 2, 1 / 4, 1 / 4, 1 / 16]  # log2 of the exact ones: -1.2, -1.7, -2.4, -4
    assert torch.stack(recorded.step_sizes).tolist() == pytest.approx(exact)
    expected = exact if conditioning == "exact" else nearest
    assert network.step_sizes == pytest.approx(expected)


@pytest.mark.parametrize("update", UPDATES)
def test_the_samplers_rule_reaches_the_jump(update, monkeypatch):
    """The share of tokens that differ after one of two steps, at p(x_t) = 0.1."""
    n, seen = 100_000, []
    x_0 = torch.zeros(1, n, dtype=torch.int64)
    network, sampler = FixedNetwork(), Sampler(grid_power=1.0, update=update)
    generate(network, x_0, 2, sampler, callback=lambda step, x_t: seen.append(x_t))
    t, h = torch.tensor([0.0]), torch.tensor([0.5])
    expected = jump_probability(P[:1], t, h, update=update).item()
    moved = (seen[0] != 0).float().mean().item()
    assert abs(moved - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_reveal():
    """Which tokens are given, and what becomes of them. The numbers of given tokens are uniform
    from 0 to L in `share` of the texts."""
    n, L, share = 20_000, 9, 0.3
    x_t, x_1 = torch.zeros(n, L, dtype=torch.int64), torch.ones(n, L, dtype=torch.int64)
    t = torch.rand(n)
    x, token_t = reveal(x_t, x_1, t, share)
    given = x == 1
    assert (token_t[given] == 1).all()
    assert torch.equal(token_t[~given], t[:, None].expand(n, L)[~given])
    counts = given.sum(1).bincount(minlength=L + 1) / n  # (L + 1,)
    expected = torch.full((L + 1,), share / (L + 1))
    expected[0] += 1 - share
    bound = 4 * (expected * (1 - expected) / n).sqrt()
    assert ((counts - expected).abs() < bound).all()


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("loss_weight_max", [2.0, math.inf])
def test_given_tokens_have_no_loss(source, loss_weight_max):
    """With times of all tokens, the loss of the others is what it is with one time for all."""
    config = ModelConfig(vocab_size=4, source=source, given_share=0.5)
    x_1, t, given = torch.randint(4, (8, 30)), torch.rand(8), torch.rand(8, 30) < 0.3
    x_t, token_t = sample_path(x_1, t, config), torch.where(given, 1.0, t[:, None])
    logits = torch.randn(8, 30, config.n_tokens)
    loss = generalized_kl(logits, x_1, x_t, token_t, config, loss_weight_max)
    same = generalized_kl(logits, x_1, x_t, t, config, loss_weight_max)
    assert torch.equal(loss, torch.where(given, 0, same)) and (same[given] != 0).any()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_loss_of_the_dfm_gives_tokens(share):
    """The network is called with times of all tokens, and those at t = 1 are text."""
    calls = []

    def network(x_t, t):
        calls.append((x_t, t))
        return torch.zeros(*x_t.shape, 4)

    network.config = ModelConfig(vocab_size=4, given_share=share)
    x_1 = torch.randint(4, (64, 40))
    assert dfm_loss(network, x_1).isfinite()
    x_t, t = calls[0]
    if not share:
        assert t.shape == (64,)
        return
    given = t == 1
    assert 0.1 < given.float().mean() < 0.4  # share / 2, and 64 texts
    assert torch.equal(x_t[given], x_1[given]) and not torch.equal(x_t, x_1)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_given_tokens_never_change(source):
    seen, config = [], world_config(source)
    x_0 = sample_source((500, 2), config)
    x_0[:, 0] = 3
    given = torch.tensor([[True, False]]).expand(500, 2)
    x_1 = write(
        ExactNetwork(source), x_0, 5, given=given,
        callback=lambda step, x_t: seen.append((step, x_t)),
    )
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert all((x_t[:, 0] == 3).all() for _, x_t in seen)
    assert torch.equal(x_1, seen[-1][1])
    assert (x_1[:, 1] != x_0[:, 1]).any()
    if source == "mask":
        assert (seen[0][1] == config.mask_id).any()
        assert not (x_1 == config.mask_id).any()


def count_moves(source):
    """How often each token changes in 16 steps, (2000, 2)."""
    trail = [sample_source((2000, 2), world_config(source))]
    write(ExactNetwork(source), trail[0], 16, callback=lambda step, x_t: trail.append(x_t))
    return sum((a != b).int() for a, b in zip(trail, trail[1:]))


def test_uniform_tokens_may_be_corrected_and_mask_tokens_move_once():
    assert (count_moves("mask") == 1).all()
    assert (count_moves("uniform") > 1).any()


def write_with_seed(seed):
    torch.manual_seed(seed)
    return write(ExactNetwork("uniform"), sample_source((50, 2), world_config("uniform")), 4)


def test_the_same_seed_gives_the_same_text():
    assert torch.equal(write_with_seed(7), write_with_seed(7))
    assert not torch.equal(write_with_seed(7), write_with_seed(8))


class SilentNetwork(FixedNetwork):
    """Records nothing, which would break the graph."""

    def __call__(self, x_t, t, h):
        logits = torch.cat([P.log(), torch.zeros(self.config.n_tokens - 4)])
        return logits.expand(*x_t.shape, -1)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_a_compiled_step_draws_the_same(source, monkeypatch):
    """Network and jump as one graph: token for token, with the same random numbers, if the eager
    form draws for every token, too (draw_where)."""
    with_eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", with_eager)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch._dynamo.reset()
    network = SilentNetwork(source)
    x_0 = sample_source((100, 8), network.config)
    texts = []
    for use in (False, True):
        torch.manual_seed(5)
        texts.append(generate(network, x_0, 8, Sampler(top_p=0.8, compile=use)))
    assert torch.equal(*texts)


def test_temperature():
    """At 1/2 every probability is squared and renormalised: the one-step sampler shows it."""
    n, network = 100_000, FixedNetwork("mask")
    x_0 = sample_source((n, 2), network.config)
    x_1 = generate(network, x_0, 1, Sampler(temperature=0.5))
    counts = torch.bincount(x_1.flatten(), minlength=4).float()
    assert chi_square(counts, 2 * n * P**2 / (P**2).sum()) < chi_square_bound(3)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_leave_one_out_temperature(exponent):
    """By Bayes' rule: what the others say is sharpened, what x_t says is not."""
    config = replace(FixedNetwork("uniform").config, exponent=exponent)
    V, t, x_t = 4, torch.tensor([0.0, 0.3, 0.9]), torch.tensor([[0, 1], [2, 3], [3, 3]])
    others = torch.rand(3, 2, V).softmax(-1)
    k = (t**exponent)[:, None, None]
    likelihood = k * torch.eye(V)[x_t] + (1 - k) / V  # (3, 2, V): p(x_t | v)
    adjusted = leave_one_out_temperature((others * likelihood).log(), x_t, t, 0.5, config)
    expected = others**2 * likelihood
    torch.testing.assert_close(adjusted.softmax(-1), expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_a_step_with_leave_one_out_temperature(source):
    """Of the mask source it is the ordinary temperature: MASK says nothing."""
    network, t, h = FixedNetwork(source), torch.full((50,), 0.5), torch.full((50,), 0.25)
    x_t = sample_source((50, 2), network.config)
    logits = network(x_t, t, h)[..., :4]
    if source == "uniform":
        expected = leave_one_out_temperature(logits, x_t, t, 0.7, network.config)
    else:
        expected = adjust_logits(logits, 0.7)
    texts = []
    for left_out in (True, False):
        sampler = Sampler(temperature=0.7, leave_one_out=left_out).for_network(network.config)
        torch.manual_seed(7)
        texts.append(sampler_step(network, x_t, t, h, None, sampler))
    torch.manual_seed(7)
    assert torch.equal(texts[0], jump(x_t, expected, t, h, network.config))
    assert torch.equal(*texts) == (source == "mask")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.6}, [0.0, 4 / 7, 0.0, 3 / 7]),
        ({"top_p": 0.75}, [0.0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1e-6}, [0.0, 1.0, 0.0, 0.0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 0.5, "top_p": 0.5}, [0.0, 1.0, 0.0, 0.0]),  # 16/30 alone reach 0.5
    ],
)
def test_adjust_logits_by_hand(options, expected):
    """0.4 and 0.3 reach 0.6 together, what is kept is renormalised, the likeliest token always
    stays, and the temperature comes before top_p."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log() + 2.0
    adjusted = adjust_logits(logits, **options)
    torch.testing.assert_close(adjusted.softmax(-1), torch.tensor([expected]))


def test_top_p_in_the_sampler():
    """P with top_p = 0.6 keeps 0.3 and 0.4."""
    n, network = 100_000, FixedNetwork()
    x_1 = generate(network, sample_source((1, n), network.config), 1, Sampler(top_p=0.6))
    counts = torch.bincount(x_1.flatten(), minlength=4).float()
    assert counts[:2].sum() == 0
    assert chi_square(counts[2:], n * torch.tensor([3 / 7, 4 / 7])) < chi_square_bound(1)
