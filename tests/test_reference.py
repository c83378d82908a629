"""Checks that our parts compute what the published implementation computes, to 1e-5 in float32.

tests/fixtures holds inputs and outputs of that implementation at a tiny size with random weights:
two checkpoints in its format, the logits of their networks, and the quantities of the method one by
one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import flow
from distill import forward_kl, shortcut_target
from extras.published import convert
from sample import network_of

FIXTURES = Path(__file__).parent / "fixtures"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def arrays(name):
    return {key: torch.from_numpy(value)
            for key, value in np.load(FIXTURES / f"{name}.npz").items()}


def published(source):
    """A checkpoint in the published format, a dict of state dicts."""
    return torch.load(FIXTURES / f"apple_checkpoint_{source}.pth", weights_only=True)


# ------------------------------------------------------------------------------------------------
# the networks


@torch.no_grad()
@pytest.mark.parametrize("source, network, x_t, logits", [
    ("uniform", "teacher_model", "x_t", "teacher_logits"),
    ("uniform", "student_model", "x_t", "student_logits"),
    ("uniform", "student_ema_model", "x_t", "ema_logits"),
    ("mask", "student_model", "masked_x_t", "masked_logits"),  # one token more, MASK
])
def test_logits(source, network, x_t, logits):
    given = arrays("model")
    model = network_of(convert(published(source), network, vocab_size=40))
    found = model(given[x_t], given["t"], given["dt"])
    torch.testing.assert_close(found, given[logits], **CLOSE)


@torch.no_grad()
def test_prefixes_of_wrappers_are_dropped():
    """Those that DistributedDataParallel and torch.compile put before the names of weights."""
    given, state = arrays("model"), published("uniform")["student_model"]
    wrapped = {"module._orig_mod." + name: value for name, value in state.items()}
    model = network_of(convert({"student_model": wrapped}, "student_model", 4, vocab_size=40))
    logits = model(given["x_t"], given["t"], given["dt"])
    torch.testing.assert_close(logits, given["student_logits"], **CLOSE)


# ------------------------------------------------------------------------------------------------
# the method, quantity by quantity


@pytest.fixture(scope="module")
def given():
    return arrays("flow")


def test_cumulative_scalar(given):
    g = flow.cumulative_scalar(given["t"], given["h"])
    torch.testing.assert_close(g, given["cumulative_scalar"], **CLOSE)


@pytest.mark.parametrize("shift, all_jump", [(-1e-5, True), (1e-5, False)])
def test_jump_probability(given, shift, all_jump, monkeypatch):
    """With random numbers just below the published P(jump) all tokens jump; just above, none."""
    u = given["jump_probability"] + shift
    monkeypatch.setattr(torch, "rand_like", lambda p: u)
    x = flow.jump(given["x_t"], given["logits"], given["t"], given["h"])
    assert (x != given["x_t"]).all() if all_jump else torch.equal(x, given["x_t"])


def test_generator(given, monkeypatch):
    """A token's row of rates is g times the p that jump draws from: 0 for the token itself."""
    drawn_from = []
    monkeypatch.setattr(flow, "draw", lambda p: drawn_from.append(p) or given["x_t"])
    flow.jump(given["x_t"], given["logits"], given["t"], given["h"])
    generator = given["cumulative_scalar"][:, None, None] * drawn_from[0]
    torch.testing.assert_close(generator, given["generator"], **CLOSE)


def test_generalized_kl(given):
    loss = flow.generalized_kl(given["logits"], given["x_1"], given["x_t"], given["t"])
    torch.testing.assert_close(loss, given["generalized_kl"], **CLOSE)


def test_forward_kl(given):
    kl = forward_kl(given["teacher_logits"], given["logits"])
    torch.testing.assert_close(kl, given["forward_kl"], **CLOSE)


def test_shortcut_target(given):
    """Times, step sizes and weights of the published "RK-4", by its stub network, which ignores the
    tokens: test_method.py checks the jumps. The published code has no special last step."""

    def stub(x_t, t, h):
        return (given["stub_W"] + given["stub_A"] * torch.sin(3 * t)[:, None, None]
                + given["stub_C"] * h[:, None, None])

    never = torch.zeros(3, dtype=torch.bool)
    target = shortcut_target(stub, given["x_t"], given["t"], given["h_teacher"], never)
    torch.testing.assert_close(target, given["rk4_logits"], **CLOSE)
