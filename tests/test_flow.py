"""Proves flow.py: the path's marginals, the loss, the cumulative scalar, the draws and the sampler's rules.

Closed forms only; the sampler against a whole distribution is in test_exact.py, the published numbers in
test_reference.py.
"""

import math

import pytest
import torch

from exact import ExactNetwork, world_config, write
from flow import (
    categorical,
    cumulative_scalar,
    euler_probability,
    generalized_kl,
    generate,
    jump,
    jump_probability,
    kappa,
    make_step,
    probabilities,
    rate,
    sample_path,
    sample_source,
    sample_times,
    step_times,
    survival,
)
from model import ModelConfig


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum().item()


def chi_square_bound(freedom, z=4.0):
    """Wilson & Hilferty's approximation of the quantile that chance exceeds with probability 3e-5 (z = 4)."""
    return freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3


# the path


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_kappa_goes_from_noise_to_text(exponent):
    assert kappa(0.0, exponent) == 0.0 and kappa(1.0, exponent) == 1.0
    assert kappa(0.5, exponent) == 0.5**exponent


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_path_marginals(source, exponent):
    config = ModelConfig(vocab_size=5, source=source, exponent=exponent)
    n, t = 200_000, 0.3
    x_1 = torch.full((1, n), 2)
    x_t = sample_path(x_1, torch.tensor([t]), config)
    p = torch.full((5,), (1 - t**exponent) / 5) if source == "uniform" else torch.zeros(5)
    p[2] += t**exponent
    if source == "mask":
        p = torch.cat([p, torch.tensor([1 - t**exponent])])
    counts = torch.bincount(x_t.flatten(), minlength=len(p)).float()
    possible = p > 0
    assert counts[~possible].sum() == 0
    assert chi_square(counts[possible], n * p[possible]) < chi_square_bound(possible.sum().item() - 1)


def test_path_times_belong_to_their_own_sequence():
    config = ModelConfig(vocab_size=7, source="mask")
    x_1 = torch.ones(3, 50_000, dtype=torch.int64)
    shown = (sample_path(x_1, torch.tensor([0.0, 0.25, 1.0]), config) == 1).float().mean(1)
    assert shown[0] == 0 and shown[2] == 1
    assert abs(shown[1] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 50_000)


def test_source():
    assert (sample_source((2, 9), ModelConfig(vocab_size=6, source="mask")) == 6).all()
    counts = torch.bincount(sample_source((60_000,), ModelConfig(vocab_size=6)), minlength=6).float()
    assert len(counts) == 6 and chi_square(counts, torch.full((6,), 10_000.0)) < chi_square_bound(5)


def test_times_are_spread_evenly():
    for _ in range(20):
        t = sample_times(8).sort().values
        assert t.min() >= 0 and t.max() < 1
        assert torch.equal((t / 0.999 * 8).floor(), torch.arange(8.0))  # one in every eighth of [0, LAST_TIME)


# the cumulative scalar


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_cumulative_scalar_tends_to_the_rate(exponent):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    h = torch.full_like(t, 1e-6)
    torch.testing.assert_close(cumulative_scalar(t, h, exponent), rate(t, exponent), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_cumulative_scalar_is_the_mean_of_the_rate(exponent):
    t, h = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    grid = t + h * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000  # midpoint rule
    torch.testing.assert_close(cumulative_scalar(t, h, exponent), rate(grid, exponent).mean(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_survival_of_two_halves_multiplies(exponent):
    t, h = torch.rand(100, dtype=torch.float64) * 0.5, torch.rand(100, dtype=torch.float64) * 0.25
    whole = survival(t, 2 * h, exponent)
    torch.testing.assert_close(whole, survival(t, h, exponent) * survival(t + h, h, exponent))
    torch.testing.assert_close(survival(t, h, exponent), torch.exp(-h * cumulative_scalar(t, h, exponent)))


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_jump_probability_is_a_probability(exponent):
    t = torch.cat([torch.linspace(0, 1, 101)[:-1], torch.tensor([0.0, 1 - 1e-6])])
    h = torch.cat([(1 - t[:-2]) * torch.rand(100), torch.tensor([1.0, 1e-6])])  # t = 0, h = 1 and the very end too
    for p_stay in (0.0, 1e-7, 0.5, 1 - 1e-7, 1.0, 1 + 1e-6):  # rounding can leave p a little above 1
        p = jump_probability(torch.full_like(t, p_stay), t, h, exponent)
        assert torch.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()


def test_worked_example_of_the_docstring():
    t, h, p_stay = torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.2])
    assert euler_probability(p_stay, t, h).tolist() == pytest.approx([1 - math.exp(-0.4), 1 - math.exp(-0.8)])
    assert jump_probability(p_stay, t, h).tolist() == pytest.approx([1 - 0.5**0.8, 1.0])


# the loss


def plain_generalized_kl(logits, x_1, x_t, t, config):
    """Token by token, from the definition, in Python floats."""
    loss = torch.zeros(x_t.shape)
    for b in range(len(x_t)):
        for i in range(x_t.shape[1]):
            scores = [math.exp(v) for v in logits[b, i, : config.vocab_size].tolist()]
            p = [s / sum(scores) for s in scores]
            weight = config.exponent * t[b].item() ** (config.exponent - 1) / (1 - t[b].item() ** config.exponent)
            now, text = x_t[b, i].item(), x_1[b, i].item()
            if config.source == "mask":
                loss[b, i] = -weight * math.log(p[text]) if now == config.mask_id else 0.0
            else:
                loss[b, i] = -weight * (p[now] - (now == text) + (now != text) * math.log(p[text]))
    return loss


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_generalized_kl(source, exponent):
    config = ModelConfig(vocab_size=6, source=source, exponent=exponent)
    x_1, t = torch.randint(6, (4, 30)), torch.tensor([0.05, 0.3, 0.6, 0.9])
    x_t = sample_path(x_1, t, config)
    logits = torch.randn(4, 30, config.n_tokens)
    torch.testing.assert_close(generalized_kl(logits, x_1, x_t, t, config), plain_generalized_kl(logits, x_1, x_t, t, config), rtol=1e-5, atol=1e-6)


# draws


def test_categorical_has_its_heavy_tail():
    n = 2_000_000
    p = torch.cat([torch.tensor([0.0, 0.6, 0.3]), torch.full((50,), 1e-6), torch.logspace(-5, -2, 7)])
    p[1] += 1 - p.sum()
    counts = torch.zeros(len(p))
    for _ in range(20):
        counts += torch.bincount(categorical(p.expand(n // 20, -1)), minlength=len(p))
    assert counts[0] == 0
    tail = torch.stack([counts[3:53].sum(), n * p[3:53].sum()])  # 100 expected in all, 2 in each
    assert abs(tail[0] - tail[1]) < 4 * tail[1].sqrt()
    assert (counts[3:53] > 0).sum() > 30  # each is missed with probability exp(-2)
    merged_counts, merged_p = torch.cat([counts[1:3], counts[53:], tail[:1]]), torch.cat([p[1:3], p[53:], p[3:53].sum()[None]])
    assert chi_square(merged_counts, n * merged_p) < chi_square_bound(len(merged_p) - 1)


def test_categorical_never_draws_a_weight_of_zero():
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e-30]])
    for _ in range(200):
        assert categorical(weights).tolist() == [2, 0, 3]


def test_categorical_at_the_edge_of_its_uniform_number(monkeypatch):
    """A uniform number of exactly 0 must not fall on a leading weight of zero."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: torch.zeros(*shape, dtype=dtype, device=device))
    assert categorical(torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])).tolist() == [2, 0]


def test_categorical_at_the_other_edge(monkeypatch):
    """The largest uniform number below 1 must not fall on a trailing weight of zero, wherever its block ends."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: torch.full(shape, 1 - 2.0**-53, dtype=dtype, device=device))
    for last in (0, 62, 63, 64, 127, 128, 130):
        weights = torch.linspace(0.1, 3, 200)[None]
        weights[:, last + 1 :] = 0
        assert categorical(weights).item() == last


@pytest.mark.parametrize("V", [3, 63, 64, 65, 500, 1024])
def test_categorical_is_the_inverse_of_the_cumulative_sum(V):
    """With the same uniform numbers, token for token what one long sum gives."""
    weights = torch.randn(2000, V).exp() * (torch.rand(2000, V) < 0.5)
    weights[:, -1] += 0.1
    torch.manual_seed(3)
    drawn = categorical(weights)
    torch.manual_seed(3)
    cumulative = weights.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, torch.rand(2000, 1, dtype=torch.float64) * cumulative[:, -1:], right=True)
    assert torch.equal(drawn, expected.squeeze(1))


def test_half_precision_logits_jump_as_often_as_in_float32():
    """In bfloat16 a p(x_t) of 0.999 is 1, and the token would never jump. Of n draws with chance q, within 5 standard deviations."""
    config, n = ModelConfig(vocab_size=4), 200_000
    logits = torch.tensor([8.0, 0, 0, 0], dtype=torch.bfloat16).expand(1, n, 4)
    q = 1 - 0.5 ** (3 / (math.exp(8) + 3))  # a step from t = 1/2 to 3/4
    jumped = jump(torch.zeros(1, n, dtype=torch.int64), logits, torch.tensor([0.5]), torch.tensor([0.25]), config).count_nonzero()
    assert abs(jumped - n * q) < 5 * (n * q * (1 - q)) ** 0.5


# one step


# the way of a CPU, which draws for the tokens that move, and that of GPUs and of compiled code, which draws for all and keeps what is needed
JUMPS = [jump, torch.compile(jump, backend="eager")]


@pytest.mark.parametrize("jump", JUMPS, ids=["plain", "compiled"])
@pytest.mark.parametrize("update", ["cumulative", "euler"])
def test_jump_uniform(update, jump):
    """Where a token jumps, how often, and never to itself; in the last step, a plain draw from p."""
    config, n = ModelConfig(vocab_size=4, update=update), 200_000
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    x_t, logits = torch.full((1, n), 1), p.log().expand(1, n, 4)
    t, h = torch.tensor([0.5]), torch.tensor([0.25])
    leave = 1 - 0.5**0.8 if update == "cumulative" else 1 - math.exp(-0.5 * 0.8)
    expected = n * torch.cat([leave * p[:1] / 0.8, torch.tensor([1 - leave]), leave * p[2:] / 0.8])
    counts = torch.bincount(jump(x_t, logits, t, h, config).flatten(), minlength=4).float()
    assert chi_square(counts, expected) < chi_square_bound(3)
    last = torch.bincount(jump(x_t, logits, torch.tensor([0.75]), h, config).flatten(), minlength=4).float()
    assert chi_square(last, n * p) < chi_square_bound(3)


@pytest.mark.parametrize("jump", JUMPS, ids=["plain", "compiled"])
def test_jump_mask_shows_each_token_once(jump):
    config, n = ModelConfig(vocab_size=4, source="mask"), 200_000
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = torch.cat([p.log(), torch.tensor([9.0])]).expand(1, n, 5)  # a network that believes in MASK is not heeded
    x_t = torch.full((1, n), 4)
    x_t[:, ::2] = 1
    x_next = jump(x_t, logits, torch.tensor([0.5]), torch.tensor([0.25]), config)
    assert (x_next[:, ::2] == 1).all()
    counts = torch.bincount(x_next[0, 1::2], minlength=5).float()
    assert chi_square(counts, n / 2 * torch.cat([0.5 * p, torch.tensor([0.5])])) < chi_square_bound(4)


def test_jump_treats_each_sequence_at_its_own_time():
    config = ModelConfig(vocab_size=50)
    x_t, logits = torch.zeros(3, 20_000, dtype=torch.int64), torch.zeros(3, 20_000, 50)
    logits[..., 0] = -100.0
    x_next = jump(x_t, logits, torch.tensor([0.0, 0.5, 0.9]), torch.tensor([0.1, 0.4, 0.1]), config)
    moved = (x_next != 0).float().mean(1)
    for share, expected in zip(moved, [0.1, 0.8, 1.0]):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / 20_000)


# many steps


def test_step_times():
    assert step_times(4) == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]
    assert step_times([0.5, 0.25, 0.25]) == [(0, 0.5), (0.5, 0.25), (0.75, 0.25)]
    assert step_times(4, easing=2.0) == [(0.0, 7 / 16), (7 / 16, 5 / 16), (12 / 16, 3 / 16), (15 / 16, 1 / 16)]
    for times in (step_times(1), step_times(3), step_times(1000), step_times(1024, 2.0), step_times([0.1] * 10), step_times([0.1, 0.2, 0.7])):
        ends = [t + h for t, h in times]
        assert times[0][0] == 0 and ends[:-1] == pytest.approx([t for t, _ in times[1:]], abs=1e-12)
        # as float32, too, the last step ends at 1 and no other does (flow.jump looks at that)
        reached = torch.tensor([t for t, _ in times]) + torch.tensor([h for _, h in times]) > 1 - 3e-7
        assert reached.tolist() == [False] * (len(times) - 1) + [True]
    for wrong in (0, -1, [], [0.5, 0.4], [1.5, -0.5], [0.0, 1.0]):
        with pytest.raises(ValueError):
            step_times(wrong)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_frozen_tokens_never_change_and_no_mask_survives(source):
    seen = []
    x_0 = sample_source((500, 2), world_config(source))
    x_0[:, 0] = 3
    frozen = torch.tensor([[True, False]]).expand(500, 2)
    x_1 = write(ExactNetwork(source), x_0, 5, frozen=frozen, callback=lambda step, x_t: seen.append((step, x_t)))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert all((x_t[:, 0] == 3).all() for _, x_t in seen)
    assert x_1.max() < 4 and torch.equal(x_1, seen[-1][1])


def count_moves(source):
    trail = [sample_source((2000, 2), world_config(source))]
    write(ExactNetwork(source), trail[0], 16, callback=lambda step, x_t: trail.append(x_t))
    return sum((a != b).int() for a, b in zip(trail, trail[1:]))


def test_uniform_tokens_may_be_mended_and_mask_tokens_move_once():
    assert (count_moves("mask") == 1).all()
    assert (count_moves("uniform") > 1).any()


def test_the_same_seed_gives_the_same_text():
    def run(seed):
        torch.manual_seed(seed)
        return write(ExactNetwork("uniform"), sample_source((50, 2), world_config("uniform")), 4)

    assert torch.equal(run(7), run(7)) and not torch.equal(run(7), run(8))


def test_temperature():
    """At 1/2 every probability is squared and renormalised: the one-step sampler shows it."""
    config, n = world_config("mask"), 100_000
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])

    class Fixed:
        read_out = staticmethod(lambda hidden: hidden)

        def __call__(self, x_t, t, h, hidden):
            return torch.cat([p.log(), torch.zeros(1)]).expand(*x_t.shape, 5)

    Fixed.config = config
    x_1 = generate(make_step(Fixed(), temperature=0.5), sample_source((n, 2), config), step_times(1))
    counts = torch.bincount(x_1.flatten(), minlength=4).float()
    assert chi_square(counts, 2 * n * p**2 / (p**2).sum()) < chi_square_bound(3)


def test_top_p():
    """By hand: 0.4 and 0.3 reach 0.6 together; what is kept is renormalised, the likeliest token always."""
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(probabilities(p.log(), top_p=0.6), torch.tensor([[0.0, 4 / 7, 0.0, 3 / 7]]))
    torch.testing.assert_close(probabilities(p.log(), top_p=0.75), torch.tensor([[0.0, 4 / 9, 2 / 9, 3 / 9]]))
    torch.testing.assert_close(probabilities(p.log(), top_p=1e-6), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(probabilities(p.log(), temperature=0.5), p**2 / (p**2).sum())


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_non_uniform_steps_reach_text(source):
    x_1 = write(ExactNetwork(source), sample_source((300, 2), world_config(source)), [0.1, 0.2, 0.7])
    assert x_1.max() < 4
