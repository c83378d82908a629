"""Checks that need a CUDA GPU, skipped where there is none. The other tests run on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from exact import have_distribution
from flow import dfm_loss, draw
from model import Config, Transformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
ROOT = Path(__file__).resolve().parent.parent


def network(device="cuda", **kind):
    torch.manual_seed(1)
    model = Transformer(Config(300, 64, 2, 2, 64, 32, **kind))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.to(device)


def test_the_same_logits_as_on_the_cpu():
    x_t, t = torch.randint(300, (4, 64)), torch.rand(4)
    on_gpu, on_cpu = network()(x_t.cuda(), t.cuda()).cpu(), network("cpu")(x_t, t)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


def test_draws():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert have_distribution(draw(p.cuda().expand(200_000, 4)).cpu(), p)


def test_a_compiled_training_step_is_the_same():
    """The loss and every gradient. A compiled function has other random numbers: x_t is given."""
    x_1, x_t = torch.randint(300, (2, 8, 64), device="cuda")
    model, t = network(), torch.rand(8, device="cuda")

    def loss_of(model):
        return F.cross_entropy(model(x_t, t).float().mT, x_1)
    results = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True)):
        model.zero_grad()
        loss = function(model)
        loss.backward()
        results.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-4)
    assert torch.compile(dfm_loss, fullgraph=True)(model, x_1).isfinite()


def test_training(tmp_path):
    for stage in ("judge", "dfm", "fsdfm"):
        command = [sys.executable, "train.py", stage, "config/tiny.py", f"--out={tmp_path}"]
        subprocess.run(command, cwd=ROOT, check=True)
        assert torch.load(tmp_path / f"{stage}.pt", weights_only=True)["iteration"] > 0
