"""The optimizers: Muon for the matrices inside the blocks and AdamW for the rest, or AdamW alone.

Muon is momentum whose every update is made orthogonal: all its singular values become about 1, so
that rare directions of a matrix's gradient count as much as frequent ones. A few rounds of a
polynomial (Newton-Schulz) do that without a singular value decomposition, since

    X -> a X + b (X X^T) X + c (X X^T)^2 X

acts on every singular value alone, s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5. After 5 rounds, s from
0.003 to 1 has become 0.68 to 1.2.

torch.optim.Muon is the same rule, one matrix at a time and always in bfloat16. Here matrices of
one shape are stacked, in float32 where a processor has no bfloat16 products: 30 ms instead of 100
of a training step of 430 ms there. The paper uses AdamW (--optimizer adamw).

Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon. The scale 0.2 sqrt(max(m, n)), with
which one learning rate fits both, is of Liu et al. 2025 (arXiv 2502.16982).
"""

import math
import os

import torch

from common.command import UserError
from common.device import autocast
from model import Transformer

BETAS = (0.9, 0.95)  # of AdamW


@torch.no_grad()
def orthogonalize(x):
    """(N, m, n) -> (N, m, n) float32: the same singular vectors, with singular values near 1."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the products X X^T are smaller that way
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # all singular values in (0, 1]
    with autocast(x.device):
        for _ in range(5):
            square = x @ x.mT  # (N, m, m)
            # baddbmm(a, b, c) = beta a + alpha b c, in one pass over the memory
            factor = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, factor, x, beta=3.4445)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """p <- (1 - lr * weight_decay) p - lr * 0.2 sqrt(max(m, n)) * orthogonalize(momentum), with
    Nesterov momentum of the gradient."""

    def __init__(self, matrices, lr, weight_decay, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for matrices in by_shape.values():
                self.update(matrices, group)

    def update(self, matrices, group):
        """One step for matrices of one shape."""
        directions = []
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"]
            momentum.lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(momentum, group["momentum"]))
        size = group["lr"] * 0.2 * max(matrices[0].shape) ** 0.5
        for p, direction in zip(matrices, orthogonalize(torch.stack(directions))):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction, alpha=-size)


def make_optimizers(model, settings):
    """[Muon, AdamW]: Muon has the matrices of attention and MLP, AdamW all other weights, without
    weight decay. With settings.optimizer "adamw": [AdamW], with weight decay on all weights."""
    rate, weight_decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        parameters = list(model.parameters())
        return [torch.optim.AdamW(parameters, rate, BETAS, weight_decay=weight_decay, fused=True)]
    matrices = []
    for block in model.blocks:
        for part in (block.attention, block.mlp):
            matrices += [p for p in part.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, rate, weight_decay),
        torch.optim.AdamW(rest, rate, BETAS, weight_decay=0.0, fused=True),
    ]


def set_learning_rate(optimizers, iteration, settings):
    """A linear rise over `warmup` iterations, then by settings.lr_schedule:

    "linear": constant, and a linear fall to zero over the last part, `decay`, of the iterations.
    "cosine": a cosine to a tenth, as published.

    An optimizer whose groups have a "factor" has that many times the learning rate.
    """
    total, warmup = settings.iterations, settings.warmup
    rise = (iteration + 1) / max(1, warmup)
    if settings.lr_schedule == "cosine":
        progress = (iteration - warmup) / max(1, total - warmup)
        fall = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    else:
        fall = (total - iteration) / max(1.0, settings.decay * total)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = settings.learning_rate * group.get("factor", 1.0)
            group["lr"] = rate * min(rise, fall, 1.0)


def must_fit(config, device):
    """UserError if training needs more memory than the device has: 16 bytes a weight, for itself,
    its gradient and two moments."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in Transformer(config).parameters())
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        try:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError):  # Windows, some Pythons of macOS
            return
    if 16 * weights > memory:
        raise UserError(
            f"a network of {weights / 1e9:.1f} billion weights takes {16 * weights / 1e9:.0f} GB "
            f"to train, and there are {memory / 1e9:.0f}: use a smaller --dim or --n-layer"
        )
