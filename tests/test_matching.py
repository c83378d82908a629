"""Checks matching.py: in the exact world a student learns to write true texts in one step; its
gradient is the loss's, and reaches nothing else; its states are those of its own sampler."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from exact import world_config

import matching
from experiments.one_step import kl, written_texts
from flow import Sampler, categorical, draw_texts, draw_with_shared_noise, kappa
from matching import (
    STEP_COUNTS, Auxiliary, anchor, draw_steps, matching_loss, own_states, score, step_times,
    token_frequency, training_states,
)
from model import ModelConfig, Transformer
from toy import TEXT, L, V

SETTINGS = SimpleNamespace(frequency_weight=0.0, anchor=0.0, text_share=0.0)
X_1 = torch.arange(30).view(6, 5) % 7  # texts for networks of CONFIG
CONFIG = ModelConfig(
    vocab_size=7, block_size=5, n_layer=1, n_head=2, dim=16, cond_dim=8, update="renoise"
)


# ------------------------------------------------------------------------------------------------
# the exact world: two tokens, four symbols, one step


class TableStudent(nn.Module):
    """logits of each of the 16 states x_t (B, 2), whatever t."""

    def __init__(self):
        super().__init__()
        self.config = world_config("uniform")
        self.table = nn.Parameter(0.01 * torch.randn(V**L, L, V))

    def forward(self, x_t, t, h=None):
        return self.table[x_t[:, 0] * V + x_t[:, 1]]


def exact_logits(texts, z, s):
    """log p(x_1[i] | z), (B, L, V), at times s (B,), for texts (V, V) of this distribution, by
    Bayes' rule."""
    s = s[:, None, None]
    likely = s * F.one_hot(z, V) + (1 - s) / V  # (B, L, V): p(z[i] | x_1[i])
    joint = texts * likely[:, 0, :, None] * likely[:, 1, None, :]  # (B, V, V)
    marginals = torch.stack([joint.sum(2), joint.sum(1)], dim=1)  # (B, L, V)
    return (marginals / marginals.sum(-1, keepdim=True)).log()


class ExactAuxiliary:
    """Knows the student's texts of one step."""

    def __init__(self, student):
        self.student = student

    def __call__(self, z, s):
        return exact_logits(texts_of(self.student), z, s)

    def frequency_score(self, p, n, own):
        return torch.zeros_like(p)


def texts_of(student):
    """The distribution (V, V) of the texts that it writes in one step."""
    p = student.table.detach().softmax(-1)  # (16, L, V)
    return torch.from_numpy(written_texts(p.numpy()))


def test_one_step_of_the_student_writes_true_texts(monkeypatch):
    """From the product of marginals (0.9 nats) to below 0.01, with sampled x, s and z. The anchor,
    which would keep the first step where it is, is off."""
    monkeypatch.setattr(matching, "STEP_COUNTS", (1,))
    monkeypatch.setattr(matching, "ANCHOR_AT_0", 0.0)
    x_1 = torch.zeros(4096, L, dtype=torch.int64)  # not read
    student = TableStudent()
    auxiliary, dfm = ExactAuxiliary(student), partial(exact_logits, torch.from_numpy(TEXT))
    dfm.config = student.config
    optimizer = torch.optim.Adam([student.table], 0.1)
    assert kl(texts_of(student).numpy(), TEXT) > 0.8
    for i in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 150)
        optimizer.zero_grad()
        matching_loss(student, student, dfm, auxiliary, x_1, SETTINGS).backward()
        optimizer.step()
    assert kl(texts_of(student).numpy(), TEXT) < 0.01


# ------------------------------------------------------------------------------------------------
# the loss and its gradient


def small_networks(frequency_weight=1.0):
    """student, frozen DFM, auxiliary and settings. Their weights are large enough to differ, the
    gates of adaLN among them, which start at zero."""
    networks = []
    for _ in range(3):
        network = Transformer(CONFIG)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
        networks.append(network)
    student, dfm, other = networks
    dfm.requires_grad_(False).eval()
    auxiliary = Auxiliary(dfm, torch.full((5, 7), 1 / 7)).eval()
    auxiliary.network.load_state_dict(other.state_dict())
    settings = SimpleNamespace(frequency_weight=frequency_weight, anchor=0.3, text_share=0.4)
    return student, dfm, auxiliary, settings


def test_the_gradient_is_that_of_finite_differences(monkeypatch):
    """Of student and auxiliary, with texts x and scores that stay: neither has a gradient."""
    student, dfm, auxiliary, settings = small_networks()
    ema, x, scores = copy.deepcopy(student), torch.arange(30).view(6, 5) % 7, []
    monkeypatch.setattr(matching, "draw_texts", lambda p, shared_noise: x)

    def first_score(log_f, log_a):
        scores.append(scores[0] if scores else score(log_f, log_a))
        return scores[0]

    monkeypatch.setattr(matching, "score", first_score)

    def loss():
        torch.manual_seed(1)
        return matching_loss(student, ema, dfm, auxiliary, X_1, settings)

    loss().backward()
    for network in (student, auxiliary.network):
        for name in ("output_layer.linear.weight", "embedding.weight", "blocks.0.mlp.0.weight"):
            parameter = network.get_parameter(name)
            gradient = parameter.grad / parameter.grad.norm()
            direction = gradient + torch.randn_like(gradient) / gradient.numel() ** 0.5
            with torch.no_grad():
                parameter.add_(0.01 * direction)
                above = loss().item()
                parameter.sub_(0.02 * direction)
                below = loss().item()
                parameter.add_(0.01 * direction)
            slope = (parameter.grad * direction).sum().item()
            assert (above - below) / 0.02 == pytest.approx(slope, rel=0.01)


def test_each_network_has_its_own_part_of_the_loss(monkeypatch):
    """The auxiliary's gradient is that of its cross entropy alone, the student's is another if the
    score changes, and the DFM and the EMA have none."""
    student, dfm, auxiliary, settings = small_networks()
    dfm.requires_grad_(True)
    ema = copy.deepcopy(student)
    gradients = []
    for weight in (0.0, 1.0):
        auxiliary.frequency[..., 0] = 0.9  # the student writes token 0 too often
        settings.frequency_weight = weight
        torch.manual_seed(2)
        student.zero_grad()
        auxiliary.zero_grad()
        matching_loss(student, ema, dfm, auxiliary, X_1, settings).backward()
        gradients.append([
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
            for network in (student, auxiliary.network)
        ])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    assert all(p.grad is None for network in (dfm, ema) for p in network.parameters())

    # the auxiliary's part, once more
    torch.manual_seed(2)
    sampler = Sampler().for_network(CONFIG)
    x_t, t, h, _, _ = training_states(ema, X_1, 0.4, sampler)
    p = student(x_t, t, h).softmax(-1)
    x = draw_texts(p, False)
    s = t.clamp(min=matching.EARLIEST)
    s = s + (matching.LATEST - s) * torch.rand_like(s)
    z = matching.sample_path(x, s, CONFIG)
    auxiliary.zero_grad()
    F.cross_entropy(auxiliary(z, s).transpose(1, 2), x).backward()
    again = torch.cat([p.grad.flatten() for p in auxiliary.network.parameters()])
    torch.testing.assert_close(again, gradients[0][1], rtol=1e-4, atol=1e-6)


def test_the_anchor():
    """KL(p || f(x_t, t)) of each token, with one weight at t = 0, and elsewhere another that grows
    with the square of the number of steps."""
    dfm = small_networks()[1]
    x_t, t = torch.randint(7, (4, 5)), torch.tensor([0.0, 0.3, 0.9, 0.9])
    n = torch.tensor([16, 4, 8, 16])
    p = torch.randn(4, 5, 7).softmax(-1)
    expected = F.kl_div(dfm(x_t, t).log_softmax(-1), p, reduction="none").sum(-1)
    weights = torch.tensor([matching.ANCHOR_AT_0, 0.3, 1.2, 4.8])[:, None]
    torch.testing.assert_close(anchor(p, x_t, t, n, dfm, 0.3), weights * expected)


def test_a_token_that_is_written_too_often_becomes_rarer():
    """With f and a apart at one token alone, the gradient of its logit is positive."""
    log_f = torch.full((1, 1, 4), 0.25).log()
    log_a = torch.tensor([[[0.7, 0.1, 0.1, 0.1]]]).log()
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    (-(logits.softmax(-1) * score(log_f, log_a)).sum()).backward()
    assert logits.grad[0, 0, 0] > 0 and (logits.grad[0, 0, 1:] < 0).all()
    assert score(torch.tensor(-1.0), torch.tensor(-99.0)) == matching.LARGEST_SCORE


def test_texts_are_drawn_as_they_will_be_sampled():
    p = torch.rand(3, 4, 5)
    for shared_noise, draw in ((True, draw_with_shared_noise), (False, categorical)):
        torch.manual_seed(3)
        expected = draw(p)
        torch.manual_seed(3)
        assert torch.equal(draw_texts(p, shared_noise), expected)


def test_the_auxiliary_starts_as_the_dfm():
    dfm = small_networks()[1]
    z, s = torch.randint(7, (4, 5)), torch.tensor([0.1, 0.4, 0.6, 0.9])
    torch.testing.assert_close(Auxiliary(dfm, torch.ones(1, 7))(z, s), dfm(z, s))


# ------------------------------------------------------------------------------------------------
# the frequencies


def test_the_frequency_of_tokens_in_texts():
    texts = torch.tensor([[0, 1, 2], [0, 2, 2]])
    by_place = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0]])
    assert torch.equal(token_frequency(texts, 4, True), by_place)
    assert torch.equal(token_frequency(texts, 4, False), by_place.mean(0, keepdim=True))


@pytest.mark.parametrize("by_place", [True, False])
def test_the_frequency_score(by_place):
    """The student's frequencies start as those of true texts. They are running means, one for each
    number of steps, which validation leaves alone. The score is the log of their ratio."""
    true = torch.rand(5 if by_place else 1, 7).softmax(-1)
    auxiliary = Auxiliary(small_networks()[1], true)
    rows = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    p, n = F.one_hot(rows, 7).float(), torch.tensor([8, 8, 16, 4])  # (4, 5, 7)
    own = torch.tensor([True, True, True, False])
    assert (auxiliary.eval().frequency_score(p, n, own) == 0).all()
    torch.testing.assert_close(auxiliary.frequency, true.expand(3, -1, -1))

    found = auxiliary.train().frequency_score(p, n, own)
    of_8, of_16 = p[:2].mean(0), p[2]
    if not by_place:
        of_8, of_16 = of_8.mean(0, keepdim=True), of_16.mean(0, keepdim=True)
    means = [true, 0.99 * true + 0.01 * of_8, 0.99 * true + 0.01 * of_16]
    torch.testing.assert_close(auxiliary.frequency, torch.stack(means))
    for row, i in enumerate((1, 1, 2)):
        torch.testing.assert_close(found[row], (true / means[i]).log().clamp(-2, 2))
    assert (found[3] == 0).all() and found[2, 0, 1] < 0 < found[2, 0, 2]
    for _ in range(2000):
        found = auxiliary.frequency_score(p, n, own)
    assert found[2, 0, 1] >= -2 and (found[2, 0, 2:] == 2).all()  # held


# ------------------------------------------------------------------------------------------------
# the states


class SureNetwork(nn.Module):
    """Predicts token 3 everywhere, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.config = CONFIG
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, x_t, t, h=None):
        self.calls.append((x_t.clone(), t, h))
        return 99.0 * F.one_hot(torch.full_like(x_t, 3), 7)


SAMPLER = Sampler().for_network(CONFIG)


def test_steps_that_are_trained():
    """Each number of steps as often as the others, at every one of its times; the last ones come
    first."""
    size = 30_000
    k, n = draw_steps(size)
    assert torch.equal(k, k.sort(descending=True).values)
    for count in STEP_COUNTS:
        for step in range(count):
            found, chance = ((n == count) & (k == step)).sum(), 1 / (3 * count)
            assert abs(found - size * chance) < 5 * (size * chance * (1 - chance)) ** 0.5
    t, h = step_times(k, n, SAMPLER, "cpu")
    torch.testing.assert_close(t, 1 - (1 - k / n) ** 2)
    torch.testing.assert_close(t + h, 1 - (1 - (k + 1) / n) ** 2)


def test_the_states_are_those_of_the_students_sampler():
    """A state at t has kappa(t) + (1 - kappa(t)) / V of the token that the network is sure of."""
    network, size = SureNetwork(), 30_000
    k, n = draw_steps(size)
    x_t = own_states(network, k, n, SAMPLER)
    assert x_t.shape == (size, 5)
    t, _ = step_times(k, n, SAMPLER, "cpu")
    for time, count in zip(*(part.tolist() for part in t.unique(return_counts=True))):
        share = kappa(time) + (1 - kappa(time)) / 7
        found = (x_t[t == time] == 3).float().mean().item()
        assert abs(found - share) < 5 * (share * (1 - share) / (5 * count)) ** 0.5 + 1e-6


def test_the_states_of_a_batch():
    """The sampler's states first, then text on the path at the times of steps; a state is not the
    student's own at t = 0 or on the path."""
    network, size = SureNetwork(), 30_000
    x_1 = torch.full((size, 5), 6)
    x_t, t, h, n, own = training_states(network, x_1, 0.4, SAMPLER)
    assert x_t.shape == (size, 5) and all(len(part) == size for part in (t, h, n, own))
    path = torch.arange(size) >= 6 * size // 10
    assert torch.equal(own, ~path & (t > 0)) and set(n.tolist()) == set(STEP_COUNTS)
    k = n * (1 - (1 - t) ** 0.5)
    torch.testing.assert_close(h, (1 - k / n) ** 2 - (1 - (k + 1) / n) ** 2, atol=1e-5, rtol=0)
    for rows, token in ((own, 3), (path & (t > 0), 6)):
        share = (t[rows] + (1 - t[rows]) / 7).mean().item()
        found = (x_t[rows] == token).float().mean().item()
        assert abs(found - share) < 5 * (share * (1 - share) / (5 * rows.sum())) ** 0.5
    assert (x_t[t == 0] == 3).float().mean().item() == pytest.approx(1 / 7, abs=0.02)


def test_only_texts_that_move_are_computed():
    """Step i has the rows that make more than i steps, at their own times."""
    network = SureNetwork()
    k, n = draw_steps(64)
    own_states(network, k, n, SAMPLER)
    t, _ = step_times(k, n, SAMPLER, "cpu")
    sizes = [len(x_t) for x_t, _, _ in network.calls]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == (k > 0).sum()
    assert len(sizes) == k[0] <= 15 and (network.calls[0][1] == 0).all()
    assert (network.calls[0][1] + network.calls[0][2] <= t[: sizes[0]] + 1e-6).all()
