"""Checks that our parts compute what the published implementation computes, to 1e-5 in float32.

tests/fixtures holds inputs and outputs of that implementation at a tiny size with random weights:
two checkpoints in its format, the logits of their networks, and the quantities of the method one by
one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.command import UserError
from common.published import is_published, load_published
from distill import TARGETS, forward_kl
from flow import cumulative_scalar, generalized_kl, jump_probability
from model import ModelConfig

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LOGITS = [
    ("teacher_model", "teacher_logits"),
    ("student_model", "student_logits"),
    ("student_ema_model", "ema_logits"),
]


def arrays(name):
    stored = np.load(FIXTURES / f"{name}.npz")
    return {key: torch.from_numpy(value) for key, value in stored.items()}


def published(source):
    """The published format's dict of state dicts, of random weights."""
    path = FIXTURES / f"apple_checkpoint_{source}.pth"
    return torch.load(path, weights_only=True, mmap=True)


@pytest.fixture(scope="module")
def networks():
    return arrays("model")


@pytest.fixture(scope="module")
def flow():
    return arrays("flow")


# ------------------------------------------------------------------------------------------------
# the networks


@pytest.mark.parametrize("network, key", LOGITS)
@torch.no_grad()
def test_logits(networks, network, key):
    model = load_published(published("uniform"), network, vocab_size=40)
    assert model.config.step_aware == (network != "teacher_model")
    assert model.config.n_head == int(networks["n_heads"])
    logits = model(networks["x_t"], networks["t"], networks["dt"])
    torch.testing.assert_close(logits, networks[key], **CLOSE)


@torch.no_grad()
def test_logits_with_mask(networks):
    model = load_published(published("mask"), "student_model", vocab_size=40)
    assert model.config.source == "mask" and model.config.mask_id == 40
    logits = model(networks["masked_x_t"], networks["t"], networks["dt"])
    torch.testing.assert_close(logits, networks["masked_logits"], **CLOSE)


def test_logits_with_gradients(networks):
    """As in training, where long texts on a CPU have another form of attention."""
    model = load_published(published("uniform"), "student_model", vocab_size=40)
    logits = model(networks["x_t"], networks["t"], networks["dt"])
    assert logits.requires_grad
    torch.testing.assert_close(logits.detach(), networks["student_logits"], **CLOSE)


@torch.no_grad()
def test_prefixes_of_wrappers_are_dropped(networks):
    checkpoint = published("uniform")
    state = checkpoint["student_model"]
    wrapped = {"module._orig_mod." + name: value for name, value in state.items()}
    model = load_published({"student_model": wrapped}, "student_model", vocab_size=40)
    logits = model(networks["x_t"], networks["t"], networks["dt"])
    torch.testing.assert_close(logits, networks["student_logits"], **CLOSE)


@torch.no_grad()
def test_a_file_that_holds_a_dfm_alone(networks):
    checkpoint = {"model": published("uniform")["teacher_model"], "step": 1}
    assert is_published(checkpoint)
    logits = load_published(checkpoint, vocab_size=40)(networks["x_t"], networks["t"])
    torch.testing.assert_close(logits, networks["teacher_logits"], **CLOSE)


def test_weights_are_not_copied():
    """All but q, k, v, which are joined, are the file's own memory."""
    checkpoint = published("uniform")
    model = load_published(checkpoint, "student_model", vocab_size=40)
    theirs = {value.data_ptr() for value in checkpoint["student_model"].values()}
    copied = [name for name, value in model.named_parameters() if value.data_ptr() not in theirs]
    assert copied == ["blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"]


def damaged(change):
    """A checkpoint c after change(c, s), where s is its student's EMA."""
    checkpoint = published("uniform")
    change(checkpoint, checkpoint["student_ema_model"])
    return checkpoint


BIAS_OF_3 = {"output_layer.linear.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    "change, arguments, line",
    [
        (lambda c, s: s.pop("blocks.1.norm2.weight"), {}, "lacks blocks.1.norm2.weight"),
        (lambda c, s: s.pop("blocks.0.kw.weight"), {}, "block 0 lacks its k or v"),
        (lambda c, s: s.update(surprise=torch.zeros(1)), {}, "has the unknown surprise"),
        (lambda c, s: s.pop("vocab_embed.weight"), {}, "not an FS-DFM network"),
        (lambda c, s: s.update(BIAS_OF_3), {}, "other sizes"),
        (lambda c, s: None, {"n_head": 0}, "0 heads do not fit"),
        (lambda c, s: None, {"n_head": 2}, "2 heads do not fit this checkpoint, which has 4"),
        (lambda c, s: s.pop("rotary_emb.inv_freq"), {}, "give --n-head"),
        (lambda c, s: s.pop("rotary_emb.inv_freq"), {"n_head": 5}, "5 heads do not fit"),
        (lambda c, s: None, {"vocab_size": 50257}, "40 tokens, and its tokenizer 50257"),
        (
            lambda c, s: c.pop("student_ema_model"),
            {},
            "has no student_ema_model, only student_model, teacher_model",
        ),
    ],
)
def test_errors_of_one_line(change, arguments, line):
    with pytest.raises(UserError) as error:
        load_published(damaged(change), **({"vocab_size": 40} | arguments))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_heads_from_the_flag():
    checkpoint = damaged(lambda c, s: s.pop("rotary_emb.inv_freq"))
    assert load_published(checkpoint, n_head=4, vocab_size=40).config.n_head == 4


def test_our_own_format_is_not_the_published_one():
    assert is_published(published("mask")) and is_published(published("uniform"))
    for ours in ({"model": {}, "ema": None}, {"model": {"embedding.weight": 0}}, [1, 2], None):
        assert not is_published(ours)


# ------------------------------------------------------------------------------------------------
# the method, quantity by quantity


def config_of(flow):
    return ModelConfig(vocab_size=40, block_size=24, exponent=float(flow["exponent"]))


def our_jump_probability(flow):
    """P(jump) of every token, (B, L)."""
    p_stay = flow["logits"].softmax(-1).gather(-1, flow["x_t"][..., None]).squeeze(-1)
    t, h = flow["t"][:, None], flow["h"][:, None]
    return jump_probability(p_stay, t, h, float(flow["exponent"]))


def test_cumulative_scalar(flow):
    scalar = cumulative_scalar(flow["t"], flow["h"], float(flow["exponent"]))
    torch.testing.assert_close(scalar, flow["cumulative_scalar"], **CLOSE)


def test_jump_probability(flow):
    torch.testing.assert_close(our_jump_probability(flow), flow["jump_probability"], **CLOSE)


def test_generator(flow):
    """A token's row of rates is g * p off the diagonal, and P(jump) is 1 - exp(-h * its sum)."""
    scalar = cumulative_scalar(flow["t"], flow["h"], float(flow["exponent"]))
    rates = scalar[:, None, None] * flow["logits"].softmax(-1)  # (B, L, V)
    generator = rates.scatter(-1, flow["x_t"][..., None], 0.0)
    torch.testing.assert_close(generator, flow["generator"], **CLOSE)
    p_jump = 1 - torch.exp(-flow["h"][:, None] * generator.sum(-1))
    torch.testing.assert_close(our_jump_probability(flow), p_jump, **CLOSE)


def test_generalized_kl(flow):
    loss = generalized_kl(flow["logits"], flow["x_1"], flow["x_t"], flow["t"], config_of(flow))
    torch.testing.assert_close(loss, flow["generalized_kl"], **CLOSE)


def test_forward_kl(flow):
    kl = forward_kl(flow["teacher_logits"], flow["logits"])
    torch.testing.assert_close(kl, flow["forward_kl"], **CLOSE)


class Stub:
    """The reference's stub network: logits W + A sin(3 t) + C h, whatever the tokens."""

    def __init__(self, flow):
        self.flow, self.config = flow, config_of(flow)

    def __call__(self, x_t, t, h):
        of_time = self.flow["stub_A"] * torch.sin(3 * t)[:, None, None]
        return self.flow["stub_W"] + of_time + self.flow["stub_C"] * h[:, None, None]


@pytest.mark.parametrize("rule, key", [("rk4", "rk4_logits"), ("heun", "heun_logits")])
def test_teacher_targets(flow, rule, key):
    """The times, step sizes and weights are those of the published teachers.

    Nothing is said about the jumps, since the stub ignores the tokens. The published code has no
    special last step: `last` is None. test_distill.py checks the jumps.
    """
    target = TARGETS[rule](Stub(flow), flow["x_t"], flow["t"], flow["h_teacher"], last=None)
    torch.testing.assert_close(target, flow[key], **CLOSE)
