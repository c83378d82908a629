"""The shortcut teacher: one step of size h learns to predict what two steps of h/2 predict.

That is the idea of shortcut models (Frans et al. 2024); the chain of four calls is FS-DFM's. The
teacher is the student itself, its weights averaged over time (EMA). Fine steps learn from text, and
every larger step learns from steps of half its size. All calls are told h/2. All jumps are
flow.jump, and one that ends at t + h = 1 draws x_1 ~ p:

    l1 = teacher(x_t, t)              x_a = jump(x_t, l1) from t to t + h/2
    l2 = teacher(x_a, t + h/2)        x_b = jump(x_a, l2) from t + h/2 to t + h
    l3 = teacher(x_b, t + h/2)        x_c = jump(x_b, l3) from t + h/2 to t + h
    l4 = teacher(x_c, t + h)          target = (l1 + 2 l2 + 2 l3 + l4) / 6

The paper calls it RK-4. The weights are those of Runge-Kutta, but the jumps are random, and each
starts where the one before ended, so no order of accuracy is claimed. What does it teach? Noise
that has not jumped is still there at t + h/2, so the later predictions lean towards x_t, and tokens
of one step can agree a little: even a mean of probabilities gains. A mean of *logits* is sharper,
and gains more. x_b and x_c have jumped half a step further than the time they are read at.

Sources: FS-DFM (arXiv 2509.20624), Frans et al. 2024. Before: flow.py. Read next: train.py.
"""

import math

import torch

from flow import generalized_kl, jump, sample_path

FINEST = 1024  # the finest step is 1/1024, and times are its multiples
# how often, in %, a step of size 1, 1/2, 1/4, ..., 1/1024 is trained. The largest are rare: trained
# as often as the others, they lower the entropy of the texts
SHARES = torch.tensor([0.6, 0.7, 0.9, 4, 12, 14, 16, 12, 10, 10, 19.8])


@torch.no_grad()
def shortcut_target(teacher, x_t, t, h, last):
    """The logits that a student should predict at x_t (B, L), t and h (B,): (B, L, V) float32.
    `last` (B,) bool marks steps that end at t + h = 1."""
    half = h / 2
    l1 = teacher(x_t, t, half).float()
    x_a = jump(x_t, l1, t, half)
    l2 = teacher(x_a, t + half, half).float()
    x_b = jump(x_a, l2, t + half, half, last)
    l3 = teacher(x_b, t + half, half).float()
    x_c = jump(x_b, l3, t + half, half, last)
    l4 = teacher(x_c, t + h, half).float()
    return (l1 + 2 * l2 + 2 * l3 + l4) / 6


@torch.no_grad()
def update_ema(ema, student, decay):
    """ema <- decay * ema + (1 - decay) * student, for all weights. The EMA is the teacher."""
    for average, weight in zip(ema.parameters(), student.parameters()):
        average.lerp_(weight, 1 - decay)


def forward_kl(target, logits):
    """KL(teacher || student) for each token, (B, L) nats, of two (B, L, V) logits."""
    log_p = target.log_softmax(-1)
    return (log_p.exp() * (log_p - logits.float().log_softmax(-1))).sum(-1)


def sample_steps(batch_size, shares):
    """A random step for each text, largest first: n (B,) int64, where h = 1/n is its size, and its
    start t (B,), uniform on the multiples of 1/1024 with t + h <= 1."""
    n = 2 ** torch.multinomial(shares, batch_size, replacement=True).sort().values
    starts = FINEST - FINEST // n + 1  # how many there are
    return n, (torch.rand(batch_size) * starts).long() / FINEST


def distillation_loss(student, teacher, x_1, largest_weight=math.inf):
    """The student's loss, mean nats per token over texts x_1 (B, L).

    Larger steps have KL(teacher || student). Steps of size 2/L and finer have the loss of DFM
    against text, the data loss: they write so few tokens each that there is little to distil. (In
    the paper h = 1/1024 alone, for L = 1024.)
    """
    B, L = x_1.shape
    n, t = sample_steps(B, SHARES)  # on the CPU, so that k is known without waiting for a GPU
    k = int((n < L // 2).sum())  # rows [:k] have the teacher, rows [k:] the data loss
    n, t = (v.to(x_1.device, non_blocking=True) for v in (n, t))
    h, last = 1 / n, t + 1 / n == 1  # (B,) each; exact, since both are multiples of 1/1024
    x_t = sample_path(x_1, t, student.config.vocab_size)  # (B, L)
    logits = student(x_t, t, h)  # (B, L, V)
    loss = generalized_kl(logits[k:], x_1[k:], x_t[k:], t[k:], largest_weight)
    if k == 0:
        return loss.mean()
    target = shortcut_target(teacher, x_t[:k], t[:k], h[:k], last[:k])
    return torch.cat([forward_kl(target, logits[:k]), loss]).mean()
