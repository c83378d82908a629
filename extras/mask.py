"""The mask source: noise is MASK everywhere, and a token that is written stays.

    python train.py dfm config/mask.py       then `sample.py --out out-mask`

MASK is one token more, the last: id V of V + 1. At time t each token of x_t is that of the text
with probability kappa(t), else MASK. A token that is shown is known to be right, p(x_t) = 1 ("carry
over"), so the loss is the weighted cross entropy of the masked ones. p(MASK) = 0, so a masked token
jumps with P = 1 - S ** (1 - 0) = 1 - S: FS-DFM's rule is the ancestral step of MDLM here (Sahoo et
al. 2024), and the cumulative scalar is new for the uniform source alone. A mistake cannot be
corrected: uniform steps are best.

config/mask.py puts these functions in the place of those of the core. Before: flow.py, distill.py.
"""

import math

import torch

import distill
import flow
import model
from distill import forward_kl, sample_steps
from flow import jump, kappa, rate


def Config(vocab_size, *arguments, **options):
    """A model.Config with one token more, MASK."""
    return model.Config(vocab_size + 1, *arguments, **options)


def mask_id(network):
    return network.config.vocab_size - 1


def text_logits(logits):
    """(B, L, V + 1) in float32, where MASK is never text."""
    logits = logits.float()
    return torch.cat([logits[..., :-1], torch.full_like(logits[..., -1:], -math.inf)], dim=-1)


def sample_path(x_1, t, MASK):
    is_text = torch.rand(x_1.shape, device=x_1.device) < kappa(t)[:, None]
    return torch.where(is_text, x_1, MASK)


# ------------------------------------------------------------------------------------------------
# losses


def masked_cross_entropy(logits, x_1, x_t, t, MASK, largest_weight):
    """kappa' / (1 - kappa) [x_t = MASK] (-log p(x_1)): (B, L) nats, at h -> 0 a bound."""
    log_p = text_logits(logits).log_softmax(-1)
    nll = -log_p.gather(-1, x_1[..., None]).squeeze(-1)  # (B, L)
    return torch.where(x_t == MASK, rate(t).clamp(max=largest_weight)[:, None] * nll, 0)


def dfm_loss(network, x_1, largest_weight=math.inf):
    MASK = mask_id(network)
    t = flow.spread_times(len(x_1), x_1.device)  # (B,)
    x_t = sample_path(x_1, t, MASK)
    return masked_cross_entropy(network(x_t, t), x_1, x_t, t, MASK, largest_weight).mean()


@torch.no_grad()
def shortcut_target(teacher, x_t, t, h, last):
    """distill.shortcut_target for masked tokens, (B, L, V + 1) logits. A token that a jump has just
    shown has no prediction of its own, as nothing trains it: it keeps the one before."""
    MASK, half = mask_id(teacher), h / 2

    def predict(x, time, before):
        logits = teacher(x, time, half).float()
        return logits if before is None else torch.where((x == MASK)[..., None], logits, before)

    l1 = predict(x_t, t, None)
    x_a = unmask(x_t, l1, t, half)
    l2 = predict(x_a, t + half, l1)
    x_b = unmask(x_a, l2, t + half, half, last)
    l3 = predict(x_b, t + half, l2)
    x_c = unmask(x_b, l3, t + half, half, last)
    l4 = predict(x_c, t + h, l3)
    return (l1 + 2 * l2 + 2 * l3 + l4) / 6


def distillation_loss(student, teacher, x_1, largest_weight=math.inf):
    B, L = x_1.shape
    MASK = mask_id(student)
    n, t = sample_steps(B, distill.SHARES)
    k = int((n < L // 2).sum())  # rows [:k] have the teacher, rows [k:] the data loss
    n, t = (v.to(x_1.device, non_blocking=True) for v in (n, t))
    h, last = 1 / n, t + 1 / n == 1
    x_t = sample_path(x_1, t, MASK)
    logits = student(x_t, t, h)  # (B, L, V + 1)
    loss = masked_cross_entropy(logits[k:], x_1[k:], x_t[k:], t[k:], MASK, largest_weight)
    if k == 0:
        return loss.mean()
    target = shortcut_target(teacher, x_t[:k], t[:k], h[:k], last[:k])
    kl = forward_kl(target[..., :-1], logits[:k, :, :-1])
    return torch.cat([torch.where(x_t[:k] == MASK, kl, 0), loss]).mean()


# ------------------------------------------------------------------------------------------------
# sampler


def unmask(x_t, logits, t, h, last=None):
    """flow.jump of the masked tokens."""
    return torch.where(x_t == logits.shape[-1] - 1, jump(x_t, text_logits(logits), t, h, last), x_t)


def generate(network, x, steps, power=1.0, step=unmask, on_step=None):
    """flow.generate from MASK everywhere; x (B, L) says how many texts and how long."""
    x_0 = torch.full_like(x, mask_id(network))
    return flow.generate(network, x_0, steps, power, step, on_step)
