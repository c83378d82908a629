"""Checks that distillation helps, in the exact world of toy.py, where the DFM is already perfect.

The student is a table of logits for every (state, t, h), with t on a grid of 1/16. It starts as the
exact posterior and is trained by distill.distillation_loss with its EMA as the teacher. The
distribution of its few-step sampler is then multiplied out of transition matrices, and compared
with that of the exact posterior in as many steps.

It is also compared with what the student should become: every target of the teacher in its mean
over all jumps, from h = 1/16 up to h = 1. Total variation from the texts, uniform source:

    steps                                         1       2       4       8       16
    DFM, the exact posterior                      0.561   0.379   0.199   0.087   0.032
    student, exact mean of the targets            0.466   0.313   0.150   0.053   0.032
    of probabilities, not of logits               0.489   0.335   0.171   0.068   0.032
    student, if the teacher ignored `last`        0.57    0.57    0.56    0.60    0.03

Even one step gains. The DFM's prediction at t = 0 does not depend on the noise x_0. The teacher's
jumps start from x_0, so the student's prediction depends on it, even if nothing is sharpened. Given
x_0 the two tokens are still independent, but over all x_0 they are not: the noise is a hidden
variable that they share. Under the mask source x_0 is always (MASK, MASK), and nothing is gained.
"""

import copy
from functools import cache

import numpy as np
import pytest
import torch

import distill
from model import Config
from toy import TEXT, TEXTS, L, V, n_tokens, posterior, sampled_distribution, softmax, states
from toy import total_variation, transition

FINEST = 16  # steps of 1/16 have the data loss, larger ones the teacher; t is a multiple of 1/16
SIZES = 5  # h = 1, 1/2, 1/4, 1/8, 1/16
STEPS = (1, 2, 4, 8)  # of the samplers
ROW = FINEST  # texts in a row of the batch: distillation_loss takes 2/L, L = 32, as the finest step


def log_posterior(source, t):
    """(states, L, V). At t = 1 the least probabilities are 0, and the network's logits finite."""
    return np.log(posterior(source, t) + 1e-12)


class TableStudent(torch.nn.Module):
    """logits = ln of the exact posterior + a learned correction, for every (h, t, state). It reads
    rows (B, 2 n) of n texts."""

    def __init__(self):
        super().__init__()
        self.config = Config(vocab_size=V, block_size=L * ROW)
        log_p = np.stack([log_posterior("uniform", i / FINEST) for i in range(FINEST + 1)])
        self.register_buffer("log_p", torch.from_numpy(log_p).float())  # (times, states, L, V)
        self.correction = torch.nn.Embedding(SIZES * self.log_p[..., 0, 0].numel(), L * V)
        torch.nn.init.zeros_(self.correction.weight)

    def forward(self, x_t, t, h):
        pairs = x_t.view(len(x_t), -1, L)  # (B, n, 2)
        state = pairs[..., 0] * V + pairs[..., 1]  # (B, n)
        time = (t * FINEST).round().long()[:, None]
        size = -h.log2().round().long()[:, None]
        row = (size * self.log_p.shape[0] + time) * self.log_p.shape[1] + state
        logits = self.log_p[time, state].flatten(-2) + self.correction(row)  # (B, n, L V)
        return logits.view(*x_t.shape, V)

    @torch.no_grad()
    def predict(self, n, t):
        """The posterior at the step from t to t + 1/n for every state, (states, L, V)."""
        x_t = torch.tensor(states("uniform")).view(1, -1)
        logits = self(x_t, torch.tensor([t]), torch.tensor([1 / n]))
        return softmax(logits.view(-1, L, V).double().numpy())


@pytest.fixture(scope="module")
def student():
    """The EMA of a student. Plain SGD on many small batches: the noise of a teacher's logits would
    sharpen its targets, and Adam's steps would be biased where tokens are rare."""
    torch.manual_seed(0)
    student = TableStudent()
    ema = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=100.0)  # 0.05 a token of a batch of 2,048
    texts, p, updates = torch.tensor(TEXTS), torch.from_numpy(TEXT.flatten()), 600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "FINEST", FINEST)
        patch.setattr(distill, "SHARES", torch.ones(SIZES))
        for update in range(updates):
            optimizer.param_groups[0]["lr"] = 100.0 * min(1.0, 2 * (1 - update / updates))
            x_1 = texts[torch.multinomial(p, 1024, replacement=True)].view(-1, L * ROW)
            optimizer.zero_grad()
            distill.distillation_loss(student, ema, x_1, largest_weight=2.0).backward()
            optimizer.step()
            distill.update_ema(ema, student, 0.95)
    return ema


def few_steps(predict, n, source="uniform"):
    """The distribution of the texts after n uniform steps, (V, V), for the predict(n, t) of a
    TableStudent or of MeanTargets."""
    size = n_tokens(source)
    p_state = np.full(16, 1 / 16) if source == "uniform" else np.eye(25)[-1]
    for i in range(n):
        p_state = p_state @ transition(source, predict(n, i / n), i / n, 1 / n, last=i == n - 1)
    return p_state.reshape(size, size)[:V, :V]


class MeanTargets:
    """What an ideal student becomes: its prediction at (t, h) is the mean of the targets over all
    jumps of a teacher that is ideal at h/2; at h = 1/16 it is the exact posterior. The teacher
    averages the logits, or with `of="probabilities"` these."""

    def __init__(self, source="uniform", last_is_set=True, of="logits"):
        self.source, self.last_is_set = source, last_is_set
        self.averaged, self.to_p = (np.log, softmax) if of == "logits" else (np.array, np.array)

    @cache
    def predict(self, n, t):
        """(states, L, V)."""
        if n == FINEST or t == 1:
            return softmax(log_posterior(self.source, t))
        half = 0.5 / n
        now, middle, end = (self.predict(2 * n, t + i * half) for i in range(3))
        last = self.last_is_set and t + 1 / n == 1
        to_a = transition(self.source, now, t, half, last=False)
        to_b = transition(self.source, middle, t + half, half, last)
        l1, l2, l4 = (self.averaged(p) for p in (now, middle, end))
        two = l2[:, None, None] * 2 + l2[None, :, None] * 2 + l4  # (a, b, c, L, V)
        weights = to_b[:, :, None] * to_b  # (a, b, c): P(b | a) P(c | b)
        return np.stack([np.einsum("a,abc,abclv->lv", to, weights, self.to_p((l + two) / 6))
                         for to, l in zip(to_a, l1)])


def errors_of(predict):
    """Total variation from the true texts after each number of STEPS."""
    return np.array([total_variation(few_steps(predict, n), TEXT) for n in STEPS])


DFM = np.array([total_variation(sampled_distribution("uniform", n), TEXT) for n in STEPS])


def test_distillation_helps(student):
    """At 1, 2, 4 and 8 steps the student is closer to the texts than the exact posterior is, by
    most of what the mean targets promise: 0.095, 0.066, 0.049 and 0.034."""
    gain = DFM - errors_of(student.predict)
    assert (gain > [0.06, 0.04, 0.03, 0.02]).all()
    texts = few_steps(student.predict, 1)  # tokens agree: the noise is a hidden variable
    assert total_variation(texts, np.outer(texts.sum(1), texts.sum(0))) > 0.03


def test_the_student_becomes_the_mean_of_its_targets(student):
    """Training is random, and its error at every number of steps stays below 0.02. The finest has
    the data loss, and stays the posterior."""
    ideal, finest = MeanTargets().predict, sampled_distribution("uniform", FINEST)
    assert errors_of(student.predict) == pytest.approx(errors_of(ideal), abs=0.02)
    assert np.abs(student.predict(1, 0.0) - ideal(1, 0.0)).mean() < 0.03
    assert total_variation(few_steps(student.predict, FINEST), finest) < 0.02


def test_under_the_mask_source_nothing_changes():
    ideal = MeanTargets("mask")
    for n in STEPS:
        texts = few_steps(ideal.predict, n, "mask")
        assert total_variation(texts, sampled_distribution("mask", n)) < 0.005


def test_the_table_of_the_docstring():
    ideal, ignored = MeanTargets().predict, MeanTargets(last_is_set=False).predict
    rows = {"DFM": DFM, "student, exact": errors_of(ideal),
            "of prob": errors_of(MeanTargets(of="probabilities").predict)}
    for start, errors in rows.items():
        line = next(line for line in __doc__.splitlines() if line.strip().startswith(start))
        assert [f"{error:.3f}" for error in errors] == line.split()[-5:-1]
    line = next(line for line in __doc__.splitlines() if "ignored" in line)
    assert [f"{error:.2f}" for error in errors_of(ignored)] == line.split()[-5:-1]
