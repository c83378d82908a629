"""What only a GPU can show; skipped where there is none. The rest of the suite runs on the CPU everywhere."""

import pytest
import torch
import torch._dynamo

from distill import STEP_WEIGHTS, distillation_loss, update_ema
from flow import categorical, dfm_loss, generate, jump, make_step, sample_source, step_times
from model import ModelConfig, Transformer, autocast
from optimizer import make_optimizers
from test_flow import chi_square, chi_square_bound

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.1}


def network(device="cuda", **changes):
    torch.manual_seed(1)
    made = Transformer(ModelConfig(**{"vocab_size": 300, "block_size": 64, "n_layer": 2, "n_head": 2, "dim": 64, "cond_dim": 32, "step_aware": True} | changes))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made.to(device)


def test_the_same_logits_as_on_the_cpu():
    x_t, t, h = torch.randint(300, (4, 64)), torch.rand(4), torch.full((4,), 0.125)
    on_gpu = network()(x_t.cuda(), t.cuda(), h.cuda()).cpu()
    torch.testing.assert_close(on_gpu, network("cpu")(x_t, t, h), rtol=1e-3, atol=1e-3)


def test_draws():
    p, n = torch.tensor([0.1, 0.2, 0.3, 0.4]), 200_000
    counts = torch.bincount(categorical(p.cuda().expand(n, 4)).cpu(), minlength=4).float()
    assert chi_square(counts, n * p) < chi_square_bound(3)
    x_t, logits = torch.full((1, n), 1).cuda(), p.log().cuda().expand(1, n, 4)
    t, h = torch.tensor([0.5]).cuda(), torch.tensor([0.25]).cuda()
    counts = torch.bincount(jump(x_t, logits, t, h, ModelConfig(vocab_size=4)).flatten().cpu(), minlength=4).float()
    leave = 1 - 0.5**0.8
    assert chi_square(counts, n * torch.cat([leave * p[:1] / 0.8, torch.tensor([1 - leave]), leave * p[2:] / 0.8])) < chi_square_bound(3)


def test_the_host_never_waits():
    """Eight steps of the sampler, and an iteration of either objective with its optimizers, without one synchronisation."""
    student, teacher = network(), network().requires_grad_(False).eval()
    dfm, optimizers = network(step_aware=False), []
    for model in (student, dfm):
        optimizers += make_optimizers(model, SETTINGS)
    x_1, step = torch.randint(300, (16, 64), device="cuda"), make_step(teacher)

    def everything():
        with autocast(x_1.device):
            generate(step, sample_source((4, 64), teacher.config, "cuda"), step_times(8, easing=2.0))
            (distillation_loss(student, teacher, x_1, STEP_WEIGHTS["flat"]) + dfm_loss(dfm, x_1)).backward()
        for model in (student, dfm):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        update_ema(teacher, student, 0.9)

    everything()  # the first pass loads kernels and libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_steps_write_text():
    """The network with its jump as one graph: tokens of the vocabulary, and no second compilation."""
    teacher = network().eval()
    step = torch.compile(make_step(teacher), fullgraph=True)
    torch._dynamo.utils.counters.clear()
    with autocast(torch.device("cuda")):
        x_1 = generate(step, sample_source((4, 64), teacher.config, "cuda"), step_times(8, easing=2.0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert x_1.shape == (4, 64) and 0 <= x_1.min() and x_1.max() < 300
