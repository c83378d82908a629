"""The tests that decide: one for each exercise of docs/exercises.md."""

import math

import pytest
import torch

import flow
import toy

TEXT = torch.tensor(toy.TEXT)  # (V, V): the true texts of the exact world


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    torch.set_num_threads(1)


def returned(value, shape=None):
    """The value, if there is one, of this shape."""
    assert value is not None, "expected a value, found None: is there a return?"
    assert shape is None or value.shape == shape, (
        f"expected the shape {tuple(shape)}, found {tuple(value.shape)}")
    return value


def same(what, found, expected, tolerance=1e-5):
    """found and expected are floats or tensors."""
    expected = torch.as_tensor(expected).double()
    found = returned(torch.as_tensor(returned(found)).double(), expected.shape)
    found, expected = found.flatten(), expected.flatten()
    error = (found - expected).abs().nan_to_num(math.inf)
    worst = error.argmax()
    assert error[worst] <= tolerance, (
        f"{what}: expected {expected[worst]:.5g}, found {found[worst]:.5g}")


def drawn_from(what, tokens, expected):
    """The share of each symbol is within 4.5 standard errors of the expected one, (V,)."""
    share = torch.bincount(tokens.flatten(), minlength=len(expected)) / tokens.numel()
    error = (expected * (1 - expected) / tokens.numel()).sqrt() + 1e-9
    for symbol, p in enumerate(expected):
        assert (share[symbol] - p).abs() < 4.5 * error[symbol], (
            f"{what}: expected symbol {symbol} in {p:.3f} of the draws, found {share[symbol]:.3f}")


def test_path(mine):
    n = 20_000
    t = torch.tensor([0.0, 0.25, 0.7, 1.0])
    x_1, x_0 = torch.ones(4, n, dtype=torch.int64), torch.zeros(4, n, dtype=torch.int64)
    x_t = returned(mine.sample_path(x_1, x_0, t), x_1.shape)
    for row, time in zip(x_t, t):
        drawn_from(f"t = {time:g}, text is 1 and noise 0", row, torch.tensor([1 - time, time]))
    both = torch.tensor([0.75**2, 2 * 0.25 * 0.75, 0.25**2])  # how many of two tokens are text
    drawn_from("two tokens of a text, added", x_t[1].view(-1, 2).sum(1), both)
    pairs = mine.sample_path(x_1[:2], x_0[:2], torch.full((2,), 0.25)).sum(0)
    drawn_from("tokens at one place of two texts, added", pairs, both)


def test_posterior(mine):
    for t in (0.0, 0.25, 0.9):
        exact = torch.tensor(toy.posterior("uniform", t))  # (states, 2, V)
        for state, x_t in enumerate(toy.states("uniform")):
            same(f"x_t = {x_t}, t = {t}", mine.posterior(TEXT, x_t, t), exact[state], 1e-6)


def test_loss(mine):
    logits = torch.tensor([[[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]]).log()
    x_1, x_t, t = torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), torch.tensor([0.5])
    loss = mine.dfm_loss(logits, x_1, x_t, t)
    same("p = (0.7, 0.2, 0.1), x_1 = (0, 1), x_t = (0, 0), t = 1/2", loss,
         torch.tensor([[2 * 0.3, 2 * (-0.7 - math.log(0.2))]]))
    logits = 3 * torch.randn(6, 5, 4)  # not normalised
    x_1, x_t, t = torch.randint(4, (6, 5)), torch.randint(4, (6, 5)), torch.rand(6)
    same("random logits", mine.dfm_loss(logits, x_1, x_t, t),
         flow.generalized_kl(logits, x_1, x_t, t), 1e-3)


def test_jump(mine):
    """From t = 0.25 to 0.625 half of the noise stays: S = 1/2. The first token of each text is a 1,
    the second a 3 with a posterior of its own."""
    n, x_t = 100_000, torch.tensor([1, 3])
    for first in ([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]):
        p = torch.tensor([first, [0.5, 0.4, 0.1, 0.0]])  # (L, V)
        x, logits = x_t.expand(n, 2), p.log().expand(n, 2, 4)
        step = returned(mine.jump(x.clone(), logits.clone(), 0.25, 0.375, last=False), x.shape)
        end = returned(mine.jump(x.clone(), logits.clone(), 0.75, 0.25, last=True), x.shape)
        for i in (0, 1):
            p_stay = p[i, x_t[i]]
            moved = 1 - 0.5 ** (1 - p_stay)
            expected = moved * p[i] / (1 - p_stay) if p_stay < 1 else torch.zeros(4)
            expected[x_t[i]] = 1 - moved
            setting = f"x_t = {x_t[i]}, p = {[round(value, 1) for value in p[i].tolist()]}"
            drawn_from(f"{setting}, S = 1/2", step[:, i], expected)
            drawn_from(f"{setting}, last step", end[:, i], p[i])


def test_generate(mine):
    """With the exact posterior as a network the distribution of the texts is known."""
    calls, n, times = [], 40_000, [0, 0.25, 0.5, 0.75, 1]

    def model(x, t, h):
        for value in (t, h):
            assert torch.is_tensor(value) and value.shape == (n,), (
                f"the model's t and h: expected tensors of the shape {(n,)}, found {value}")
        calls.append((round(t[0].item(), 4), round(h[0].item(), 4)))
        table = torch.tensor(toy.posterior("uniform", calls[-1][0])).log()  # (states, L, V)
        return table[4 * x[:, 0] + x[:, 1]]

    x = returned(mine.generate(model, torch.randint(4, (n, 2)), times), (n, 2))
    expected = [(t, 0.25) for t in times[:-1]]
    assert calls == expected, f"t and h of the calls: expected {expected}, found {calls}"
    exact = torch.tensor(toy.sampled_distribution("uniform", 4)).flatten()
    drawn_from("texts of 4 steps, as symbols 4 a + b", 4 * x[:, 0] + x[:, 1], exact)


def test_scalar(mine, monkeypatch):
    monkeypatch.setattr(flow, "kappa", lambda t: t**2)
    for t, h in ((0.0, 0.5), (0.25, 0.125), (0.5, 0.45)):
        ours = flow.cumulative_scalar(torch.tensor(t).double(), torch.tensor(h).double())
        same(f"g({t}, {h})", mine.cumulative_scalar(t, h), ours)
    h = 1 - 2.0**-40  # here a sum over many small steps is far from the integral
    same("g(0, 1 - 2^-40)", mine.cumulative_scalar(0.0, h), 39 * math.log(2))


def test_teacher(mine):
    calls, steps = [], []

    def teacher(x, t, h):
        calls.append((x, t, h))
        return {"x_t": 6.0, "x_a": 12.0, "x_b": 30.0, "x_c": -6.0}[x]

    def step(x, logits, t, h):
        steps.append((x, logits, t, h))
        return {"x_t": "x_a", "x_a": "x_b", "x_b": "x_c"}[x]

    value = mine.shortcut_target(teacher, step, "x_t", 0.25, 0.5)
    expected = [("x_t", 0.25, 0.25), ("x_a", 0.5, 0.25), ("x_b", 0.5, 0.25), ("x_c", 0.75, 0.25)]
    assert calls == expected, f"calls of teacher(x, t, h): expected {expected}, found {calls}"
    expected = [("x_t", 6.0, 0.25, 0.25), ("x_a", 12.0, 0.5, 0.25), ("x_b", 30.0, 0.5, 0.25)]
    assert steps == expected, f"calls of step: expected {expected}, found {steps}"
    same("target of the logits 6, 12, 30, -6", value, (6 + 2 * 12 + 2 * 30 - 6) / 6)


def test_student(mine):
    B, L, V = 4, 8, 5
    logits, target = torch.randn(2, B, L, V)
    x_1, x_t, t = torch.randint(V, (B, L)), torch.randint(V, (B, L)), torch.zeros(B)
    h = torch.tensor([1, 0.5, 0.25, 0.125])  # 2 / L = 1/4
    loss = mine.student_loss(logits, target, x_1, x_t, t, h)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="none")
    same("h > 2 / L: KL(teacher || student)", loss[:2], kl.sum(-1)[:2])
    same("h <= 2 / L: the data loss", loss[2:], flow.generalized_kl(logits, x_1, x_t, t)[2:])


def total_variation(times):
    """Between true texts and those of the exact sampler on this grid."""
    p = torch.full((16,), 1 / 16).double().numpy()  # noise
    for i, (t, end) in enumerate(zip(times, times[1:])):
        exact = toy.posterior("uniform", t)
        p = p @ toy.transition("uniform", exact, t, end - t, last=i == len(times) - 2)
    return toy.total_variation(p.reshape(4, 4), toy.TEXT)


def test_grid(mine):
    times = returned(mine.time_grid(8))
    same("t_0 and t_8", torch.tensor([times[0], times[-1]]), torch.tensor([0.0, 1.0]))
    assert len(times) == 9 and all(a < b for a, b in zip(times, times[1:])), (
        f"expected 9 times, each above the one before, found {times}")
    assert (found := total_variation(times)) < 0.022, (
        f"total variation of 8 steps: expected less than 0.022, found {found:.4f}")


def mixed(texts, others, share):
    """Tokens of others instead of those of texts, in this share of the texts."""
    return torch.where(torch.rand(len(texts)) < share, others, texts)


def true_texts(n):
    """(n, 12): tokens 0 and 1 mostly agree, and all others are independent. So many
    tokens that hardly two whole texts are alike."""
    likely = torch.tensor([0.4, 0.3, 0.2, 0.1])
    tokens = [likely.multinomial(n, True) for _ in range(4)] + [*torch.randint(4, (8, n))]
    return torch.stack([tokens[0], mixed(tokens[0], tokens[1], 0.4), *tokens[2:]], 1)


def spoiled_texts(n):
    """{what is wrong: texts (n, 12)}."""
    spoiled = {}
    for name in ("one token is too often a 0",
                 "tokens 0 and 1 do not agree, as if one step wrote both",
                 "tokens 2 and 3 are drawn with shared noise",
                 "every pair is right, but not three"):
        spoiled[name] = true_texts(n)
    one, apart, shared, three = spoiled.values()
    one[:, 4] = mixed(one[:, 4], torch.tensor(0), 0.3)
    apart[:, 1] = true_texts(n)[:, 1]
    shared[:, 3] = mixed(shared[:, 3], shared[:, 2], 0.4)
    three[:, 6] = mixed(three[:, 6], (three[:, 4] + three[:, 5]) % 4, 0.5)
    return spoiled


def test_measure(mine):
    """Fresh true texts score higher than texts that are spoiled, whatever is wrong with them."""
    for seed in range(5):
        torch.manual_seed(seed)
        true, n = true_texts(4000), 2000
        best = returned(mine.measure(true_texts(n), true))
        for wrong, texts in spoiled_texts(n).items():
            score = mine.measure(texts, true)
            assert score < best, (
                f"{wrong}: expected less than {best:.4f}, that of true texts, found {score:.4f}")
