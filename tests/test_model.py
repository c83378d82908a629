"""Checks the network, the optimizers, and that training learns, repeats and accumulates exactly.

Of model.py: who sees whom, and what t and h change. Of common/: attention on the CPU, Muon, and the
learning rate. The published network's own numbers are in test_reference.py, the judge's cache is in
test_measures.py, and the student's start is in test_distill.py.
"""

import contextlib
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from common.fast import attention, attention_by_formula, flat_linear, padded_linear
from common.optimizer import Muon, make_optimizers, orthogonalize, set_learning_rate
from model import ModelConfig, ScalarEmbedding, Transformer, copy_dfm_weights
from model import rotary_tables, rotate, sinusoidal_positions
from train import loss_of, make_config, update_weights

CONFIG = ModelConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16)
CPU = torch.device("cpu")


def random_network(config):
    """A network with no weight zero: the gates of a fresh one are shut, and its logits are 0."""
    model = Transformer(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


# ------------------------------------------------------------------------------------------------
# the network


@pytest.mark.parametrize("gradients", [True, False])
def test_who_sees_whom(gradients):
    with torch.set_grad_enabled(gradients):
        x = torch.randint(20, (1, 16))
        changed = x.clone()
        changed[0, 9] = (x[0, 9] + 1) % 20
        causal = random_network(replace(CONFIG, causal=True))
        difference = (causal(x) - causal(changed)).abs().amax(-1)[0]  # (L,)
        assert (difference[:9] == 0).all() and (difference[9:] > 0).all()
        both_ways = random_network(CONFIG)
        t = torch.tensor([0.5])
        assert ((both_ways(x, t) - both_ways(changed, t)).abs().amax(-1) > 0).all()


def test_sequences_of_a_batch_are_independent():
    model = random_network(replace(CONFIG, step_aware=True))
    x, t, h = torch.randint(20, (3, 16)), torch.rand(3), torch.rand(3)
    together = model(x, t, h)  # (3, L, V)
    for i in range(3):
        alone = model(x[i : i + 1], t[i : i + 1], h[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_h_matters_only_in_the_step_aware_network():
    x, t = torch.randint(20, (1, 16)), torch.tensor([0.5])
    small, large = torch.tensor([1 / 1024]), torch.tensor([0.5])
    dfm, aware = random_network(CONFIG), random_network(replace(CONFIG, step_aware=True))
    assert torch.equal(dfm(x, t, small), dfm(x, t, large))
    assert (aware(x, t, small) - aware(x, t, large)).abs().max() > 1e-3
    assert (dfm(x, t) - dfm(x, t + 0.1)).abs().max() > 1e-3


@pytest.mark.parametrize("step_aware", [False, True])
def test_a_time_for_every_token(step_aware):
    """One time for all tokens, written out, changes nothing. The time of a token matters to the
    prediction of the others, too."""
    model = random_network(replace(CONFIG, step_aware=step_aware))
    x, t, h = torch.randint(20, (3, 16)), torch.rand(3), torch.rand(3)
    token_t = t[:, None].repeat(1, 16)
    torch.testing.assert_close(model(x, token_t, h), model(x, t, h), rtol=1e-5, atol=1e-5)
    token_t[:, 4] = 1
    assert ((model(x, token_t, h) - model(x, t, h))[:, 9].abs().amax(-1) > 1e-3).all()


def features(values, scale):
    """What the MLP of a ScalarEmbedding reads, (N, 256), for a list of N numbers."""
    embedding = ScalarEmbedding(16, scale)
    embedding.mlp = nn.Identity()
    return embedding(torch.tensor(values))


def test_features_of_a_number_by_hand():
    """The frequencies fall from 1 to nearly 1 / 10,000."""
    row = features([0.25], 8.0)[0]  # the number times the scale is 2
    last = 2 * 10000 ** (-127 / 128)
    expected = [math.cos(2), math.cos(last), math.sin(2), math.sin(last)]
    assert row[[0, 127, 128, 255]].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_time_scale_tells_fine_steps_apart():
    """Features of 1/512 and 1/1024 nearly coincide at the published checkpoints' scale of 1."""
    fine = [1 / 512, 1 / 1024]
    gap = {scale: features(fine, scale).diff(dim=0).abs().max() for scale in (1.0, 1000.0)}
    assert gap[1.0] < 0.002 and gap[1000.0] > 0.1


def test_both_embeddings_have_the_time_scale():
    condition = Transformer(replace(CONFIG, step_aware=True, time_scale=7.0)).condition
    assert condition.time_embedding.scale == condition.step_embedding.scale == 7.0


def rotate_everywhere(x):
    """One vector x (8,) rotated at each of 12 positions, (12, 8)."""
    cos, sin = rotary_tables(torch.arange(12), 8)
    rotated = rotate(x.expand(1, 2, 12, 8), cos, sin)[0]  # (2 heads, 12, 8)
    assert torch.equal(rotated[0], rotated[1])
    return rotated[0]


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(8), torch.randn(8)
    scores = rotate_everywhere(q) @ rotate_everywhere(k).T  # (12, 12)
    for distance in range(-3, 4):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[0, 0], q @ k)
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-3  # and on distance they do depend


def test_rotary_angles_by_hand():
    """Entries 1 and 5 of 8 are the second pair, at position 3."""
    angle = 3 * 10000 ** (-2 / 8)
    rotated = rotate_everywhere(torch.eye(8)[1])[3]
    expected = torch.zeros(8)
    expected[1], expected[5] = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(rotated, expected)


def test_rotary_tables_may_start_anywhere():
    whole, part = rotary_tables(torch.arange(12), 8), rotary_tables(torch.arange(5, 12), 8)
    assert torch.equal(whole[0][5:], part[0]) and torch.equal(whole[1][5:], part[1])


def test_sinusoidal_positions_by_hand():
    angle = 5 * 10000 ** (-2 / 8)  # entries 1 and 5 of 8, position 5
    row = sinusoidal_positions(torch.arange(3, 7), 8)[2]
    assert row[[1, 5]].tolist() == pytest.approx([0.07 * math.sin(angle), 0.07 * math.cos(angle)])


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_who_knows_where_it_stands(positions):
    """Of a text of one token, repeated, rotary positions tell nothing: all attend to the same."""
    model = random_network(replace(CONFIG, positions=positions))
    logits = model(torch.full((1, 16), 7), torch.tensor([0.5]))[0]  # (16, V)
    same = torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-4)
    assert same == (positions == "rotary")


def test_a_text_longer_than_those_of_training():
    """A network of a longer block with the same weights says the same."""
    short = random_network(CONFIG)
    long = random_network(replace(CONFIG, block_size=32))
    long.load_state_dict(short.state_dict())
    x, t = torch.randint(20, (2, 24)), torch.rand(2)
    torch.testing.assert_close(short(x, t), long(x, t))


# ------------------------------------------------------------------------------------------------
# what is there for speed


def values_and_gradients(attend, inputs, is_causal, upstream):
    """The output, and the gradients of its inner product with `upstream`."""
    y = attend(*inputs, is_causal=is_causal)
    return [y.detach(), *torch.autograd.grad((y * upstream).sum(), inputs)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("L", [1, 7, 64])
def test_attention_by_formula_is_pytorchs(is_causal, L):
    q, k, v, upstream = torch.randn(4, 2, 3, L, 8)  # (B, heads, L, head_dim) each
    inputs = [part.requires_grad_() for part in (q, k, v)]
    ours = values_and_gradients(attention_by_formula, inputs, is_causal, upstream)
    pytorch = F.scaled_dot_product_attention
    theirs = values_and_gradients(pytorch, inputs, is_causal, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_of_one_new_token_to_all_before_it():
    """As with a key-value cache: one query, seven keys."""
    q, k, v = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_of_long_texts_is_the_same_without_gradients(is_causal):
    q, k, v = torch.randn(3, 1, 2, 1030, 8)
    assert q[..., 0].numel() * 1030 > 2**21  # enough scores for the other path
    with_gradients = attention(q, k, v, is_causal)
    with torch.no_grad():
        without = attention(q, k, v, is_causal)
    torch.testing.assert_close(without, with_gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [padded_linear, flat_linear])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 2**14 + 1])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_of_other_devices_is_pytorchs(linear, n, with_bias):
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(n, 8), torch.randn(n)
    inputs = [part.requires_grad_() for part in (x, weight, bias)[: 2 + with_bias]]
    with_none = inputs if with_bias else [*inputs, None]
    ours, theirs = linear(*with_none), F.linear(*with_none)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(2, 3, n)
    gradients = [torch.autograd.grad((y * upstream).sum(), inputs) for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*with_none).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------
# from DFM to FS-DFM


@torch.no_grad()
@pytest.mark.parametrize("fuser_init", ["copy", "fresh"])
def test_weights_of_a_dfm(fuser_init):
    """Both take over its layers. A copied fuser computes the same function, a fresh one another."""
    dfm, student = random_network(CONFIG), random_network(replace(CONFIG, step_aware=True))
    copy_dfm_weights(student, dfm, fuser_init)
    copied = student.state_dict()
    assert all(torch.equal(copied[name], weight) for name, weight in dfm.state_dict().items())
    x, t, h = torch.randint(20, (3, 16)), torch.rand(3), torch.tensor([1, 0.125, 1 / 1024])
    difference = (student(x, t, h) - dfm(x, t)).abs().max()
    assert difference < 1e-3 if fuser_init == "copy" else difference > 1


# ------------------------------------------------------------------------------------------------
# training


class Texts:
    """A fixed text of 20 symbols, with the one function of a Dataset that training calls."""

    text = (torch.arange(4000) ** 2 // 7) % 20

    def batch(self, split, batch_size, block_size, device):
        starts = torch.randint(len(self.text) - block_size, (batch_size,))
        return self.text[starts[:, None] + torch.arange(block_size)]


def start(stage, **flags):
    """What update_weights reads of a Run, for a small network."""
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, causal=stage == "judge"))
    settings = make_config(stage, "tiny", block_size=16, **flags)
    optimizers = make_optimizers(model, settings)
    run = SimpleNamespace(stage=stage, settings=settings, model=model, ema=None, iteration=0)
    run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    run.trained = lambda: [run.model]
    run.optimizers, run.passes = optimizers, settings.accumulation
    return run


def one_iteration(run, texts):
    """The loss of an iteration of update_weights."""
    loss_function = partial(loss_of, run.stage, run.model, None)
    return update_weights(run, run.model, loss_function, texts, CPU, rank=0)


def train_briefly(stage, iterations):
    """The losses and the final weights of a few iterations."""
    run, losses = start(stage, iterations=iterations, batch_size=8), []
    for iteration in range(iterations):
        set_learning_rate(run.optimizers, iteration, run.settings)
        losses.append(one_iteration(run, Texts()).item())
    return losses, [p.detach() for p in run.model.parameters()]


@pytest.mark.parametrize("stage, iterations", [("judge", 30), ("dfm", 100)])
def test_training_learns_and_repeats_bit_for_bit(stage, iterations):
    losses, weights = train_briefly(stage, iterations)
    losses_again, weights_again = train_briefly(stage, iterations)
    assert losses == losses_again and all(map(torch.equal, weights, weights_again))
    third = iterations // 3
    assert sum(losses[-third:]) / third < sum(losses[:third]) / third - 0.2


class KeepGradient:
    """In the place of an optimizer: keeps the gradient of every weight."""

    def __init__(self, model):
        self.parameters = list(model.parameters())

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters])

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


class Repeated:
    """Gives the rows of x in order, batch after batch."""

    def __init__(self, x):
        self.x, self.given = x, 0

    def batch(self, split, batch_size, block_size, device):
        self.given += batch_size
        return self.x[self.given - batch_size : self.given]


def gradient_of_an_iteration(x, accumulation):
    """The loss and the gradient of one iteration over x (B, L), in `accumulation` passes."""
    size = len(x) // accumulation
    run = start("judge", batch_size=size, accumulation=accumulation, clip=1e9)
    torch.manual_seed(0)
    run.model = random_network(run.model.config)
    run.optimizers = [KeepGradient(run.model)]
    loss = one_iteration(run, Repeated(x))
    return loss, run.optimizers[0].gradient


def test_accumulation_equals_a_larger_batch(monkeypatch):
    monkeypatch.setattr(train, "autocast", lambda device: contextlib.nullcontext())  # float32
    x = torch.randint(20, (8, 16))
    loss, gradient = gradient_of_an_iteration(x, 1)
    assert gradient.norm() > 0.1
    for accumulation in (2, 4):
        loss_of_parts, gradient_of_parts = gradient_of_an_iteration(x, accumulation)
        torch.testing.assert_close(loss_of_parts, loss, rtol=1e-5, atol=0)
        assert (gradient_of_parts - gradient).norm() < 1e-5 * gradient.norm()


def test_the_gradient_is_clipped():
    run = start("judge", clip=0.01)
    run.model = random_network(run.model.config)
    run.optimizers = [KeepGradient(run.model)]
    one_iteration(run, Texts())
    assert run.optimizers[0].gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


@torch.no_grad()
def test_the_judge_is_trained_on_what_it_is_used_for():
    """Its loss is the mean of what eval.py reads off it: each token from those before it."""
    model, x = random_network(replace(CONFIG, causal=True)), torch.randint(20, (3, 16))
    log_p = []
    for i in range(15):
        last = model(x[:, : i + 1])[:, -1].log_softmax(-1)  # (3, V)
        log_p.append(last.gather(1, x[:, i + 1 : i + 2]))
    expected = -torch.cat(log_p, dim=1).mean().item()
    loss = loss_of("judge", model, None, x, make_config("judge", "tiny"))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------
# the learning rate


def learning_rates(**flags):
    """The learning rate of every iteration, which all groups of both optimizers must share."""
    settings = make_config("dfm", "tiny", learning_rate=2.0, warmup=10, **flags)
    groups = [{"lr": 0.0}, {"lr": 1.0}, {"lr": 9.0}]
    optimizers = [SimpleNamespace(param_groups=part) for part in (groups[:2], groups[2:])]
    rates = []
    for iteration in range(settings.iterations):
        set_learning_rate(optimizers, iteration, settings)
        assert groups[0] == groups[1] == groups[2]
        rates.append(groups[0]["lr"])
    return rates


def test_linear_learning_rate():
    rates = learning_rates(iterations=100, decay=0.5, lr_schedule="linear")
    assert rates[0] == pytest.approx(0.2) and rates[9] == 2.0 == rates[50]
    assert rates[75] == pytest.approx(1.0) and rates[99] == pytest.approx(0.04)


@pytest.mark.parametrize(
    "data, device, preset, expected",
    [("stories", "cpu", None, "cpu"), ("pydocs", "cpu", None, "cpu-text"),
     ("pydocs", "cuda", None, "gpu"), ("stories", "cuda", None, "cpu"),
     ("pydocs", "cpu", "cpu", "cpu"), ("stories", "cpu", "tiny", "tiny")],
)
def test_the_size_follows_the_text(monkeypatch, data, device, preset, expected):
    monkeypatch.setattr(train, "pick_device", lambda name: torch.device(device))
    arguments = SimpleNamespace(stage="dfm", device=None, data=data, preset=preset, recipe=None)
    assert train.make_settings(arguments, {}) == make_config("dfm", expected)


def test_cosine_learning_rate():
    """From 2 to a tenth of it: 0.2 + 1.8 * (1 + cos(pi * progress)) / 2."""
    rates = learning_rates(iterations=110, lr_schedule="cosine")
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0)
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.1)  # half of the way
    assert rates[35] == pytest.approx(0.2 + 0.9 * (1 + 0.5**0.5))  # a quarter
    assert 0.2 < rates[109] < 0.201 and rates[10:] == sorted(rates[10:], reverse=True)


# ------------------------------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 16, 16)])
def test_orthogonalize(shape):
    """The singular vectors stay. The singular values go five times through the polynomial."""
    x = torch.randn(shape)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.max() < 1.25
    expected = (u * s[:, None]).matmul(vh).float()
    ours = orthogonalize(x.double())  # autocast leaves float64 as it is
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    # bfloat16, if this processor has it, rounds the results of 15 products by 1/256 at most
    assert (orthogonalize(x) - expected).norm() < 15 / 256 * expected.norm()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs a newer PyTorch")
def test_muon_is_torchs():
    """Up to the bfloat16 of torch.optim.Muon; scale, momentum and decay are the same."""
    starts = [0.1 * torch.randn(shape) for shape in [(24, 40), (40, 24), (24, 40)]]
    ours, theirs = [[nn.Parameter(p.clone()) for p in starts] for _ in range(2)]
    optimizers = [
        Muon(ours, lr=0.1, weight_decay=0.2),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, starts):
        assert (a - b).norm() < 0.04 * (b - start).norm() and not torch.equal(a, b)


def names_in(optimizer, model):
    """The names of the weights that an optimizer has, each once."""
    names = {id(p): name for name, p in model.named_parameters()}
    listed = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    return set(listed)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = Transformer(replace(CONFIG, step_aware=True))
    settings = make_config("fsdfm", "tiny")
    muon, adamw = make_optimizers(model, settings)
    parts = ("attention.qkv", "attention.out", "mlp.0", "mlp.2")
    matrices = {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    assert isinstance(muon, Muon) and names_in(muon, model) == matrices
    every = {name for name, _ in model.named_parameters()}
    assert isinstance(adamw, torch.optim.AdamW) and names_in(adamw, model) == every - matrices
    assert [group["weight_decay"] for group in muon.param_groups] == [settings.weight_decay]
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.0]


def test_adamw_alone_decays_all_weights():
    model = Transformer(replace(CONFIG, step_aware=True))
    settings = make_config("fsdfm", "tiny", recipe="paper")
    (adamw,) = make_optimizers(model, settings)
    assert isinstance(adamw, torch.optim.AdamW)
    assert names_in(adamw, model) == {name for name, _ in model.named_parameters()}
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.03]
    assert adamw.param_groups[0]["lr"] == settings.learning_rate == 6e-4
