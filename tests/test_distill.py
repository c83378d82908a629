"""Proves distill.py: what the shortcut teachers answer, which networks are asked how often, and the student's loss.

The published teachers' targets themselves are in test_reference.py.
"""

import math

import numpy as np
import pytest
import torch

import flow
from distill import distillation_loss, forward_kl, sample_grid_times, sample_step_sizes, shortcut_answers, target_logits, update_ema
from model import ModelConfig, Transformer, make_step_aware
from test_flow import chi_square, chi_square_bound, plain_generalized_kl
from train import SETTINGS, make_loss, preset_value

FLAT, PAPER = [1] * 11, [2**i for i in range(11)]
ONLY_LARGE, ONLY_FINEST = [1] * 10 + [0], [0] * 10 + [1]


def shortcut_target(teacher, *arguments):
    return target_logits(teacher, *shortcut_answers(teacher, *arguments))


class Stub:
    """A network that answers the same distribution everywhere, and remembers what it was asked. Its hidden state is its logits."""

    read_out = staticmethod(lambda hidden: hidden)

    def __init__(self, probs, source="uniform"):
        self.config = ModelConfig(vocab_size=len(probs), block_size=16, source=source)
        padding = [5.0] if source == "mask" else []
        self.logits = torch.tensor([math.log(p) for p in probs] + padding, requires_grad=True)
        self.calls = []

    def __call__(self, x_t, t, h, hidden):
        self.calls.append((x_t, t, h))
        return self.logits.expand(*x_t.shape, -1)


# the teachers' targets where tokens are independent, and the posterior is exact


class IndependentTokens:
    """The exact posterior when every token of the text is drawn from q, whatever its neighbours.

    Mask source: p = q, at all times. Uniform source: p(y | x, t) is in proportion to q(y) (t [y = x] + (1 - t) / V).
    """

    q = np.array([0.5, 0.2, 0.2, 0.1])
    read_out = staticmethod(lambda hidden: hidden)

    def __init__(self, source):
        self.config, self.source = ModelConfig(vocab_size=4, source=source), source

    def table(self, t):
        """(V, V): row x, the posterior of a token that is x at time t."""
        weights = self.q * (t * np.eye(4) + (1 - t) / 4)
        return weights / weights.sum(1, keepdims=True)

    def __call__(self, x_t, t, h, hidden):
        if self.source == "mask":  # what it says of MASK and of tokens that are shown must not matter
            shown = torch.full((*x_t.shape, 5), 7.0)
            shown[..., 2] = -7.0
            return torch.where((x_t == 4)[..., None], torch.tensor([*np.log(self.q), 9.0]).float(), shown)
        return torch.from_numpy(np.log(self.table(t[0].item()))).float()[x_t]

    def transition(self, t, h):
        """(V, V): one token's step of the cumulative scalar update with kappa(t) = t."""
        p, matrix = self.table(t), np.zeros((4, 4))
        if t + h > 1 - 1e-9:
            return p
        for x in range(4):
            stay = ((1 - t - h) / (1 - t)) ** (1 - p[x, x])
            matrix[x] = (1 - stay) * p[x] / (1 - p[x, x])
            matrix[x, x] = stay
        return matrix


@pytest.mark.parametrize("rule", ["simpson", "rk4", "heun"])
def test_target_under_mask_source_is_q(rule):
    """Every stage predicts q for a token that is masked, and the last masked prediction is carried on: the mean is q.
    What the network says of shown tokens, which is nonsense here, does not enter."""
    network = IndependentTokens("mask")
    x_t = torch.full((2, 5000), 4)
    logits = shortcut_target(network, x_t, torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.25]), rule)
    assert logits.shape == (2, 5000, 4)
    torch.testing.assert_close(logits.softmax(-1), torch.tensor(network.q).float().expand(2, 5000, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t, h", [(0.25, 0.5), (0.5, 0.25), (0.0, 0.75)])
@pytest.mark.parametrize("x", [0, 3])
def test_rk4_target_under_uniform_source(t, h, x):
    """The mean over the jumps' randomness: stages see the token after 1, 2 and 3 half steps of a 4-state chain."""
    network, n, half = IndependentTokens("uniform"), 40_000, h / 2
    logits = shortcut_target(network, torch.full((1, n), x), torch.tensor([t]), torch.tensor([h]), "rk4")[0].double().numpy()
    log_p = {time: np.log(network.table(time)) for time in (t, t + half, t + h)}
    a = np.eye(4)[x] @ network.transition(t, half)
    b = a @ network.transition(t + half, half)
    c = b @ network.transition(t + half, half)
    expected = (log_p[t][x] + 2 * a @ log_p[t + half] + 2 * b @ log_p[t + half] + c @ log_p[t + h]) / 6
    error = logits.std(0) / math.sqrt(n)
    assert (np.abs(logits.mean(0) - expected) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("t, h", [(0.25, 0.5), (0.5, 0.5), (0.0, 1.0)])
def test_heun_target_under_uniform_source(t, h):
    network, n, half, x = IndependentTokens("uniform"), 40_000, h / 2, 1
    logits = shortcut_target(network, torch.full((1, n), x), torch.tensor([t]), torch.tensor([h]), "heun")[0].double().numpy()
    a = np.eye(4)[x] @ network.transition(t, half)
    expected = (np.log(network.table(t))[x] + a @ np.log(network.table(t + half))) / 2
    error = logits.std(0) / math.sqrt(n)
    assert (np.abs(logits.mean(0) - expected) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("t, h", [(0.25, 0.5), (0.5, 0.25), (0.0, 0.75)])
def test_simpsons_target_under_uniform_source(t, h):
    """Every state is asked at its own time: after 0, 1 and 2 half steps of the chain."""
    network, n, half, x = IndependentTokens("uniform"), 40_000, h / 2, 1
    logits = shortcut_target(network, torch.full((1, n), x), torch.tensor([t]), torch.tensor([h]), "simpson")[0].double().numpy()
    log_p = {time: np.log(network.table(time)) for time in (t, t + half, t + h)}
    a = np.eye(4)[x] @ network.transition(t, half)
    b = a @ network.transition(t + half, half)
    expected = (log_p[t][x] + 4 * a @ log_p[t + half] + b @ log_p[t + h]) / 6
    error = logits.std(0) / math.sqrt(n)
    assert (np.abs(logits.mean(0) - expected) < 4.5 * error + 1e-6).all()


# who is asked, and when


def test_calls_of_the_teachers():
    x_t, t, h = torch.zeros(2, 16, dtype=torch.int64), torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.25])
    for rule, offsets in (("simpson", [0, 0.5, 1]), ("rk4", [0, 0.5, 0.5, 1]), ("heun", [0, 0.5])):
        teacher = Stub([0.25] * 4)
        shortcut_target(teacher, x_t, t, h, rule)
        for (_, time, step), offset in zip(teacher.calls, offsets, strict=True):
            assert torch.equal(step, h / 2) and torch.equal(time, t + offset * h)


@pytest.mark.parametrize("rule, stages", [("simpson", 3), ("rk4", 4), ("heun", 2)])
def test_sequences_that_learn_from_text_run_no_teacher(rule, stages):
    """Of 44 sequences with flat weights, four have each step size: all but 1/1024 are taught, or only 1, 1/2, ..., 1/32."""
    x_1 = torch.randint(4, (44, 16))
    cases = ((FLAT, 1024, 40, 40), (FLAT, 64, 24, 24), (ONLY_FINEST, 1024, 0, 0), (ONLY_LARGE, 1024, 44, 44), (PAPER, 1024, 20, 23), (PAPER, 64, 0, 2))
    for weights, text_steps, least, most in cases:
        student, teacher = Stub([0.25] * 4), Stub([0.25] * 4)
        distillation_loss(student, teacher, x_1, weights, rule, text_steps=text_steps)
        assert [len(x_t) for x_t, _, _ in student.calls] == [44]
        h = student.calls[0][2]
        taught = int((h > 1 / text_steps).sum())
        assert least <= taught <= most
        assert len(teacher.calls) == (stages if taught else 0)
        assert all(torch.equal(step, h[:taught] / 2) for _, _, step in teacher.calls)


class Moody:
    """A network that answers each call with other logits."""

    config = ModelConfig(vocab_size=4, block_size=16)
    read_out = staticmethod(lambda hidden: hidden)

    def __init__(self):
        self.answers = [torch.tensor(row, dtype=torch.float32) for row in ([0, 1, 2, 3], [3, 0, 0, 1], [1, 1, 5, 0], [0, 2, 0, 2])]
        self.call = 0

    def __call__(self, x_t, t, h, hidden):
        self.call += 1
        return self.answers[self.call - 1].expand(*x_t.shape, 4)


def test_the_two_means():
    """Of logits: the normalised geometric mean of the four answers; of probabilities: the arithmetic one."""
    x_t, t, h = torch.randint(4, (3, 16)), torch.full((3,), 0.25), torch.full((3,), 0.5)
    weights, p = torch.tensor([1, 2, 2, 1])[:, None] / 6, torch.stack(Moody().answers).softmax(-1)
    geometric = (p**weights).prod(0) / (p**weights).prod(0).sum()
    of_two = p[:2].mean(0)
    for rule, mean, expected in (("rk4", "logits", geometric), ("rk4", "probabilities", (weights * p).sum(0)), ("heun", "probabilities", of_two)):
        target = shortcut_target(Moody(), x_t, t, h, rule, mean)
        torch.testing.assert_close(target.softmax(-1), expected.expand(3, 16, 4))


def test_without_a_teacher_every_step_learns_the_text():
    student, teacher = Stub([0.1, 0.2, 0.3, 0.4]), Stub([0.25] * 4)
    x_1 = torch.randint(4, (22, 16))
    loss = distillation_loss(student, teacher, x_1, FLAT, text_steps=1).item()
    x_t, t, _ = student.calls[0]
    expected = plain_generalized_kl(student.logits.expand(22, 16, 4), x_1, x_t, t, student.config)
    assert teacher.calls == [] and loss == pytest.approx(expected.mean().item(), rel=1e-5)


def test_no_gradient_reaches_the_teacher():
    student, teacher = Stub([0.1, 0.2, 0.3, 0.4]), Stub([0.25] * 4)
    distillation_loss(student, teacher, torch.randint(4, (22, 16)), FLAT).backward()
    assert teacher.logits.grad is None and student.logits.grad.abs().sum() > 0


# step sizes and times


def test_step_sizes():
    assert torch.bincount(-sample_step_sizes(44, FLAT).log2().int()).tolist() == [4] * 11
    h = sample_step_sizes(4096, PAPER)
    assert (h.diff() <= 0).all()  # largest first
    counts = torch.bincount(-h.log2().int(), minlength=11)
    expected = 4096 * torch.tensor(PAPER) / sum(PAPER)
    assert ((counts - expected).abs() <= 1).all()


def test_grid_times():
    for h in (1.0, 0.5, 0.125, 1 / 1024):
        t = torch.cat([sample_grid_times(torch.full((64,), h)) for _ in range(400)])
        index = (t * 1024).round().long()
        assert torch.equal(index / 1024, t) and (t + h).max() <= 1 and t.min() >= 0
        cells = int(1024 * (1 - h)) + 1
        groups = index * min(cells, 16) // cells
        counts = torch.bincount(groups).float()
        share = torch.bincount(torch.arange(cells) * min(cells, 16) // cells).float() / cells
        if cells > 1:  # the golden section makes counts vary less than chance would
            assert chi_square(counts, len(t) * share) < chi_square_bound(len(share) - 1)


# the loss


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_large_steps_learn_the_teacher(source):
    q, p = [0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.2, 0.2]
    kl = sum(a * math.log(a / b) for a, b in zip(q, p))
    student, teacher = Stub(p, source), Stub(q, source)
    loss = distillation_loss(student, teacher, torch.randint(4, (40, 16)), ONLY_LARGE, text_steps=1024).item()
    x_t = student.calls[0][0]
    share = 1.0 if source == "uniform" else (x_t == 4).float().mean().item()  # shown tokens teach nothing
    assert loss == pytest.approx(kl * share, rel=1e-5)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_finest_step_learns_the_text(source):
    student = Stub([0.1, 0.2, 0.3, 0.4], source)
    x_1 = torch.randint(4, (12, 16))
    loss = distillation_loss(student, None, x_1, ONLY_FINEST).item()
    (x_t, t, h), = student.calls
    assert (h == 1 / 1024).all()
    logits = student.logits.expand(12, 16, -1)
    assert loss == pytest.approx(plain_generalized_kl(logits, x_1, x_t, t, student.config).mean().item(), rel=1e-5)


def test_forward_kl():
    a, b = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    expected = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    assert forward_kl(a.log() + 3, b.log() - 2).item() == pytest.approx(expected)  # logits have no fixed zero


def test_ema_is_exact():
    ema, model = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [0.9 * a + 0.1 * b for a, b in zip(ema.parameters(), model.parameters())]
    update_ema(ema, model, 0.9)
    for a, b in zip(ema.parameters(), expected):
        torch.testing.assert_close(a, b)


# from DFM to student


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_student_starts_as_the_dfm(source):
    config = ModelConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16, source=source)
    dfm = Transformer(config)
    for parameter in dfm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    student = Transformer(ModelConfig(**{**config.__dict__, "step_aware": True}))
    make_step_aware(student, dfm)
    x_t, t, h = torch.randint(20, (5, 16)), torch.rand(5), torch.tensor([1, 0.5, 0.25, 0.125, 1 / 1024])
    torch.testing.assert_close(student(x_t, t, h), dfm(x_t, t), rtol=1e-4, atol=1e-4)
    student(x_t, t, h).square().mean().backward()  # and it can learn to heed h
    assert student.condition.fuser.weight.grad[:, 16:].abs().max() > 0


@pytest.mark.parametrize("source", ["uniform", "mask"])
@pytest.mark.parametrize("stage", ["judge", "dfm", "fsdfm"])
def test_logits_in_parts_change_nothing(stage, source, monkeypatch):
    """The losses and their gradients, with the logits of one sequence at a time and of all at once. The teacher answers
    the same everywhere, so that its jumps, which draw other random numbers in parts, do not matter."""
    config = ModelConfig(vocab_size=4, block_size=16, n_layer=1, n_head=2, dim=16, cond_dim=8, source=source, step_aware=stage == "fsdfm", causal=stage == "judge")
    torch.manual_seed(1)
    network, teacher, x_1 = Transformer(config), Stub([0.1, 0.2, 0.3, 0.4], source), torch.randint(4, (22, 16))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    settings = {name: preset_value(name, "tiny", stage) for name in SETTINGS} | {"step_weights": "flat"}
    results = []
    for logits_at_a_time in (flow.LOGITS_AT_A_TIME, 1, 3 * 16 * config.n_tokens):  # all, one sequence, three with one left over
        monkeypatch.setattr(flow, "LOGITS_AT_A_TIME", logits_at_a_time)
        torch.manual_seed(2)
        network.zero_grad()
        loss = make_loss(stage, settings, teacher)(network, x_1)
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-5, atol=0)
        assert (gradient - results[0][1]).norm() < 1e-4 * results[0][1].norm()
