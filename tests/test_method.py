"""What flow.py and distill.py claim, as tests to be read after them, in their order.

toy.py has a world of 16 texts where every distribution is known, and its posterior, by Bayes' rule,
stands in for the network (exact.py). What is drawn at random is counted; bounds follow from the
number of samples, at 4 standard deviations, which a right program exceeds in one of 16,000 seeds.
"""

import math

import numpy as np
import pytest
import torch

import distill
import flow
from exact import ExactNetwork, Recorder, exact_bound, have_distribution, losses_of_all_pairs
from exact import number_of, texts_of
from toy import ENTROPY, TEXT, TEXTS, L, V
from toy import expected_target, path, posterior, sampled_distribution

P = torch.tensor([0.1, 0.2, 0.3, 0.4])  # a posterior for tests that need no text


@pytest.fixture(params=["t", "t ** 2"])
def schedule(request, monkeypatch):
    """A test with this fixture runs twice: another schedule is another two lines of flow.py."""
    if request.param == "t ** 2":
        monkeypatch.setattr(flow, "kappa", lambda t: t**2)
        monkeypatch.setattr(flow, "rate", lambda t: 2 * t / (1 - t**2))


# ------------------------------------------------------------------------------------------------
# flow.py: path and velocity


def test_the_path(schedule):
    """Each row at its own time; given the text its tokens are independent."""
    n, times = 50_000, torch.tensor([0.0, 0.3, 0.9])
    x_t = flow.sample_path(torch.tensor([[1, 3]]).expand(3 * n, L), times.repeat(n), V)
    for row, k in zip(number_of(x_t).view(n, 3).T, flow.kappa(times).tolist()):
        assert have_distribution(row, path("uniform", k)[TEXTS.index((1, 3))])


def velocity(t):
    """The rates u(y | x_t) of all jumps as a matrix, (16, 16): one token jumps at a time."""
    u, p = np.zeros((16, 16)), posterior("uniform", flow.kappa(t))  # (16, L, V)
    for a, (first, second) in enumerate(TEXTS):
        for y in range(V):
            u[a, TEXTS.index((y, second))] += flow.rate(t) * (p[a, 0, y] - (y == first))
            u[a, TEXTS.index((first, y))] += flow.rate(t) * (p[a, 1, y] - (y == second))
    return u


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_velocity_moves_noise_to_text(t, schedule):
    """Kolmogorov's forward equation: the distribution of x_t changes as the velocity says. So jumps
    at these rates, from noise at t = 0, arrive at text at t = 1."""
    p = [TEXT.flatten() @ path("uniform", flow.kappa(s)) for s in (t - 1e-5, t, t + 1e-5)]  # (16,)
    np.testing.assert_allclose((p[2] - p[0]) / 2e-5, p[1] @ velocity(t), rtol=1e-4, atol=1e-8)


# ------------------------------------------------------------------------------------------------
# flow.py: the loss


def loss_of_a_token(logits, x_1, x_t, weight):
    """Its formula for one token, with Python's floats: logits a list of V, x_1 and x_t int."""
    p = [math.exp(a) / sum(map(math.exp, logits)) for a in logits]
    return weight * ((x_t == x_1) - p[x_t] - (x_t != x_1) * math.log(p[x_1]))


@pytest.mark.parametrize("largest_weight", [math.inf, 1.5])
def test_generalized_kl_is_its_formula(largest_weight, schedule):
    x_1, t = torch.randint(V, (4, 12)), torch.tensor([0.05, 0.3, 0.6, 0.9])
    x_t, logits = flow.sample_path(x_1, t, V), torch.randn(4, 12, V)
    loss = flow.generalized_kl(logits, x_1, x_t, t, largest_weight)
    for b, time in enumerate(t.tolist()):
        weight = min(flow.rate(time), largest_weight)
        for token, a in enumerate(logits[b].tolist()):
            by_hand = loss_of_a_token(a, x_1[b, token].item(), x_t[b, token].item(), weight)
            assert loss[b, token].item() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.9])
def test_the_posterior_has_the_smallest_loss(t, schedule):
    """In the mean over texts there is no slope at it, in any state, and elsewhere there is more."""
    joint = TEXT.reshape(-1, 1) * path("uniform", flow.kappa(t))  # p(x_1, x_t), (16, 16)
    weight = torch.from_numpy(joint / joint.sum(0))  # p(x_1 | x_t)
    logits = ExactNetwork()(torch.tensor(TEXTS), torch.full((16,), t)).requires_grad_()

    def mean_loss(logits):  # of each state, (16,)
        return (weight * losses_of_all_pairs(flow.generalized_kl, "uniform", logits, t)).sum(0)

    least = mean_loss(logits)
    least.sum().backward()
    assert logits.grad.abs().max() < 1e-5 * max(1, flow.rate(t))
    other = mean_loss(logits + torch.randn(16, L, V))
    assert (other > least).all() or flow.rate(t) == 0


def test_the_loss_bounds_the_likelihood(schedule):
    """Integrated over t it is at least -log p(x_1), for each of the 16 texts. In the mean it is
    above the entropy, since x_t does not say which of its tokens have jumped. It is the same for
    all schedules, which only say how fast the clock runs."""
    bound = exact_bound(ExactNetwork(), flow.generalized_kl)  # (16,)
    assert (bound > -np.log(TEXT.flatten())).all()
    assert TEXT.flatten() @ bound == pytest.approx(ENTROPY + 0.759, abs=1e-3)


def test_the_loss_of_dfm_spreads_its_times_evenly():
    """One time in every eighth of [0, 0.999); the loss is the mean over tokens at these times."""
    x_1, network = torch.randint(6, (8, 16)), Recorder()
    loss = flow.dfm_loss(network, x_1, largest_weight=3.0)
    ((x_t, t, h),) = network.calls
    assert (t.sort().values / 0.999 * 8).floor().tolist() == list(range(8))
    by_hand = flow.generalized_kl(network(x_t, t, h), x_1, x_t, t, 3.0)
    assert torch.equal(loss, by_hand.mean())


# ------------------------------------------------------------------------------------------------
# flow.py: one step


@pytest.mark.parametrize("t, h", [(0.0, 0.5), (0.2, 0.6), (0.5, 0.49), (0.7, 1e-3)])
def test_the_cumulative_scalar_is_the_mean_rate_of_the_step(t, h, schedule):
    t, h = torch.tensor([t, h])  # float32: its digits near 1 must not be lost
    middles = t.double() + h.double() * (torch.arange(100_000).double() + 0.5) / 100_000
    mean = flow.rate(middles).mean()  # the integral by the midpoint rule, divided by h
    torch.testing.assert_close(flow.cumulative_scalar(t, h).double(), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "p_stay, t, h, expected",
    [
        (0.2, 0.0, 0.5, 1 - 0.5**0.8),  # 0.426, the example of toy.py: S = 1/2
        (0.9, 0.5, 0.4, 1 - 0.2**0.1),  # S = 0.1 / 0.5
        (0.9, 0.5, 0.5, 1 - 2e-8**0.1),  # S = 1e-8 / 0.5, where the step ends at t = 1
    ],
)
def test_the_probability_of_a_jump(p_stay, t, h, expected, monkeypatch):
    """By random numbers that are spread evenly on [0, 1], 1e-6 apart."""
    n = 1_000_000
    monkeypatch.setattr(torch, "rand_like", lambda x: ((torch.arange(n) + 0.5) / n).view_as(x))
    logits = torch.tensor([p_stay, 1 - p_stay]).log().expand(1, n, 2)
    x_t = torch.zeros(1, n, dtype=torch.int64)
    moved = flow.jump(x_t, logits, torch.tensor([t]), torch.tensor([h])).double().mean()
    assert moved.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("x", range(V))
def test_where_a_token_goes(x):
    """Rows 0 and 1, from 1/2 to 3/4 and to 0.9: it jumps by the formula, always to another token,
    y ~ p restricted. Row 2, where the step is said to be the last: x_1 ~ p, the same or another."""
    n, t, h = 50_000, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.4, 0.25])
    x_t, last = torch.full((3, n), x), torch.tensor([False, False, True])
    rows = flow.jump(x_t, P.log().expand(3, n, V) + 7, t, h, last)  # logits have no fixed zero
    for row, S in zip(rows, (0.5, 0.2)):
        expected = (1 - S ** (1 - P[x])) * P / (1 - P[x])
        expected[x] = S ** (1 - P[x])
        assert have_distribution(row, expected)
    assert have_distribution(rows[2], P)


def test_logits_in_half_precision_lose_no_jumps():
    """In bfloat16 p(x_t) = 0.999 would be 1, and the token would never jump."""
    n, logits = 200_000, torch.tensor([8.0, 0, 0, 0])
    step = torch.tensor([0.5]), torch.tensor([0.25])
    x = flow.jump(torch.zeros(1, n, dtype=torch.int64), logits.bfloat16().expand(1, n, 4), *step)
    p = 1 - 0.5 ** (1 - logits.softmax(-1)[0])
    assert have_distribution((x[0] != 0).long(), torch.stack([1 - p, p]))


def test_draw_is_exact_in_the_tail(monkeypatch):
    """Each token owns an interval of [0, 1] as long as its share of the weights, also a rare one
    behind a likely one: it is drawn if u is at the beginning, in the middle or near the end. Tokens
    of weight 0 own nothing, wherever they stand, even at the smallest and the largest u."""
    p = torch.cat([torch.tensor([0.0, 0.7, 0, 0, 0.3]), torch.full((500,), 1e-8), torch.zeros(3)])
    owners, ends = p.nonzero().squeeze(1), p.double().cumsum(0)
    u = [((ends - left * p.double()) / ends[-1])[owners] for left in (0.999, 0.5, 0.001)]
    u = torch.cat([*u, torch.tensor([0, 1 - 2.0**-53], dtype=torch.float64)])
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: u.to(dtype).view(shape))
    drawn = flow.draw(p.expand(len(u), -1))
    assert torch.equal(drawn, torch.cat([owners.repeat(3), owners[[0, -1]]]))
    assert (flow.draw(torch.zeros(len(u), 4)) < 4).all()  # if rounding leaves no weight: a token


# ------------------------------------------------------------------------------------------------
# flow.py: many steps


def test_generate_goes_through_the_time_grid():
    """The network and the step see t and h; only the final step is a last one; on_step sees what
    the step returned. Any function can be the step."""
    network, steps, seen = Recorder(), [], []

    def step(x_t, logits, t, h, last):
        steps.append((t[0].item(), h[0].item(), last[0].item()))
        assert torch.equal(logits, network(x_t, t, h))
        return (x_t + 1) % 4

    x = torch.zeros(3, 16, dtype=torch.int64)
    y = flow.generate(network, x, 4, step=step, on_step=lambda x: seen.append(x[0, 0].item()))
    sixteenths = [(0, 7, False), (7, 5, False), (12, 3, False), (15, 1, True)]
    assert steps == [(t / 16, h / 16, last) for t, h, last in sixteenths]
    assert seen == [1, 2, 3, 0] and torch.equal(y, x)


@pytest.mark.parametrize("steps, power", [(1, 1.0), (2, 1.0), (4, 1.0), (8, 2.0), (16, 2.0)])
def test_generated_texts_have_the_exact_distribution(steps, power):
    """The one that toy.py multiplies out of transition matrices."""
    texts = texts_of(ExactNetwork(), flow.generate, steps, power=power)
    exact = sampled_distribution("uniform", steps, power=power)
    assert have_distribution(texts, exact.flatten())


# ------------------------------------------------------------------------------------------------
# distill.py


def test_the_teachers_target_by_hand(monkeypatch):
    """A teacher whose three logits are the token, t and h, and jumps that add 1, 10 and 100."""
    jumps = []

    def teacher(x_t, t, h):
        return torch.stack([x_t, t[:, None].expand(2, 2), h[:, None].expand(2, 2)], dim=-1)

    def jump(x_t, logits, t, h, last=None):
        assert torch.equal(logits, teacher(x_t, t, h))
        jumps.append((t.tolist(), h.tolist(), None if last is None else last.tolist()))
        return x_t + 10 ** (len(jumps) - 1)

    monkeypatch.setattr(distill, "jump", jump)
    x_t, t, h = torch.tensor([[5, 6], [7, 8]]), torch.tensor([0.25, 0.5]), torch.tensor([0.25, 0.5])
    target = distill.shortcut_target(teacher, x_t, t, h, torch.tensor([False, True]))
    token = x_t + (0 + 2 * 1 + 2 * 11 + 111) / 6
    time = (t + 2 * (t + h / 2) + 2 * (t + h / 2) + (t + h)) / 6
    torch.testing.assert_close(target, teacher(token, time, h / 2))
    later = [0.375, 0.75], [0.125, 0.25], [False, True]
    assert jumps == [([0.25, 0.5], [0.125, 0.25], None), later, later]


def test_the_teachers_target_in_the_exact_world():
    """With real jumps: the mean over them is what toy.py sums up over all of their outcomes."""
    n, t, h, state = 40_000, 0.25, 0.5, TEXTS.index((0, 2))
    x_t, time, size = torch.tensor([[0, 2]]).expand(n, L), torch.full((n,), t), torch.full((n,), h)
    never = torch.zeros(n, dtype=torch.bool)
    p = distill.shortcut_target(ExactNetwork(), x_t, time, size, never).softmax(-1)  # (n, L, V)
    error = (p.mean(0) - torch.from_numpy(expected_target(state, t, h))).abs()
    assert (error < 4 * p.std(0) / math.sqrt(n) + 1e-6).all()


def test_steps_have_their_shares_and_fit_before_1(monkeypatch):
    """The largest first. Where one starts is uniform on its 1025 - 1024 / n multiples of 1/1024."""
    n, t = distill.sample_steps(50_000, distill.SHARES)
    assert have_distribution(n.log2().long(), distill.SHARES / distill.SHARES.sum())
    assert (n.diff() >= 0).all()
    assert torch.equal(t * 1024, (t * 1024).floor()) and t.min() == 0 and (t + 1 / n).max() == 1
    place = (t.double() * 1024 + torch.rand(50_000)) / (1025 - 1024 // n)  # uniform on [0, 1)
    assert have_distribution((place * 16).long(), torch.full((16,), 1 / 16))
    monkeypatch.setattr(torch, "rand", lambda n: torch.full((n,), 1 - 2.0**-24))  # the largest
    n, t = distill.sample_steps(1000, distill.SHARES)
    assert (t + 1 / n == 1).all()


@pytest.mark.parametrize("n, has_teacher", [(1, True), (4, True), (8, False), (1024, False)])
def test_which_steps_have_the_teacher(n, has_teacher, monkeypatch):
    """In texts of 16 tokens those of more than 2/16. The others learn from the text alone. The
    teacher gets no gradient."""
    monkeypatch.setattr(distill, "SHARES", (2 ** torch.arange(11) == n).float())
    student, teacher = Recorder(), Recorder()
    distill.distillation_loss(student, teacher, torch.randint(6, (6, 16))).backward()
    assert len(teacher.calls) == 4 * has_teacher
    assert teacher.table.grad is None and student.table.grad.abs().sum() > 0


def test_the_loss_of_the_student(monkeypatch):
    """KL(teacher || student) or the data loss: each token counts once, and each row has its own
    x_t, t, h and text. `last` marks the rows whose step ends at 1."""

    def target(teacher, x_t, t, h, last):
        assert torch.equal(last, t + h == 1) and last.any()
        return teacher(x_t, t, h).detach()

    monkeypatch.setattr(distill, "shortcut_target", target)
    monkeypatch.setattr(distill, "SHARES", torch.ones(11))
    student, teacher, x_1 = Recorder(), Recorder(), torch.randint(6, (88, 16))
    loss = distill.distillation_loss(student, teacher, x_1, largest_weight=3.0)
    ((x_t, t, h),) = student.calls
    q, p = (network(x_t, t, h).softmax(-1) for network in (teacher, student))
    kl = (q * (q / p).log()).sum(-1)
    data_loss = flow.generalized_kl(p.log(), x_1, x_t, t, 3.0)
    by_hand = torch.where((h > 2 / 16)[:, None], kl, data_loss).mean()
    torch.testing.assert_close(loss, by_hand)
