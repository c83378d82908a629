"""Proves model.py: who sees whom, what t and h change, and that training learns, repeats and accumulates exactly.

The published network's own numbers are in test_reference.py.
"""

import math
from dataclasses import replace

import pytest
import torch

from model import ModelConfig, Transformer, rotary_tables, rotate
from optimizer import Muon, learning_rate, make_optimizers, orthogonalize
from train import SETTINGS, make_loss, preset_value

CONFIG = ModelConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16)


def random_network(config):
    """Every weight non-zero: the gates of a fresh network are shut, and would hide what is to be seen."""
    model = Transformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("gradients", [True, False])  # attention takes another path with gradients on a CPU
def test_who_sees_whom(gradients):
    with torch.set_grad_enabled(gradients):
        x = torch.randint(20, (1, 16))
        changed = x.clone()
        changed[0, 9] = (x[0, 9] + 1) % 20
        causal = random_network(replace(CONFIG, causal=True))
        difference = (causal(x) - causal(changed)).abs().amax(-1)[0]
        assert (difference[:9] == 0).all() and (difference[9:] > 0).all()
        both_ways = random_network(CONFIG)
        t = torch.tensor([0.5])
        assert ((both_ways(x, t) - both_ways(changed, t)).abs().amax(-1) > 0).all()


def test_step_size_is_heeded_only_by_the_step_aware_network():
    x, t, small, large = torch.randint(20, (1, 16)), torch.tensor([0.5]), torch.tensor([1 / 1024]), torch.tensor([0.5])
    plain, aware = random_network(CONFIG), random_network(replace(CONFIG, step_aware=True))
    assert torch.equal(plain(x, t, small), plain(x, t, large))
    assert (aware(x, t, small) - aware(x, t, large)).abs().max() > 1e-3
    assert (plain(x, t) - plain(x, t + 0.1)).abs().max() > 1e-3


def test_time_scale_tells_fine_steps_apart():
    """1/512 and 1/1024 lie close in the sinusoids of the released checkpoints, and far apart in ours."""
    fine = torch.tensor([1 / 512, 1 / 1024])
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    gap = {scale: (fine[:, None] * scale * frequencies).sin().diff(dim=0).abs().max() for scale in (1.0, 1000.0)}
    assert gap[1.0] < 0.002 and gap[1000.0] > 0.1


def test_rotary_depends_on_distance_only():
    tables = rotary_tables(12, 2, 8, "cpu")

    def turn(x):  # the same vector (8,) at 12 places, in two heads
        turned = rotate(x.expand(1, 12, 2, 8), *tables)[0]
        assert torch.equal(turned[:, 0], turned[:, 1])
        return turned[:, 0]  # (12, 8)

    q, k = torch.randn(8), torch.randn(8)
    scores = turn(q) @ turn(k).T
    for distance in range(-3, 4):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[0, 0], q @ k)
    frequency = 10000 ** (-2 / 8)  # of the second pair, entries 1 and 5: half-split
    turned = turn(torch.eye(8)[1])[3]
    assert turned[1].item() == pytest.approx(math.cos(3 * frequency)) and turned[5].item() == pytest.approx(math.sin(3 * frequency))


# training


def train_briefly(stage, iterations, accumulate=1, size=8, seed=0):
    """A few updates of a small network on a fixed text of 20 symbols; the losses and the final weights."""
    torch.manual_seed(seed)
    model = Transformer(replace(CONFIG, causal=stage == "judge"))
    settings = {name: preset_value(name, "tiny", stage) for name in SETTINGS} | {"iterations": iterations}
    loss_of, optimizers, losses = make_loss(stage, settings, None), make_optimizers(model, settings), []
    text = (torch.arange(4000) ** 2 // 7) % 20
    for iteration in range(iterations):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(iteration, settings)
        starts = torch.randint(len(text) - 16, (accumulate * size,))
        for part in (text[starts[:, None] + torch.arange(16)]).split(size):
            loss = loss_of(model, part) / accumulate
            loss.backward()
            losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("stage", ["judge", "dfm"])
def test_training_repeats_bit_for_bit(stage):
    losses, weights = train_briefly(stage, 30)
    again, weights_again = train_briefly(stage, 30)
    assert losses == again and all(map(torch.equal, weights, weights_again))
    first, last = torch.tensor(losses[:10]).median(), torch.tensor(losses[-10:]).median()  # one t near 1 makes a mean jump
    assert last < first - 0.1


def test_accumulation_equals_a_larger_batch():
    torch.manual_seed(0)
    model = random_network(replace(CONFIG, causal=True))
    loss_of, x = make_loss("judge", {}, None), torch.randint(20, (8, 16))
    loss_of(model, x).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in x.split(4):
        (loss_of(model, part) / 2).backward()
    for a, b in zip(whole, model.parameters()):
        assert (a - b.grad).abs().max() <= 1e-6 * max(1.0, a.abs().max().item())


@torch.no_grad()
def test_the_judge_is_trained_on_what_it_is_asked():
    """Its loss is the mean of what eval.py reads off it: each token from those before it."""
    model, x = random_network(replace(CONFIG, causal=True)), torch.randint(20, (3, 16))
    expected = [model(x[:, : i + 1])[:, -1].log_softmax(-1).gather(1, x[:, i + 1 : i + 2]) for i in range(15)]
    expected = -torch.cat(expected, dim=1)  # (3, 15)
    assert make_loss("judge", {}, None)(model, x).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_learning_rate():
    settings = {"iterations": 100, "warmup": 10, "decay": 0.5, "learning_rate": 2.0}
    rates = [learning_rate(i, settings) for i in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 == rates[50] and rates[75] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.04)


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 16, 16)])
def test_orthogonalize(shape):
    """The singular vectors stay, and the singular values are what five rounds of the scalar polynomial make of them."""
    x = torch.randn(shape)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.max() < 1.25
    expected = (u * s[:, None]).matmul(vh).float()
    torch.testing.assert_close(orthogonalize(x.double()), expected, rtol=0, atol=1e-5)  # autocast leaves float64 as it is
    # bfloat16, if this processor has it, rounds the results of 15 products by up to 1/256 of their size
    assert (orthogonalize(x) - expected).norm() < 15 / 256 * expected.norm()


def test_muon_is_torchs():
    """Up to the bfloat16 of torch.optim.Muon; the scale, the momentum and the decay are the same."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for start in [[torch.randn(24, 40), torch.randn(40, 24), torch.randn(24, 40)]] * 2)
    optimizers = Muon(ours, lr=0.1, weight_decay=0.2), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        assert (a - b).norm() < 0.02 * b.norm() and not torch.equal(a, b)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = Transformer(replace(CONFIG, step_aware=True))
    settings = {name: preset_value(name, "tiny", "fsdfm") for name in SETTINGS}
    muon, adamw = make_optimizers(model, settings)
    assert {p.shape for p in muon.param_groups[0]["params"]} == {(96, 32), (32, 32), (128, 32), (32, 128)}
    assert sum(p.numel() for o in (muon, adamw) for g in o.param_groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
