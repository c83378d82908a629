"""The published recipe where it differs from ours: functions in the place of those of the core.

    python train.py dfm config/paper_small.py
    python sample.py --out out-paper

docs/paper.md lists every difference and what it is worth here. Left as in ours: how embeddings and
output layer start, EMA with a warm-up, which 500,000 iterations do not notice, and times that are
spread evenly over a batch.

Source: FS-DFM (arXiv 2509.20624) and its configuration. Before: distill.py, train.py.
"""

import math

import torch
from torch import nn

import model
from distill import FINEST, forward_kl, sample_steps, shortcut_target
from flow import generalized_kl, sample_path

SHARES = 2.0 ** torch.arange(11)  # of h = 1, 1/2, ..., 1/1024: half of a batch has the finest


def make_optimizers(network, weight_decay):
    """AdamW with weight decay on all weights."""
    return [torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=weight_decay)]


def learning_rate_share(iteration, iterations, warmup, cooldown=1.0):
    """Up, then a cosine down to a tenth, over all the rest."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return 0.55 + 0.45 * math.cos(math.pi * progress)


def student_from(dfm):
    """A step-aware copy of the DFM whose new layers are random."""
    student = model.student_from(dfm)
    for module in student.modules():
        if isinstance(getattr(module, "fuser", None), nn.Linear):
            nn.init.normal_(module.fuser.weight, std=0.02)
    return student


def distillation_loss(student, teacher, x_1, largest_weight=math.inf):
    """The data loss for h = 1/1024 alone, and a teacher whose jump to t = 1 is like any other."""
    n, t = sample_steps(len(x_1), SHARES)
    k = int((n < FINEST).sum())  # rows [:k] have the teacher, rows [k:] the data loss
    n, t = (v.to(x_1.device, non_blocking=True) for v in (n, t))
    x_t = sample_path(x_1, t, student.config.vocab_size)
    logits = student(x_t, t, 1 / n)  # (B, L, V)
    loss = generalized_kl(logits[k:], x_1[k:], x_t[k:], t[k:], largest_weight)
    if k == 0:
        return loss.mean()
    target = shortcut_target(teacher, x_t[:k], t[:k], 1 / n[:k], last=None)
    return torch.cat([forward_kl(target, logits[:k]), loss]).mean()
