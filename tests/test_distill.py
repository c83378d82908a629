"""Checks distill.py: the shortcut teacher's targets and states, the trained steps, the loss.

The published teachers' targets themselves are in test_reference.py. What distillation is worth is
in test_distillation_helps.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import distill
from distill import (
    STEP_WEIGHTS,
    TARGETS,
    distillation_loss,
    forward_kl,
    sample_step_counts,
    sample_steps,
    update_ema,
)
from flow import FINEST, time_grid
from model import ModelConfig, Transformer, copy_dfm_weights
from test_flow import chi_square, chi_square_bound, plain_generalized_kl
from train import loss_of, make_config

STAGES = {"rk4": 4, "heun": 2, "simpson": 3}  # calls of the teacher


def make_settings(**changes):
    """Those of a student of train.py: here all step sizes are equally frequent, and only the
    finest has the data loss, whose weight is not clipped."""
    defaults = {"step_weights": "uniform", "data_steps": 1024, "loss_weight_max": 1e9}
    return make_config("fsdfm", "tiny", **(defaults | changes))


@pytest.fixture
def only(monkeypatch):
    """A function that adds a name to STEP_WEIGHTS: only steps of these sizes 1/n."""

    def add(name, counts):
        weights = [float(2**i in counts) for i in range(11)]
        monkeypatch.setitem(STEP_WEIGHTS, name, weights)
        return name

    return add


class Stub:
    """A network that predicts the same distribution everywhere, and records its calls."""

    def __init__(self, probs, source="uniform"):
        self.config = ModelConfig(vocab_size=len(probs), block_size=16, source=source)
        mask_logit = [5.0] if source == "mask" else []
        self.logits = torch.tensor([math.log(p) for p in probs] + mask_logit, requires_grad=True)
        self.calls = []

    def __call__(self, x_t, t, h):
        self.calls.append((x_t, t, h))
        return self.logits.expand(*x_t.shape, -1)


class ReadingStub:
    """A network whose logits depend on each token, its time and its step size. Records its
    calls."""

    def __init__(self, source="uniform", seed=1):
        self.config = ModelConfig(vocab_size=4, block_size=16, source=source)
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(self.config.n_tokens, self.config.n_tokens, generator=generator)
        self.calls = []

    def predict(self, x_t, t, h):
        return self.table[x_t] * (1 + t + 3 * h)[:, None, None]

    def __call__(self, x_t, t, h):
        self.calls.append((x_t, t, h))
        return self.predict(x_t, t, h)


# ------------------------------------------------------------------------------------------------
# the teachers' targets where tokens are independent, and the posterior is exact


class IndependentTokens:
    """The exact posterior when every token of the text is drawn from q, whatever its neighbours.

    Mask source: p = q, at all times. Uniform source: p(y | x, t) is in proportion to
    q(y) (t [y = x] + (1 - t) / V). At t = 1 its logarithm has no end: there it is that of 0.999.
    """

    q = np.array([0.5, 0.2, 0.2, 0.1])

    def __init__(self, source):
        self.config = ModelConfig(vocab_size=4, source=source)
        self.source = source

    def table(self, t):
        """(V, V): row x, the posterior of a token that is x at time t."""
        t = min(t, 0.999)
        weights = self.q * (t * np.eye(4) + (1 - t) / 4)
        return weights / weights.sum(1, keepdims=True)

    def __call__(self, x_t, t, h):
        if self.source == "uniform":
            return torch.from_numpy(np.log(self.table(t[0].item()))).float()[x_t]
        unmasked = torch.full((*x_t.shape, 5), 7.0)  # must not matter, nor what it says of MASK
        unmasked[..., 2] = -7.0
        masked = torch.tensor([*np.log(self.q), 9.0]).float()
        return torch.where((x_t == 4)[..., None], masked, unmasked)

    def transition(self, t, h, last=False):
        """(V, V): one token's step of the cumulative scalar update with kappa(t) = t."""
        p = self.table(t)
        if last:
            return p
        survival = max(1 - t - h, 1e-8) / (1 - t)
        stay = survival ** (1 - p.diagonal())
        matrix = (1 - stay)[:, None] * p / (1 - p.diagonal())[:, None]
        np.fill_diagonal(matrix, stay)
        return matrix


def mean_target(rule, t, h, last, x):
    """The mean over 40,000 tokens of the rule's target logits, and its standard errors, (V,)."""
    n = 40_000
    x_t, ends = torch.full((1, n), x), torch.tensor([last])
    times = torch.tensor([t]), torch.tensor([h])
    logits = TARGETS[rule](IndependentTokens("uniform"), x_t, *times, ends)[0].double().numpy()
    return logits.mean(0), logits.std(0) / math.sqrt(n)


def three_jumps(t, h, last, x):
    """The distribution of one token, x at first, after 1, 2 and 3 half steps of a 4-state chain,
    the last two from the middle to the end."""
    network, half = IndependentTokens("uniform"), h / 2
    second = network.transition(t + half, half, last)
    a = network.transition(t, half)[x]
    b = a @ second
    return a, b, b @ second


@pytest.mark.parametrize("rule", TARGETS)
def test_target_under_the_mask_source_is_q(rule):
    """Every stage predicts q for a masked token, and an unmasked one keeps its last prediction, so
    the mean is q. What the network says of unmasked tokens, nonsense here, does not enter."""
    network = IndependentTokens("mask")
    x_t = torch.full((2, 5000), 4)
    t, h, last = torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.25]), torch.tensor([True, False])
    logits = TARGETS[rule](network, x_t, t, h, last)
    assert logits.shape == (2, 5000, 4)
    q = torch.tensor(network.q).float().expand(2, 5000, 4)
    torch.testing.assert_close(logits.softmax(-1), q, rtol=1e-5, atol=1e-6)


STEPS = [  # t, h, and whether the step ends with x_1 ~ p
    (0.25, 0.5, False),
    (0.5, 0.25, False),
    (0.0, 0.75, False),
    (0.0, 1.0, True),
    (0.5, 0.5, True),
    (0.5, 0.5, False),
]


@pytest.mark.parametrize("t, h, last", STEPS)
@pytest.mark.parametrize("x", [0, 3])
def test_rk4_target_under_the_uniform_source(t, h, last, x):
    """The mean over the jumps' randomness. With `last` the second and the third jump are draws of
    x_1; without it, at t + h = 1, they expel what the network is less than sure of."""
    start, middle, end = (
        np.log(IndependentTokens("uniform").table(time)) for time in (t, t + h / 2, t + h)
    )
    a, b, c = three_jumps(t, h, last, x)
    expected = (start[x] + 2 * a @ middle + 2 * b @ middle + c @ end) / 6
    mean, error = mean_target("rk4", t, h, last, x)
    assert (np.abs(mean - expected) < 4.5 * error + 1e-5).all()


@pytest.mark.parametrize("t, h, last", STEPS)
def test_simpsons_target_under_the_uniform_source(t, h, last, x=1):
    """Every state is predicted at its own time: after 0, 1 and 2 half steps of the chain."""
    start, middle, end = (
        np.log(IndependentTokens("uniform").table(time)) for time in (t, t + h / 2, t + h)
    )
    a, b, _ = three_jumps(t, h, last, x)
    expected = (start[x] + 4 * a @ middle + b @ end) / 6
    mean, error = mean_target("simpson", t, h, last, x)
    assert (np.abs(mean - expected) < 4.5 * error + 1e-5).all()


@pytest.mark.parametrize("t, h, last", STEPS)
def test_heun_target_under_the_uniform_source(t, h, last, x=1):
    """Its one jump ends in the middle of the step, and is no last one."""
    start, middle = (np.log(IndependentTokens("uniform").table(time)) for time in (t, t + h / 2))
    a, _, _ = three_jumps(t, h, last, x)
    mean, error = mean_target("heun", t, h, last, x)
    assert (np.abs(mean - (start[x] + a @ middle) / 2) < 4.5 * error + 1e-5).all()


def test_last_belongs_to_its_own_sequence():
    """Of two equal sequences one has a last step: each has the target that it has alone."""
    network, x_t = IndependentTokens("uniform"), torch.zeros(2, 40_000, dtype=torch.int64)
    t, h = torch.full((2,), 0.5), torch.full((2,), 0.5)
    logits = TARGETS["rk4"](network, x_t, t, h, torch.tensor([False, True])).double()
    for row, last in enumerate((False, True)):
        mean, error = mean_target("rk4", 0.5, 0.5, last, 0)
        both = error * math.sqrt(2)
        assert (np.abs(logits[row].mean(0).numpy() - mean) < 4.5 * both + 1e-5).all()


# ------------------------------------------------------------------------------------------------
# the teacher's states: every call sees what the jump before it made


class RecordedJump:
    """Stands in for the random jump. Jump number k makes token i of x into (x + k + i) % 4 under
    the uniform source, and unmasks token k as k % 4 under the mask source."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, logits, t, h, config, last=None, update="cumulative"):
        self.calls.append((x_t, logits, t, h, last, update))
        k = len(self.calls)
        if config.source == "uniform":
            return (x_t + k + torch.arange(x_t.shape[1])) % 4
        x_next = x_t.clone()
        x_next[:, k] = torch.where(x_t[:, k] == 4, k % 4, x_t[:, k])
        return x_next


OFFSETS = {"rk4": (0, 0.5, 0.5, 1), "heun": (0, 0.5), "simpson": (0, 0.5, 1)}  # times h, plus t
MEANS = {"rk4": (1, 2, 2, 1), "heun": (1, 1), "simpson": (1, 4, 1)}


def run_teacher(rule, source, monkeypatch):
    """(teacher, recorded jumps, target, t, h, last) of three sequences."""
    recorded = RecordedJump()
    monkeypatch.setattr(distill, "jump", recorded)
    teacher = ReadingStub(source)
    x_t = torch.randint(4, (3, 16)) if source == "uniform" else torch.full((3, 16), 4)
    x_t[:, 5] = 2  # unmasked from the start
    t, h = torch.tensor([0.25, 0.5, 0.0]), torch.tensor([0.5, 0.5, 0.125])
    last = torch.tensor([False, True, False])
    target = TARGETS[rule](teacher, x_t, t, h, last, "averaged")
    return teacher, recorded, target, t, h, last


@pytest.mark.parametrize("rule", TARGETS)
@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_every_call_sees_the_state_that_the_last_jump_made(rule, source, monkeypatch):
    teacher, recorded, _, t, h, _ = run_teacher(rule, source, monkeypatch)
    assert len(teacher.calls) == STAGES[rule]
    assert len(recorded.calls) == STAGES[rule] - 1
    for (x, time, step), offset in zip(teacher.calls, OFFSETS[rule], strict=True):
        assert torch.equal(time, t + offset * h)
        assert torch.equal(step, h / 2)
    again = RecordedJump()
    for k, (x_before, *rest) in enumerate(recorded.calls):
        assert torch.equal(x_before, teacher.calls[k][0])
        x_after = again(x_before, *rest[:3], teacher.config)
        assert torch.equal(teacher.calls[k + 1][0], x_after)
        assert not torch.equal(x_after, x_before)


@pytest.mark.parametrize("rule", TARGETS)
def test_times_steps_and_last_of_the_jumps(rule, monkeypatch):
    """(t, h/2), then (t + h/2, h/2) twice; only the second and the third may be a last one. Each
    has the logits of its own state."""
    teacher, recorded, _, t, h, last = run_teacher(rule, "uniform", monkeypatch)
    for k, (x, logits, time, step, ends, update) in enumerate(recorded.calls):
        assert torch.equal(time, t if k == 0 else t + h / 2)
        assert torch.equal(step, h / 2)
        assert update == "averaged"
        if k == 0:
            assert ends is None
        else:
            assert torch.equal(ends, last)
        assert torch.equal(logits, teacher.predict(*teacher.calls[k]))


@pytest.mark.parametrize("rule", TARGETS)
@pytest.mark.parametrize("end", [0.5, 1.0])
def test_given_tokens_stay_in_the_teachers_states(rule, end):
    """They are at t = 1 in every call, the others at t, t + h/2 or t + h."""
    n, h = 400, torch.tensor([[0.25]])
    x_t, given = torch.randint(4, (1, n)), torch.arange(n)[None] % 3 == 0
    t = end - 0.25
    teacher = Stub([0.4, 0.3, 0.2, 0.1])
    TARGETS[rule](teacher, x_t, torch.where(given, 1.0, t), h, torch.tensor([end == 1]))
    times = {"rk4": [t, t + 0.125, t + 0.125, end], "heun": [t, t + 0.125],
             "simpson": [t, t + 0.125, end]}
    moved = 0
    for (x, token_t, half), time in zip(teacher.calls, times[rule], strict=True):
        assert torch.equal(x[given], x_t[given]) and (token_t[given] == 1).all()
        assert (token_t[~given] == time).all() and half.item() == 0.125
        moved += (x != x_t).sum().item()
    assert moved > 0


@pytest.mark.parametrize("rule", TARGETS)
def test_the_target_is_the_mean_of_the_calls(rule, monkeypatch):
    teacher, _, target, _, _, _ = run_teacher(rule, "uniform", monkeypatch)
    weights = torch.tensor(MEANS[rule]) / sum(MEANS[rule])
    logits = torch.stack([teacher.predict(*call) for call in teacher.calls])
    torch.testing.assert_close(target, (weights[:, None, None, None] * logits).sum(0))


@pytest.mark.parametrize("rule", TARGETS)
def test_unmasked_tokens_keep_their_last_prediction(rule, monkeypatch):
    """Jump k unmasks token k: calls up to k predict it, and call k's logits are used for the rest,
    also in the jumps. A token that is unmasked from the start has the first call's logits."""
    teacher, recorded, target, _, _, _ = run_teacher(rule, "mask", monkeypatch)
    logits = [teacher.predict(*call)[..., :4] for call in teacher.calls]  # (B, L, V) each
    for later in range(1, len(logits)):
        for token in (5, *range(1, later + 1)):
            logits[later][:, token] = logits[later - 1][:, token]
    weights = torch.tensor(MEANS[rule]) / sum(MEANS[rule])
    expected = (weights[:, None, None, None] * torch.stack(logits)).sum(0)
    torch.testing.assert_close(target, expected)
    for k, (_, used, *_) in enumerate(recorded.calls):
        torch.testing.assert_close(used, logits[k])


class ChangingStub:
    """A network whose every call has other logits."""

    config = ModelConfig(vocab_size=4, block_size=16)
    rows = ([0, 1, 2, 3], [3, 0, 0, 1], [1, 1, 5, 0], [0, 2, 0, 2])

    def __init__(self):
        self.logits = [torch.tensor(row, dtype=torch.float32) for row in self.rows]
        self.call = 0

    def __call__(self, x_t, t, h):
        self.call += 1
        return self.logits[self.call - 1].expand(*x_t.shape, 4)


def test_the_two_means():
    """Of logits: the normalised geometric mean of the four predictions; of probabilities: the
    arithmetic one."""
    x_t, t, h = torch.randint(4, (3, 16)), torch.full((3,), 0.25), torch.full((3,), 0.5)
    weights = torch.tensor([1, 2, 2, 1])[:, None] / 6
    p = torch.stack(ChangingStub().logits).softmax(-1)
    geometric = (p**weights).prod(0) / (p**weights).prod(0).sum()
    cases = [("rk4", "logits", geometric), ("rk4", "probabilities", (weights * p).sum(0))]
    cases += [("heun", "probabilities", p[:2].mean(0))]
    for rule, mean, expected in cases:
        target = TARGETS[rule](ChangingStub(), x_t, t, h, mean=mean)
        torch.testing.assert_close(target.softmax(-1), expected.expand(3, 16, 4))


# ------------------------------------------------------------------------------------------------
# the steps that are trained


@pytest.mark.parametrize("name", STEP_WEIGHTS)
@pytest.mark.parametrize("batch_size", [44, 4096])
def test_step_counts_are_in_proportion(name, batch_size):
    """In each batch to within one sequence, and over 50 batches exactly in the mean."""
    weights = torch.tensor(STEP_WEIGHTS[name]) / sum(STEP_WEIGHTS[name])
    total = torch.zeros(11)
    for _ in range(50):
        n = sample_step_counts(batch_size, STEP_WEIGHTS[name])
        index = n.double().log2()
        assert torch.equal(index, index.round())
        counts = torch.bincount(index.long(), minlength=11)
        assert ((counts - batch_size * weights).abs() < 1 + 1e-3).all()
        total += counts
    spread = math.sqrt(50) / 2  # each count differs from its mean by at most 1
    assert ((total - 50 * batch_size * weights).abs() < 4.5 * spread).all()


def test_equal_weights_are_exactly_equal():
    n = sample_step_counts(44, STEP_WEIGHTS["uniform"])
    assert torch.bincount(n.log2().long()).tolist() == [4] * 11


@pytest.mark.parametrize("n", [1, 2, 8, 512, 1024])
def test_times_of_the_dyadic_grid(n):
    """t is uniform on the multiples of 1/1024 with t + h <= 1, and `last` is t + h = 1."""
    drawn = [sample_steps(torch.full((64,), n)) for _ in range(400)]
    t, h, last = (torch.cat(part) for part in zip(*drawn))
    index = (t * FINEST).round().long()
    assert torch.equal(index / FINEST, t)
    assert (h == 1 / n).all()
    assert t.min() >= 0
    assert (t + h).max() <= 1
    assert torch.equal(last, t + h == 1)
    cells = FINEST - FINEST // n + 1
    if cells > 1:  # the golden section makes counts vary less than chance would
        groups = min(cells, 16)
        counts = torch.bincount(index * groups // cells).float()
        share = torch.bincount(torch.arange(cells) * groups // cells).float() / cells
        assert chi_square(counts, len(t) * share) < chi_square_bound(len(share) - 1)


@pytest.mark.parametrize("grid_power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 8, 64, 1024])
def test_times_of_the_samplers_grid(n, grid_power):
    """(t, h) are steps of flow.time_grid, t + h is the next time, each step is as likely as any
    other, and `last` is the n-th of them."""
    times = torch.tensor(time_grid(n, grid_power))
    drawn = [sample_steps(torch.full((64,), n), grid_power) for _ in range(400)]
    t, h, last = (torch.cat(part) for part in zip(*drawn))
    after = torch.searchsorted(times, t)  # the nearest time is this one or the one before
    before = (after - 1).clamp(min=0)
    index = torch.where((times[after] - t).abs() < (times[before] - t).abs(), after, before)
    torch.testing.assert_close(t, times[index], rtol=0, atol=2e-7)
    torch.testing.assert_close(t + h, times[index + 1], rtol=0, atol=2e-7)
    assert (h > 0).all()
    assert torch.equal(last, index == n - 1)
    if n > 1:
        counts = torch.bincount(index, minlength=n).float()
        assert chi_square(counts, torch.full((n,), len(t) / n)) < chi_square_bound(n - 1)


@pytest.mark.parametrize("grid_power", [None, 1.0, 2.0])
def test_a_batch_has_each_sequences_own_steps(grid_power):
    """n differs from sequence to sequence."""
    n = 2 ** torch.arange(11)
    for _ in range(100):
        t, h, last = sample_steps(n, grid_power)
        if grid_power is None:
            assert torch.equal(h, 1 / n)
        for row, steps in enumerate(n.tolist()):
            if grid_power is not None:
                times = torch.tensor(time_grid(steps, grid_power))
                i = (times - t[row]).abs().argmin()
                assert h[row].item() == pytest.approx((times[i + 1] - times[i]).item(), abs=2e-7)
        assert torch.equal(last, t + h == 1)


def almost_one(*shape):
    return torch.full(*shape, 1 - 2.0**-24)


@pytest.mark.parametrize("grid_power", [None, 1.0, 2.0])
def test_the_largest_random_number_stays_on_the_grid(grid_power, monkeypatch):
    monkeypatch.setattr(torch, "rand", almost_one)
    for i in range(11):
        t, h, last = sample_steps(torch.tensor([2**i]), grid_power)
        assert t + h == 1
        assert last.item()


# ------------------------------------------------------------------------------------------------
# which sequences have the teacher, and which the data loss


@pytest.mark.parametrize("rule", TARGETS)
@pytest.mark.parametrize(
    "step_weights, data_steps, least, most",
    [
        ("uniform", 1024, 40, 40),
        ("uniform", 64, 24, 24),
        ("uniform", 0, 12, 12),  # L/2 = 8: only 1, 1/2 and 1/4 have the teacher
        ("uniform", 1, 0, 0),
        ("finest", 1024, 0, 0),
        ("large", 1024, 44, 44),
        ("paper", 1024, 20, 23),
        ("paper", 64, 0, 2),
    ],
)
def test_sequences_with_the_data_loss_run_no_teacher(
    rule, step_weights, data_steps, least, most, only
):
    """Of 44 sequences with equal weights, four have each of the 11 step sizes."""
    only("finest", [1024])
    only("large", [2**i for i in range(10)])
    x_1, student, teacher = torch.randint(4, (44, 16)), Stub([0.25] * 4), Stub([0.25] * 4)
    settings = make_settings(step_weights=step_weights, data_steps=data_steps, teacher=rule)
    distillation_loss(student, teacher, x_1, settings)
    assert [len(x_t) for x_t, _, _ in student.calls] == [44]
    x_t, t, h = student.calls[0]
    coarse = h > 1 / (data_steps or 8)
    taught = int(coarse.sum())
    assert least <= taught <= most
    assert coarse[:taught].all()  # largest steps first
    assert len(teacher.calls) == (STAGES[rule] if taught else 0)
    for call in teacher.calls:
        assert torch.equal(call[2], h[:taught] / 2)
    if taught:
        assert torch.equal(teacher.calls[0][0], x_t[:taught])
        assert torch.equal(teacher.calls[0][1], t[:taught])


def test_without_a_teacher_every_step_has_the_data_loss():
    student, teacher = Stub([0.1, 0.2, 0.3, 0.4]), Stub([0.25] * 4)
    x_1 = torch.randint(4, (22, 16))
    loss = distillation_loss(student, teacher, x_1, make_settings(data_steps=1)).item()
    x_t, t, _ = student.calls[0]
    logits = student.logits.expand(22, 16, 4)
    expected = plain_generalized_kl(logits, x_1, x_t, t, student.config)
    assert teacher.calls == []
    assert loss == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("source, power", [("uniform", 2.0), ("mask", 1.0)])
def test_the_training_grid_of_the_sampler(source, power):
    """The student's (t, h) are those of the sampler's default grid for its source."""
    student, n = Stub([0.25] * 4, source), 2 ** torch.arange(11).repeat_interleave(4)
    settings = make_settings(training_grid="sampler")
    distillation_loss(student, Stub([0.25] * 4, source), torch.randint(4, (44, 16)), settings)
    _, t, h = student.calls[0]
    for row, steps in enumerate(n.tolist()):
        times = torch.tensor(time_grid(steps, power))
        i = (times - t[row]).abs().argmin()
        assert t[row].item() == pytest.approx(times[i].item(), abs=2e-7)
        assert h[row].item() == pytest.approx((times[i + 1] - times[i]).item(), abs=2e-7)


class RecordedTarget:
    """Stands in for a target: the teacher's own prediction. Records its other arguments."""

    def __call__(self, teacher, x_t, t, h, last, update, mean):
        self.last, self.update, self.mean = last, update, mean
        return teacher.predict(x_t, t, h)[..., :4]


@pytest.mark.parametrize("last_jump", ["posterior", "published"])
def test_settings_of_the_teacher(last_jump, monkeypatch):
    recorded, student = RecordedTarget(), ReadingStub(seed=1)
    monkeypatch.setitem(TARGETS, "heun", recorded)
    settings = make_settings(
        teacher="heun", update="euler", mean="probabilities", teacher_last_jump=last_jump
    )
    distillation_loss(student, ReadingStub(seed=2), torch.randint(4, (44, 16)), settings)
    assert recorded.update == "euler"
    assert recorded.mean == "probabilities"
    if last_jump == "published":
        assert recorded.last is None
    else:
        _, t, h = student.calls[0]
        assert torch.equal(recorded.last, (t + h == 1)[:40])
        assert recorded.last[:4].all()  # h = 1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_students_loss_gives_tokens(share):
    """Student and teacher see the same times; where a token is at t = 1 it is that of the text."""
    student, teacher = Stub([0.4, 0.3, 0.2, 0.1]), Stub([0.1, 0.2, 0.3, 0.4])
    student.config = replace(student.config, given_share=share)
    x_1 = torch.randint(4, (44, 16))
    assert distillation_loss(student, teacher, x_1, make_settings(data_steps=64)).isfinite()
    x_t, t, h = student.calls[0]
    k = len(teacher.calls[0][0])
    assert 0 < k < 44
    assert torch.equal(teacher.calls[0][0], x_t[:k]) and torch.equal(teacher.calls[0][1], t[:k])
    if not share:
        assert t.shape == h.shape == (44,)
        return
    assert h.shape == (44, 1) and torch.equal(teacher.calls[0][2], h[:k] / 2)
    given = t == 1
    assert given[:k].any() and given[k:].any()
    assert torch.equal(x_t[given], x_1[given]) and not torch.equal(x_t, x_1)


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_the_data_loss_has_nothing_to_say_of_given_tokens(stage):
    """Whatever is predicted for them, the loss is the same. Without given tokens it is not."""
    x_1, settings = torch.randint(4, (16, 30)), make_settings(data_steps=1)
    for token_time, changes in ((1.0, False), (None, True)):
        losses = []
        for wrong in (0.0, 9.0):

            def network(x_t, t, h=None):
                chosen = (t == token_time) if token_time else torch.ones(x_t.shape)
                return F.pad(wrong * chosen[..., None].float(), (0, 3))  # the logit of token 0

            network.config = ModelConfig(vocab_size=4, given_share=0.5)
            torch.manual_seed(1)
            losses.append(loss_of(stage, network, network, x_1, settings))
        assert (losses[0] != losses[1]) == changes


def test_no_gradient_reaches_the_teacher():
    student, teacher = Stub([0.1, 0.2, 0.3, 0.4]), Stub([0.25] * 4)
    distillation_loss(student, teacher, torch.randint(4, (22, 16)), make_settings()).backward()
    assert teacher.logits.grad is None
    assert student.logits.grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------
# the loss


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_large_steps_have_the_kl_to_the_teacher(source, only):
    """Under the mask source only masked tokens count."""
    q, p = [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.2, 0.2]
    kl = sum(a * math.log(a / b) for a, b in zip(q, p))
    student, teacher = Stub(p, source), Stub(q, source)
    settings = make_settings(step_weights=only("large", [2**i for i in range(10)]))
    loss = distillation_loss(student, teacher, torch.randint(4, (40, 16)), settings).item()
    x_t = student.calls[0][0]
    share = 1.0 if source == "uniform" else (x_t == 4).float().mean().item()
    assert loss == pytest.approx(kl * share, rel=1e-5)


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("loss_weight_max", [1e9, 1.5])
def test_the_finest_step_has_the_data_loss(source, loss_weight_max, only):
    student, x_1 = Stub([0.1, 0.2, 0.3, 0.4], source), torch.randint(4, (12, 16))
    settings = make_settings(
        step_weights=only("finest", [1024]), loss_weight_max=loss_weight_max
    )
    loss = distillation_loss(student, None, x_1, settings).item()
    ((x_t, t, h),) = student.calls
    assert (h == 1 / 1024).all()
    logits = student.logits.expand(12, 16, -1)
    expected = plain_generalized_kl(logits, x_1, x_t, t, student.config, loss_weight_max)
    assert loss == pytest.approx(expected.mean().item(), rel=1e-5)


def plain_kl(target, logits):
    """KL(softmax(target) || softmax(logits)), (..., V) -> (...)."""
    q, p = target.double().softmax(-1), logits.double().softmax(-1)
    return (q * (q / p).log()).sum(-1).float()


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_every_token_has_its_own_loss_and_the_same_weight(source, monkeypatch):
    """Networks that read their tokens: the loss is the mean over all B L tokens, each with the
    prediction, the target and the text of its own sequence."""
    monkeypatch.setitem(TARGETS, "rk4", RecordedTarget())
    student, teacher = ReadingStub(source, seed=1), ReadingStub(source, seed=2)
    x_1 = torch.randint(4, (44, 16))
    loss = distillation_loss(student, teacher, x_1, make_settings(data_steps=64)).item()
    x_t, t, h = student.calls[0]
    logits = student.predict(x_t, t, h)
    kl = plain_kl(teacher.predict(x_t, t, h)[..., :4], logits[..., :4])
    if source == "mask":
        kl = kl * (x_t == 4)
    data_loss = plain_generalized_kl(logits, x_1, x_t, t, student.config)
    expected = torch.where((h > 1 / 64)[:, None], kl, data_loss)  # (44, 16)
    assert loss == pytest.approx(expected.mean().item(), rel=1e-4)


def fixed_steps(n, grid_power):
    """Every sequence of one step size has the same time."""
    return 0.5 - 0.5 / n, 1 / n, n == 1


def fixed_path(x_1, t, config):
    """Noise that depends on the text alone: every third token, and its neighbour's symbol."""
    is_noise = torch.arange(x_1.shape[1]) % 3 == 0
    return torch.where(is_noise, x_1.roll(1, dims=1), x_1)


def test_sequences_with_the_same_step_can_change_places(monkeypatch):
    """The order of a batch says which text has which step size, and nothing else. Texts with equal
    steps change places without effect; with another order of steps the loss is another."""
    monkeypatch.setattr(distill, "sample_steps", fixed_steps)
    monkeypatch.setattr(distill, "sample_path", fixed_path)
    monkeypatch.setitem(TARGETS, "rk4", RecordedTarget())
    student, teacher, settings = ReadingStub(seed=1), ReadingStub(seed=2), make_settings()
    x_1 = torch.randint(4, (44, 16))
    loss = distillation_loss(student, teacher, x_1, settings).item()
    within = torch.cat([4 * group + torch.randperm(4) for group in range(11)])
    assert not torch.equal(x_1[within], x_1)
    moved = distillation_loss(student, teacher, x_1[within], settings).item()
    assert moved == pytest.approx(loss, rel=1e-6)
    across = distillation_loss(student, teacher, x_1.flip(0), settings).item()
    assert across != pytest.approx(loss, rel=1e-3)


def test_the_order_of_the_batch_does_not_matter_where_tokens_do_not(only):
    """All sequences have the teacher, and predictions ignore tokens: the same seed, the same
    loss."""
    student, teacher = Stub([0.3, 0.3, 0.2, 0.2]), Stub([0.1, 0.2, 0.3, 0.4])
    settings = make_settings(step_weights=only("large", [1, 2, 4, 8]))
    x_1, losses = torch.randint(4, (40, 16)), []
    for batch in (x_1, x_1[torch.randperm(40)]):
        torch.manual_seed(3)
        losses.append(distillation_loss(student, teacher, batch, settings).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_forward_kl():
    """Logits have no fixed zero."""
    a, b = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    expected = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert forward_kl(a.log() + 3, b.log() - 2).item() == pytest.approx(expected)


def test_ema_is_exact():
    ema, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [0.9 * a + 0.1 * b for a, b in zip(ema.parameters(), model.parameters())]
    update_ema(ema, model, 0.9)
    for a, b in zip(ema.parameters(), expected, strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------
# from DFM to student


def random_dfm(source):
    """A DFM whose every weight is random, so that nothing is hidden by a zero."""
    config = ModelConfig(20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16, source=source)
    dfm = Transformer(config)
    for parameter in dfm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dfm


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_student_starts_as_the_dfm(source):
    """fuser_init "copy": the same function at every h; and h can be learned. "fresh": another."""
    dfm = random_dfm(source)
    x_t, t = torch.randint(20, (5, 16)), torch.rand(5)
    h = torch.tensor([1, 0.5, 0.25, 0.125, 1 / 1024])
    student = Transformer(replace(dfm.config, step_aware=True))
    copy_dfm_weights(student, dfm)
    torch.testing.assert_close(student(x_t, t, h), dfm(x_t, t), rtol=1e-4, atol=1e-4)
    student(x_t, t, h).square().mean().backward()
    assert student.condition.fuser.weight.grad[:, 16:].abs().max() > 0
    fresh = Transformer(replace(dfm.config, step_aware=True))
    copy_dfm_weights(fresh, dfm, "fresh")
    assert torch.equal(fresh.embedding.weight, dfm.embedding.weight)
    assert (fresh(x_t, t, h) - dfm(x_t, t)).abs().max() > 0.01
