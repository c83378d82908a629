"""How the weights move: Muon for the matrices inside the blocks, AdamW for the rest, and the learning rate over time.

Muon is momentum whose every update is made orthogonal: all its singular values become 1, so that the rare directions of
a matrix's gradient count as much as the loud ones. A few rounds of a polynomial (Newton-Schulz) do that without a
singular value decomposition, since  X -> a X + b (X X^T) X + c (X X^T)^2 X  acts on each singular value alone:

    s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5        after 5 rounds, s from 0.003 to 1 is between 0.68 and 1.2

torch.optim.Muon is the same rule, a matrix at a time and always in bfloat16. Here matrices of one shape go together, in
float32 where a processor has no bfloat16 units: the two took 30 and 100 ms of a 430 ms training step (README, "Choices").
Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale 0.2 sqrt(max(m, n)), which makes one learning
rate fit both, from Liu et al. 2025 (arXiv 2502.16982). Read next: train.py.
"""

import os

import torch

from checkpoint import UserError
from model import Transformer, autocast


@torch.no_grad()
def orthogonalize(x):
    """(N, m, n) -> the same shape in float32, every matrix with singular values near 1 in the same directions."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products X X^T are smaller that way
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # all singular values in (0, 1]
    with autocast(x.device):
        for _ in range(5):
            square = x @ x.mT  # (N, m, m)
            x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """p <- (1 - lr * weight_decay) p - lr * 0.2 sqrt(max(m, n)) * orthogonalize(Nesterov momentum of the gradient)."""

    def __init__(self, matrices, lr, weight_decay, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in by_shape.items():
                directions = []
                for p in matrices:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"]
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    directions.append(p.grad.lerp(momentum, group["momentum"]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(matrices, orthogonalize(torch.stack(directions))):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)


def make_optimizers(model, settings):
    """[Muon, AdamW]. Embeddings, the output layer, biases and the conditioning are AdamW's, without weight decay."""
    matrices = [p for block in model.blocks for part in (block.attention, block.mlp) for p in part.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    rate = settings["learning_rate"]
    return [
        Muon(matrices, lr=rate, weight_decay=settings["weight_decay"]),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def must_fit(config, device):
    """UserError if the network cannot be trained in the device's memory: 16 bytes a weight, for itself, its gradient and two moments."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in Transformer(config).parameters())
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 16 * weights > memory:
        raise UserError(f"a network of {weights / 1e9:.1f} billion weights takes {16 * weights / 1e9:.0f} GB to train, and there are {memory / 1e9:.0f}: use a smaller --dim or --n-layer")


def learning_rate(iteration, settings):
    """Rises linearly over `warmup` iterations, stays, falls linearly to zero over the last part, `decay`."""
    rise = (iteration + 1) / max(1, settings["warmup"])
    fall = (settings["iterations"] - iteration) / max(1.0, settings["decay"] * settings["iterations"])
    return settings["learning_rate"] * min(rise, fall, 1.0)
