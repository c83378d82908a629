"""The shortcut teacher: what FS-DFM's student learns from.

FS-DFM's third idea: a student that takes one step of size h should land where a teacher lands with two steps of h / 2.
The teacher is the student itself, smoothed over time (an EMA of its weights), so accuracy climbs from the finest
step, which learns from real text, to the coarsest, each size learning from the half below it.

A Runge-Kutta rule of order 4 asks the teacher four times, jumping by the cumulative scalar in between:

    l1 at (x_t, t)              x_a = jump(x_t, l1) to t + h/2
    l2 at (x_a, t + h/2)        x_b = jump(x_a, l2) to t + h
    l3 at (x_b, t + h/2)        x_c = jump(x_b, l3) to t + h
    l4 at (x_c, t + h)          target = their mean with weights 1, 2, 2, 1

The paper takes the mean of the logits, rk4_target. That is narrower than each of them, and as every step size learns from
the half below it the narrowing adds up: in our short runs the text at large steps grew dull and then collapsed. Our default is
the mean of the probabilities, rk4_probabilities_target, which gains less and keeps the variety (RESULTS.md).

Source: FS-DFM (arXiv 2509.20624), sections on the shortcut teacher. Read next: optimizer.py.
"""

import math

import torch

from flow import generalized_kl, jump, sample_path, text_logits

FINEST = 1024  # the finest step is 1/1024: it has no teacher but real text


# ---------------------------------------------------------------------------------------------------------------
# the teacher's target


def carry(logits, previous, x_t, config):
    """Under the mask source, a token that a jump has just shown has no prediction of its own any more (nothing trains
    the network's output there): keep the last one made while it was masked. Under the uniform source, all are kept."""
    logits = text_logits(logits, config)
    if config.source == "mask":
        return torch.where((x_t == config.mask_id)[..., None], logits, previous)
    return logits


def rk4_stages(teacher, x_t, t, h):
    """The four answers of Runge-Kutta-4 over two half steps, (B, L, V) float32 logits each."""
    half, middle, config = h / 2, t + h / 2, teacher.config
    l1 = text_logits(teacher(x_t, t, half), config)
    x_a = jump(x_t, l1, t, half, config)
    l2 = carry(teacher(x_a, middle, half), l1, x_a, config)
    x_b = jump(x_a, l2, middle, half, config)
    l3 = carry(teacher(x_b, middle, half), l2, x_b, config)
    x_c = jump(x_b, l3, middle, half, config)
    l4 = carry(teacher(x_c, t + h, half), l3, x_c, config)
    return l1, l2, l3, l4


def heun_stages(teacher, x_t, t, h):
    """The two answers of Heun's rule, at the start and after a half step, (B, L, V) float32 logits each."""
    half, middle, config = h / 2, t + h / 2, teacher.config
    l1 = text_logits(teacher(x_t, t, half), config)
    x_a = jump(x_t, l1, t, half, config)
    return l1, carry(teacher(x_a, middle, half), l1, x_a, config)


def log_of_mean(probs):
    """Logits of mean probabilities (B, L, V); log 0 would make 0 * inf in the loss."""
    return probs.clamp(min=1e-30).log()


@torch.no_grad()
def rk4_target(teacher, x_t, t, h):
    """The paper's teacher: the four logits' mean by Runge-Kutta's weights, (B, L, V) float32, for the student at (x_t, t, h)."""
    l1, l2, l3, l4 = rk4_stages(teacher, x_t, t, h)
    return (l1 + 2 * l2 + 2 * l3 + l4) / 6


@torch.no_grad()
def rk4_probabilities_target(teacher, x_t, t, h):
    """Ours: the mean of the four probabilities, which sharpens nothing. (B, L, V) logits, its logarithm."""
    p1, p2, p3, p4 = (logits.softmax(-1) for logits in rk4_stages(teacher, x_t, t, h))
    return log_of_mean((p1 + 2 * p2 + 2 * p3 + p4) / 6)


@torch.no_grad()
def heun_target(teacher, x_t, t, h):
    """Heun's rule (Runge-Kutta-2), half the cost: the mean of the logits at the start and after a half step."""
    l1, l2 = heun_stages(teacher, x_t, t, h)
    return (l1 + l2) / 2


@torch.no_grad()
def heun_probabilities_target(teacher, x_t, t, h):
    """Heun's rule with the mean of the probabilities."""
    p1, p2 = (logits.softmax(-1) for logits in heun_stages(teacher, x_t, t, h))
    return log_of_mean((p1 + p2) / 2)


# ---------------------------------------------------------------------------------------------------------------
# the student's loss


def sample_step_sizes(batch_size, weights):
    """(B,) step sizes from 1, 1/2, ..., 1/1024 in proportion to `weights`, largest first, so that those which need a
    teacher come before those which do not. One shared random offset, as for times: the proportions hardly vary."""
    weights = torch.tensor(weights, dtype=torch.float64)  # (11,)
    points = (torch.arange(batch_size) + torch.rand(())) / batch_size  # (B,)
    index = torch.searchsorted(weights.cumsum(0) / weights.sum(), points.double()).clamp(max=len(weights) - 1)
    return 0.5**index.float()


def sample_grid_times(h):
    """(B,) times, each uniform on the multiples of 1/1024 with t + h <= 1. Neighbours are a golden section apart: any
    few in a row, such as those of one step size, are spread over [0, 1], and the loss varies less."""
    points = (torch.rand(()) + 0.6180339887 * torch.arange(len(h))) % 1  # (B,)
    return (points * (FINEST * (1 - h) + 1)).floor() / FINEST


def forward_kl(teacher_logits, student_logits):
    """KL(teacher || student) per token, (B, L) nats, for two (B, L, V) float32 logits."""
    log_p_teacher = teacher_logits.log_softmax(-1)
    return (log_p_teacher.exp() * (log_p_teacher - student_logits.log_softmax(-1))).sum(-1)


def distillation_loss(student, teacher, x_1, weights, target=rk4_probabilities_target, largest_rate=math.inf):
    """Mean loss of a batch of text x_1 (B, L), in nats per token: KL to the shortcut teacher where the step is
    large, generalised KL to the text where it is the finest, which needs no teacher and runs none. Without a target
    every step size learns from the text alone."""
    config, device = student.config, x_1.device
    h = sample_step_sizes(len(x_1), weights)  # drawn on the CPU, so that the split below needs no sync
    n_taught = int((h > 1 / FINEST).sum()) if target else 0
    t = sample_grid_times(h)
    t, h = t.to(device), h.to(device)
    x_t = sample_path(x_1, t, config)
    logits = student(x_t, t, h)
    loss = generalized_kl(logits[n_taught:], x_1[n_taught:], x_t[n_taught:], t[n_taught:], config, largest_rate).sum()
    if n_taught:
        target_logits = target(teacher, x_t[:n_taught], t[:n_taught], h[:n_taught])
        kl = forward_kl(target_logits, text_logits(logits[:n_taught], config))  # (n_taught, L)
        if config.source == "mask":
            kl = torch.where(x_t[:n_taught] == config.mask_id, kl, 0)
        loss = loss + kl.sum()
    return loss / x_1.numel()


@torch.no_grad()
def update_ema(ema, model, decay):
    """ema <- decay * ema + (1 - decay) * model, over all weights."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
