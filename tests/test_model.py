"""Checks model.py: conditioning, attention, the student and the judge, in this order."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import Config, Transformer, angles, attend, next_token_nll, rotate, student_from

CONFIG = Config(vocab_size=20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16)


def random_network(**changes):
    """A network with no weight zero: the gates of a fresh one are shut."""
    model = Transformer(replace(CONFIG, **changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(B=3):
    """x_t (B, L), t (B,) and h (B,)."""
    return torch.randint(20, (B, 16)), torch.rand(B), torch.tensor([1, 0.125, 1 / 1024])[:B]


@pytest.mark.parametrize("step_aware", [False, True])
def test_a_fresh_network_has_shut_gates(step_aware):
    """adaLN starts at 0: every block passes its input on, so a token's logits depend on that token
    and its place alone, whatever t and h are."""
    model = Transformer(replace(CONFIG, step_aware=step_aware))
    x, t, h = inputs()
    logits, changed = model(x, t, h), x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 20
    assert torch.equal(logits, model(x, 1 - t, h / 2))
    moved = (model(changed, t, h) - logits).abs().amax(-1) > 1e-6  # (B, L)
    assert moved[:, 9].all() and moved.sum() == 3


def test_t_matters_and_h_only_in_a_step_aware_network():
    x, t, h = inputs()
    for step_aware in (False, True):
        model = random_network(step_aware=step_aware)
        assert (model(x, t, h) - model(x, t + 0.1, h)).abs().max() > 1e-3
        assert ((model(x, t, h) - model(x, t, h / 2)).abs().max() > 1e-3) == step_aware


@pytest.mark.parametrize("step_aware", [False, True])
def test_a_time_for_every_token(step_aware):
    """One time for all tokens, written out, changes nothing. Another time of one token matters to
    the prediction of the others, too."""
    model, (x, t, h) = random_network(step_aware=step_aware), inputs()
    token_t = t[:, None].repeat(1, 16)
    torch.testing.assert_close(model(x, token_t, h), model(x, t, h), rtol=1e-5, atol=1e-5)
    token_t[:, 4] = 1
    assert (model(x, token_t, h) - model(x, t, h))[:, 9].abs().max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(causal):
    """Under the causal mask no token sees what follows it; else each sees all."""
    model, (x, t, _) = random_network(causal=causal), inputs(1)
    changed = x.clone()
    changed[0, 9] = (x[0, 9] + 1) % 20
    difference = (model(x, t) - model(changed, t)).abs().amax(-1)[0]  # (L,)
    assert (difference[9:] > 0).all()
    assert (difference[:9] == 0).all() if causal else (difference[:9] > 0).all()


def test_rotary_scores_depend_on_distance_alone():
    """q . k of one q and one k at each of 12 x 12 positions. By hand: entries 1 and 5 of 8 are the
    second pair, turned by 10,000 ** (-1/4) for each position."""
    a = angles(torch.arange(12), 4)
    q, k, e = (rotate(x.expand(1, 1, 12, 8), a.cos(), a.sin())[0, 0]
               for x in (torch.randn(8), torch.randn(8), torch.eye(8)[1]))  # (12, 8) each
    scores = q @ k.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-3
    expected = torch.zeros(8)
    expected[1], expected[5] = math.cos(3 / 10), math.sin(3 / 10)
    torch.testing.assert_close(e[3], expected)


def test_both_forms_of_attention_are_one_function():
    """The formula, used in bfloat16 on CPUs in training, and PyTorch's: values and gradients, to
    the 8 bits of bfloat16."""
    q, k, v, upstream = torch.randn(4, 2, 3, 9, 8).bfloat16()  # (B, heads, L, head_dim) each
    results = []
    for form in (attend, F.scaled_dot_product_attention):
        parts = [part.clone().requires_grad_() for part in (q, k, v)]
        y = form(*parts, False) if form is attend else form(*parts)
        results.append([y.detach(), *torch.autograd.grad(y, parts, upstream)])
    torch.testing.assert_close(*results, rtol=0, atol=0.05)


def test_the_student_starts_as_the_dfm_and_can_learn_h():
    dfm, (x, t, h) = random_network(), inputs()
    student = student_from(dfm)
    logits = student(x, t, h)
    torch.testing.assert_close(logits, dfm(x, t), rtol=1e-4, atol=1e-4)
    logits.square().mean().backward()
    assert student.condition.fuser.weight.grad[:, 16:].abs().max() > 1e-3  # what reads E_h(h)


@torch.no_grad()
def test_next_token_nll_is_a_sum_over_prefixes():
    """Token i by a judge that has read the tokens before it, and no more."""
    judge, (x, _, _) = random_network(causal=True), inputs()
    nll = next_token_nll(judge, x)  # (B, L - 1)
    for i in range(1, 16):
        p = judge(x[:, :i], torch.ones(3))[:, -1].softmax(-1)  # (B, V)
        torch.testing.assert_close(nll[:, i - 1], -p[range(3), x[:, i]].log(), rtol=1e-4, atol=1e-4)
