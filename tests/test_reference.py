"""Proves that our parts compute what the published implementation computes, to 1e-5 in float32.

tests/fixtures holds inputs and outputs of that implementation at a tiny size with random weights: two checkpoints in
its format, the logits of their networks, and the quantities of the method one by one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint import UserError
from distill import forward_kl, shortcut_answers, target_logits
from flow import cumulative_scalar, generalized_kl, jump_probability
from model import ModelConfig
from released import is_released, load_released

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def arrays(name):
    return {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / f"{name}.npz").items()}


def released(source):
    return torch.load(FIXTURES / f"apple_checkpoint_{source}.pth", weights_only=True, mmap=True)


@pytest.fixture(scope="module")
def networks():
    return arrays("model")


@pytest.fixture(scope="module")
def flow():
    return arrays("flow")


# the networks


@pytest.mark.parametrize("network, key", [("teacher_model", "teacher_logits"), ("student_model", "student_logits"), ("student_ema_model", "ema_logits")])
@torch.no_grad()
def test_logits(networks, network, key):
    model = load_released(released("uniform"), network, vocab_size=40)
    assert model.config.step_aware == (network != "teacher_model") and model.config.n_head == int(networks["n_heads"])
    torch.testing.assert_close(model(networks["x_t"], networks["t"], networks["dt"]), networks[key], **CLOSE)


@torch.no_grad()
def test_logits_with_mask(networks):
    model = load_released(released("mask"), "student_model", vocab_size=40)
    assert model.config.source == "mask" and model.config.mask_id == 40
    torch.testing.assert_close(model(networks["masked_x_t"], networks["t"], networks["dt"]), networks["masked_logits"], **CLOSE)


@torch.no_grad()
def test_attention_written_out_for_training_is_the_same(networks):
    """With gradients, on a CPU, attention takes another path."""
    model = load_released(released("uniform"), "student_model", vocab_size=40)
    with torch.enable_grad():
        logits = model(networks["x_t"], networks["t"], networks["dt"])
    torch.testing.assert_close(logits.detach(), networks["student_logits"], **CLOSE)


@torch.no_grad()
def test_prefixes_of_wrappers_are_stripped(networks):
    checkpoint = released("uniform")
    checkpoint["student_model"] = {"module._orig_mod." + name: value for name, value in checkpoint["student_model"].items()}
    model = load_released(checkpoint, "student_model", vocab_size=40)
    torch.testing.assert_close(model(networks["x_t"], networks["t"], networks["dt"]), networks["student_logits"], **CLOSE)


@torch.no_grad()
def test_a_file_that_holds_a_many_step_model_alone(networks):
    checkpoint = {"model": released("uniform")["teacher_model"], "step": 1}
    assert is_released(checkpoint)
    torch.testing.assert_close(load_released(checkpoint, vocab_size=40)(networks["x_t"], networks["t"]), networks["teacher_logits"], **CLOSE)


def test_weights_are_not_copied():
    """All but q, k, v, which are joined, are the file's own memory."""
    checkpoint = released("uniform")
    model = load_released(checkpoint, "student_model", vocab_size=40)
    theirs = {value.data_ptr() for value in checkpoint["student_model"].values()}
    copied = [name for name, value in model.named_parameters() if value.data_ptr() not in theirs]
    assert copied == ["blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"]


def damaged(change):
    checkpoint = released("uniform")
    change(checkpoint, checkpoint["student_ema_model"])
    return checkpoint


@pytest.mark.parametrize(
    "change, arguments, line",
    [
        (lambda c, s: s.pop("blocks.1.norm2.weight"), {}, "lacks blocks.1.norm2.weight"),
        (lambda c, s: s.pop("blocks.0.kw.weight"), {}, "block 0 lacks its k or v"),
        (lambda c, s: s.update(surprise=torch.zeros(1)), {}, "has the unknown surprise"),
        (lambda c, s: s.pop("vocab_embed.weight"), {}, "not an FS-DFM network"),
        (lambda c, s: s.update({"output_layer.linear.bias": torch.zeros(3)}), {}, "other sizes"),
        (lambda c, s: None, {"n_head": 0}, "0 heads do not fit"),
        (lambda c, s: None, {"n_head": 2}, "2 heads do not fit this checkpoint, which has 4"),
        (lambda c, s: s.pop("rotary_emb.inv_freq"), {}, "give --n-head"),
        (lambda c, s: s.pop("rotary_emb.inv_freq"), {"n_head": 5}, "5 heads do not fit"),
        (lambda c, s: None, {"vocab_size": 50257}, "40 tokens, and its tokenizer 50257"),
        (lambda c, s: c.pop("student_ema_model"), {}, "has no student_ema_model, only student_model, teacher_model"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change, arguments, line):
    with pytest.raises(UserError) as error:
        load_released(damaged(change), **({"vocab_size": 40} | arguments))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_heads_from_the_flag():
    checkpoint = damaged(lambda c, s: s.pop("rotary_emb.inv_freq"))
    assert load_released(checkpoint, n_head=4, vocab_size=40).config.n_head == 4


def test_ours_is_not_taken_for_a_released_one():
    assert is_released(released("mask")) and not is_released({"model": {}, "ema": None})


# the method, quantity by quantity


def config_of(flow, source="uniform"):
    return ModelConfig(vocab_size=40, block_size=24, source=source, exponent=float(flow["exponent"]))


def test_cumulative_scalar(flow):
    torch.testing.assert_close(cumulative_scalar(flow["t"], flow["h"], float(flow["exponent"])), flow["cumulative_scalar"], **CLOSE)


def test_jump_probability(flow):
    p_stay = flow["logits"].softmax(-1).gather(-1, flow["x_t"][..., None]).squeeze(-1)
    p_jump = jump_probability(p_stay, flow["t"][:, None], flow["h"][:, None], float(flow["exponent"]))
    torch.testing.assert_close(p_jump, flow["jump_probability"], **CLOSE)


def test_generator(flow):
    """The rate matrix row of every token, g * p off the diagonal, from our scalar and the posterior."""
    scalar = cumulative_scalar(flow["t"], flow["h"], float(flow["exponent"]))
    generator = (scalar[:, None, None] * flow["logits"].softmax(-1)).scatter(-1, flow["x_t"][..., None], 0.0)
    torch.testing.assert_close(generator, flow["generator"], **CLOSE)
    rate_away = generator.sum(-1)  # and our P(jump) is 1 - exp(-h * the whole row)
    p_stay = flow["logits"].softmax(-1).gather(-1, flow["x_t"][..., None]).squeeze(-1)
    ours = jump_probability(p_stay, flow["t"][:, None], flow["h"][:, None], float(flow["exponent"]))
    torch.testing.assert_close(ours, 1 - torch.exp(-flow["h"][:, None] * rate_away), **CLOSE)


def test_generalized_kl(flow):
    loss = generalized_kl(flow["logits"], flow["x_1"], flow["x_t"], flow["t"], config_of(flow))
    torch.testing.assert_close(loss, flow["generalized_kl"], **CLOSE)


def test_forward_kl(flow):
    torch.testing.assert_close(forward_kl(flow["teacher_logits"], flow["logits"]), flow["forward_kl"], **CLOSE)


@pytest.mark.parametrize("rule, key", [("rk4", "rk4_logits"), ("heun", "heun_logits")])
def test_teacher_targets(flow, rule, key):
    """The reference's stub network answers W + A sin(3 t) + C h, whatever the tokens: times and step sizes must be
    those of the published teachers."""

    class Stub:
        config = config_of(flow)
        read_out = staticmethod(lambda hidden: hidden)

        def __call__(self, x_t, t, h, hidden):
            return flow["stub_W"] + flow["stub_A"] * torch.sin(3 * t)[:, None, None] + flow["stub_C"] * h[:, None, None]

    target = target_logits(Stub(), *shortcut_answers(Stub(), flow["x_t"], flow["t"], flow["h_teacher"], rule))
    torch.testing.assert_close(target, flow[key], **CLOSE)
