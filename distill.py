"""The shortcut teacher: what the few-step student learns from.

FS-DFM's third idea: one step of size h should predict what two steps of h/2 predict. The teacher
is the student itself, its weights averaged over time (EMA). Fine steps have the data loss, and
every larger step learns from steps of half its size. The paper's data loss is for h = 1/1024 alone.
Ours is for h = 2/L and finer, 1/64 for L = 128: there the DFM gains nothing from more than 64 steps
(docs/results.md), so nothing is left to distil, and the data loss needs no teacher.

The teacher's target at (x_t, t), all calls conditioned on h/2, with jumps of the cumulative scalar:

    l1 = teacher(x_t, t)              x_a = jump(x_t, l1) to t + h/2
    l2 = teacher(x_a, t + h/2)        x_b = jump(x_a, l2) to t + h
    l3 = teacher(x_b, t + h/2)        x_c = jump(x_b, l3) to t + h
    l4 = teacher(x_c, t + h)          target = (l1 + 2 l2 + 2 l3 + l4) / 6

The paper calls it RK-4. The weights are Runge-Kutta's, but the stages are chained and random, so no
order of accuracy is claimed. What does it teach? Along the true path the expected later posterior
is the present one, so a mean of probabilities along it would teach nothing. This target differs for
two reasons: a mean of logits is sharper than a mean of probabilities, and x_b and x_c have jumped
further than their time says.

Steps that are trained: h = 1, 1/2, ..., 1/1024, with t on a grid of 1/1024. Steps that are sampled
by default: those of flow.time_grid with power 2, whose h lie between these (15/64, 13/64, ... for
8 steps). `training_grid="sampler"` trains those instead; docs/paper.md has what it is worth.

Source: FS-DFM (arXiv 2509.20624), sections on the shortcut teacher. Read next: train.py.
"""

import torch

from flow import (
    FINEST, Sampler, generalized_kl, grid_time, jump, reveal, sample_path, text_logits,
)

# ------------------------------------------------------------------------------------------------
# the teacher's target


def predict(teacher, x, t, h, previous):
    """The teacher's logits at state x, (B, L, V) float32.

    Under the mask source a token that a jump has just unmasked has no prediction of its own any
    more, since nothing trains the output there. It keeps the `previous` one. A token that is given
    (flow.reveal) stays at its time t = 1.
    """
    logits = text_logits(teacher(x, t.clamp(max=1), h), teacher.config)
    if teacher.config.source == "mask":
        return torch.where((x == teacher.config.mask_id)[..., None], logits, previous)
    return logits


def weighted_mean(weights, logits, mean="logits"):
    """The mean of logits, or the logits of the mean of probabilities. (B, L, V) each."""
    total = sum(weights)
    if mean == "logits":
        return sum(w * l for w, l in zip(weights, logits, strict=True)) / total
    p = sum(w * l.softmax(-1) for w, l in zip(weights, logits, strict=True)) / total
    return p.clamp(min=1e-30).log()  # log 0 would make 0 * inf in the loss


@torch.no_grad()
def rk4_target(teacher, x_t, t, h, last=None, update="cumulative", mean="logits"):
    """What the student should predict at (x_t, t, h): (B, L, V) float32 logits.

    x_t (B, L), t and h (B,), or t (B, L) and h (B, 1) where tokens are given. last (B,) bool marks
    steps that end at t + h = 1 with x_1 ~ p.
    """
    config, half = teacher.config, h / 2
    l1 = text_logits(teacher(x_t, t, half), config)
    x_a = jump(x_t, l1, t, half, config, update=update)
    l2 = predict(teacher, x_a, t + half, half, l1)
    x_b = jump(x_a, l2, t + half, half, config, last, update)
    l3 = predict(teacher, x_b, t + half, half, l2)
    x_c = jump(x_b, l3, t + half, half, config, last, update)
    l4 = predict(teacher, x_c, t + h, half, l3)
    return weighted_mean((1, 2, 2, 1), (l1, l2, l3, l4), mean)


@torch.no_grad()
def heun_target(teacher, x_t, t, h, last=None, update="cumulative", mean="logits"):
    """Half the cost: the predictions before and after a half step (the paper's name: Heun)."""
    config, half = teacher.config, h / 2
    l1 = text_logits(teacher(x_t, t, half), config)
    x_a = jump(x_t, l1, t, half, config, update=update)
    l2 = predict(teacher, x_a, t + half, half, l1)
    return weighted_mean((1, 1), (l1, l2), mean)


@torch.no_grad()
def simpson_target(teacher, x_t, t, h, last=None, update="cumulative", mean="logits"):
    """Ours: before, between and after two half steps, every state at its own time, with the
    weights of Simpson's rule. It sharpens less than RK-4 and needs three calls instead of four."""
    config, half = teacher.config, h / 2
    l1 = text_logits(teacher(x_t, t, half), config)
    x_a = jump(x_t, l1, t, half, config, update=update)
    l2 = predict(teacher, x_a, t + half, half, l1)
    x_b = jump(x_a, l2, t + half, half, config, last, update)
    l3 = predict(teacher, x_b, t + h, half, l2)
    return weighted_mean((1, 4, 1), (l1, l2, l3), mean)


TARGETS = {"rk4": rk4_target, "heun": heun_target, "simpson": simpson_target}

# ------------------------------------------------------------------------------------------------
# the steps that are trained

STEP_WEIGHTS = {  # how often a batch has steps of size h = 1, 1/2, 1/4, ..., 1/1024
    "uniform": [1] * 11,
    # few of the largest steps: training them much makes low-entropy text (docs/results.md)
    "balanced": [0.6, 0.7, 0.9, 4, 12, 14, 16, 12, 10, 10, 19.8],
    "paper": [2**i for i in range(11)],
}


def sample_step_counts(batch_size, weights):
    """(B,) int64 from 1, 2, 4, ..., 1024 in proportion to `weights`: n stands for steps of size
    1/n. One shared random offset, as in flow.sample_times, so that proportions hardly vary."""
    cumulative = torch.tensor(weights, dtype=torch.float64).cumsum(0)  # (11,)
    points = (torch.arange(batch_size) + torch.rand(())) / batch_size  # (B,) in [0, 1)
    index = torch.searchsorted(cumulative, points.double() * cumulative[-1], right=True)
    return 2 ** index.clamp(max=len(weights) - 1)


def sample_steps(n, grid_power=None):
    """t, h and last, (B,) each, of one step out of n (B,) for every sequence.

    h = 1/n, and t is uniform on the multiples of 1/1024 with t + h <= 1. With a grid_power the
    step is instead one of the n steps of flow.time_grid, each as likely as the others.
    """
    # neighbours are a golden section apart, so that the times of similar n are spread evenly
    points = (torch.rand(()) + 0.6180339887 * torch.arange(len(n))) % 1  # (B,)
    if grid_power is None:
        starts = FINEST - FINEST // n + 1  # (B,), how many times there are
        i = (points * starts).long()
        return i / FINEST, 1 / n, i == starts - 1
    i = (points * n).long()
    t = grid_time(i, n, grid_power)
    return t, grid_time(i + 1, n, grid_power) - t, i == n - 1


# ------------------------------------------------------------------------------------------------
# the student's loss


def forward_kl(target, logits):
    """KL(teacher || student) per token, (B, L) nats, for two (B, L, V) float32 logits."""
    log_q = target.log_softmax(-1)
    return (log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1)


def distillation_loss(student, teacher, x_1, settings):
    """The student's loss, mean nats per token over texts x_1 (B, L).

    Steps of 1/data_steps and finer (on the sampler's grid: out of data_steps or more) have the data
    loss, generalised KL to the text. The paper's data_steps is 1024, ours is half of L, at most
    1024. Larger steps have the KL to the teacher. `settings` are train.py's: step_weights,
    data_steps, training_grid, loss_weight_max, and for the teacher: teacher, mean, update and
    teacher_last_jump.
    """
    config, L = student.config, x_1.shape[1]
    # 1. a step for every sequence; on the CPU, where splitting the batch needs no sync
    n = sample_step_counts(len(x_1), STEP_WEIGHTS[settings.step_weights])
    n = n.sort().values  # largest steps first: rows [:k] have the teacher, rows [k:] the data loss
    k = int((n < min(settings.data_steps or L // 2, FINEST)).sum())
    on_sampler_grid = settings.training_grid == "sampler"
    power = Sampler().for_network(config).grid_power if on_sampler_grid else None
    on_cuda = x_1.device.type == "cuda"  # elsewhere such a copy may read what is freed already
    t, h, last = (part.to(x_1.device, non_blocking=on_cuda) for part in sample_steps(n, power))

    # 2. the student's prediction
    x_t = sample_path(x_1, t, config)  # (B, L)
    token_t = t
    if config.given_share:
        x_t, token_t = reveal(x_t, x_1, t, config.given_share)  # (B, L) each
        h = h[:, None]
    logits, fine_logits = student(x_t, token_t, h).split([k, len(x_1) - k])  # (k, L, n_tokens), ...

    # 3. data loss of the fine steps
    loss = generalized_kl(
        fine_logits, x_1[k:], x_t[k:], token_t[k:], config, settings.loss_weight_max
    )
    if k == 0:
        return loss.mean()

    # 4. the teacher's target for the large steps
    ends = last[:k] if settings.teacher_last_jump == "posterior" else None
    make_target = TARGETS[settings.teacher]
    target = make_target(teacher, x_t[:k], token_t[:k], h[:k], ends, settings.update, settings.mean)
    kl = forward_kl(target, text_logits(logits, config))  # (k, L)
    if config.source == "mask":
        kl = torch.where(x_t[:k] == config.mask_id, kl, 0)  # unmasked tokens teach nothing
    return torch.cat([kl, loss]).mean()


@torch.no_grad()
def update_ema(ema, model, decay):
    """ema <- decay * ema + (1 - decay) * model, over all weights."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
