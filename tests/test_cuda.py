"""Checks that need a CUDA GPU, skipped where there is none. The other tests run on a CPU."""

import pytest
import torch
import torch._dynamo

from common.device import autocast
from common.optimizer import make_optimizers
from distill import distillation_loss, update_ema
from flow import Sampler, categorical, dfm_loss, generate, jump, sample_source
from model import ModelConfig, Transformer
from train import make_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SHAPE = {"vocab_size": 300, "block_size": 64, "n_layer": 2, "n_head": 2, "dim": 64, "cond_dim": 32}


def network(device="cuda", step_aware=True):
    torch.manual_seed(1)
    made = Transformer(ModelConfig(**SHAPE, step_aware=step_aware))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made.to(device)


def test_the_same_logits_as_on_the_cpu():
    x_t, t, h = torch.randint(300, (4, 64)), torch.rand(4), torch.full((4,), 0.125)
    on_gpu = network()(x_t.cuda(), t.cuda(), h.cuda()).cpu()
    torch.testing.assert_close(on_gpu, network("cpu")(x_t, t, h), rtol=1e-3, atol=1e-3)


def shares_match(tokens, expected):
    """Whether the share of each token is within 4.5 standard errors of the expected one."""
    share = torch.bincount(tokens.flatten().cpu(), minlength=len(expected)) / tokens.numel()
    error = (expected * (1 - expected) / tokens.numel()).sqrt()
    return ((share - expected).abs() < 4.5 * error).all()


def test_draws():
    """200,000 draws, and as many jumps, against their probabilities."""
    torch.manual_seed(1)
    p, n = torch.tensor([0.1, 0.2, 0.3, 0.4]), 200_000
    assert shares_match(categorical(p.cuda().expand(n, 4)), p)
    x_t, logits = torch.full((1, n), 1).cuda(), p.log().cuda().expand(1, n, 4)
    t, h = torch.tensor([0.5]).cuda(), torch.tensor([0.25]).cuda()
    p_jump = 1 - 0.5**0.8  # S = 1/2, p(x_t) = 0.2
    expected = p_jump * p / 0.8
    expected[1] = 1 - p_jump
    assert shares_match(jump(x_t, logits, t, h, ModelConfig(vocab_size=4)), expected)


def train_and_sample(student, teacher, dfm, optimizers, x_1, settings):
    """Eight steps of the sampler, and an iteration of either objective with its optimizers."""
    with autocast(x_1.device):
        generate(teacher, sample_source((4, 64), teacher.config, "cuda"), 8)
        loss = distillation_loss(student, teacher, x_1, settings) + dfm_loss(dfm, x_1)
    loss.backward()
    for model in (student, dfm):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    update_ema(teacher, student, 0.9)


def test_the_host_never_waits():
    """Not one synchronisation of CPU and GPU in training and sampling."""
    student, teacher, dfm = network(), network(), network(step_aware=False)
    teacher.requires_grad_(False).eval()
    settings = make_config("fsdfm", "tiny", step_weights="uniform", data_steps=1024)
    optimizers = make_optimizers(student, settings) + make_optimizers(dfm, settings)
    x_1 = torch.randint(300, (16, 64), device="cuda")
    everything = (student, teacher, dfm, optimizers, x_1, settings)
    train_and_sample(*everything)  # the first pass loads kernels and libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_and_sample(*everything)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_steps_write_text():
    """Network and jump as one graph: tokens of the vocabulary, and no second compilation."""
    teacher = network().eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with autocast(torch.device("cuda")):
        for _ in range(2):
            x_0 = sample_source((4, 64), teacher.config, "cuda")
            x_1 = generate(teacher, x_0, 8, Sampler(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert x_1.shape == (4, 64) and 0 <= x_1.min() and x_1.max() < 300
