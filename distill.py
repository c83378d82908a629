"""The shortcut teacher: what FS-DFM's student learns from.

FS-DFM's third idea: a student that takes one step of size h should land where a teacher lands with two steps of h / 2.
The teacher is the student itself, smoothed over time (an EMA of its weights), so accuracy climbs from fine steps, which
learn from real text, to the coarsest, each size learning from the half below it. The paper's text is for the finest step
alone, 1/1024. Ours is for all from 1/64 down: so few tokens jump in one of them that none need agree with another (the DFM
gains nothing from more than 64 steps), the text is a better teacher than a copy of a copy of itself, and it costs no calls.

The teacher is a Runge-Kutta rule of order 4, jumping by the cumulative scalar in between:

    l1 at (x_t, t)              x_a = jump(x_t, l1) to t + h/2
    l2 at (x_a, t + h/2)        x_b = jump(x_a, l2) to t + h
    l3 at (x_b, t + h/2)        x_c = jump(x_b, l3) to t + h
    l4 at (x_c, t + h)          target = mean of the logits with weights 1, 2, 2, 1

Its l3 and l4 see more text than belongs to the time they are told: x_b has jumped twice, x_c three times. That sharpens the target, and
so does the mean of logits. `simpson` asks each state at its own time, with the weights of Simpson's rule and three calls instead of four:

    l1 at (x_t, t)              x_a = jump(x_t, l1) to t + h/2
    l2 at (x_a, t + h/2)        x_b = jump(x_a, l2) to t + h
    l3 at (x_b, t + h)          target = mean of the logits with weights 1, 4, 1

It sharpens less: more entropy and a higher perplexity at 1 to 4 steps. RESULTS.md compares them.

Source: FS-DFM (arXiv 2509.20624), sections on the shortcut teacher. Read next: optimizer.py.
"""

import math

import torch

from flow import generalized_kl, in_parts, jump, sample_path, text_logits

FINEST = 1024  # the finest step is 1/1024, and times are its multiples


# ---------------------------------------------------------------------------------------------------------------
# the teacher's target


def ask(teacher, x, t, h, previous):
    """The teacher's answer at state x: (B, L, d), which it reads its logits out of. Under the mask source, a token that a jump has just
    shown has no prediction of its own any more (nothing trains the network's output there): the `previous` one, made while it was masked, stays."""
    answer = teacher(x, t, h, hidden=True)
    if teacher.config.source == "mask" and previous is not None:
        return torch.where((x == teacher.config.mask_id)[..., None], answer, previous)
    return answer


def move(teacher, x, answer, t, h):
    """One jump of size h by what the teacher answered: (B, L) tokens at time t + h."""
    return in_parts(lambda logits, x, t, h: jump(x, logits, t, h, teacher.config), teacher, answer, x, t, h)


def rk4_stages(teacher, x_t, t, h):
    """The four answers of the paper's Runge-Kutta-4, one after the other, (B, L, d) each."""
    half, middle = h / 2, t + h / 2
    yield (l1 := ask(teacher, x_t, t, half, None))
    x_a = move(teacher, x_t, l1, t, half)
    yield (l2 := ask(teacher, x_a, middle, half, l1))
    x_b = move(teacher, x_a, l2, middle, half)
    yield (l3 := ask(teacher, x_b, middle, half, l2))
    x_c = move(teacher, x_b, l3, middle, half)
    yield ask(teacher, x_c, t + h, half, l3)


def heun_stages(teacher, x_t, t, h):
    """The two answers of Heun's rule (Runge-Kutta-2), half the cost: at the start and after a half step."""
    half, middle = h / 2, t + h / 2
    yield (l1 := ask(teacher, x_t, t, half, None))
    x_a = move(teacher, x_t, l1, t, half)
    yield ask(teacher, x_a, middle, half, l1)


def simpson_stages(teacher, x_t, t, h):
    """The three answers before, between and after two half steps, each state at its own time."""
    half, middle = h / 2, t + h / 2
    yield (l1 := ask(teacher, x_t, t, half, None))
    x_a = move(teacher, x_t, l1, t, half)
    yield (l2 := ask(teacher, x_a, middle, half, l1))
    x_b = move(teacher, x_a, l2, middle, half)
    yield ask(teacher, x_b, t + h, half, l2)


RULES = {  # the stages, and their weights in the mean
    "rk4": (rk4_stages, (1, 2, 2, 1)),
    "simpson": (simpson_stages, (1, 4, 1)),
    "heun": (heun_stages, (1, 1)),
}
MEANS = ("logits", "probabilities")


@torch.no_grad()
def shortcut_answers(teacher, x_t, t, h, rule="rk4", mean="logits"):
    """What `target_logits` makes the target of: the rule's weights, and its stages' answers, (B, L, d) each. For the mean of logits
    these are one already, the mean of the answers, since logits are read out of an answer by a linear map."""
    stages, weights = RULES[rule]
    weights = [weight / sum(weights) for weight in weights]
    answers = list(stages(teacher, x_t, t, h))
    if mean == "logits":
        return [1.0], [sum(weight * answer for weight, answer in zip(weights, answers, strict=True))]
    return weights, answers


def target_logits(teacher, weights, answers):
    """What the student should answer: (B, L, V) float32 logits, of the mean of probabilities over the answers."""
    logits = [text_logits(teacher.read_out(answer), teacher.config) for answer in answers]
    if len(logits) == 1:
        return logits[0]
    probs = sum(weight * part.softmax(-1) for weight, part in zip(weights, logits, strict=True))
    return probs.clamp(min=1e-30).log()  # log 0 would make 0 * inf in the loss


# ---------------------------------------------------------------------------------------------------------------
# the student's loss

STEP_WEIGHTS = {  # how often h = 1, 1/2, ..., 1/1024 are trained
    "flat": [1] * 11,
    # Few of the largest steps, whose text grows dull (entropy falls) when they are trained much: README, "Choices".
    "balanced": [0.6, 0.7, 0.9, 4, 12, 14, 16, 12, 10, 10, 19.8],
    "paper": [2**i for i in range(11)],
}


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


def distillation_loss(student, teacher, x_1, weights, rule="rk4", mean="logits", largest_rate=math.inf, text_steps=64):
    """Mean loss of a batch of text x_1 (B, L), in nats per token: KL to the shortcut teacher where the step is
    large, generalised KL to the text where it is 1 / text_steps or finer, which needs no teacher and runs none.
    The paper's text_steps is 1024; with 1 there is no teacher at all."""
    config, device = student.config, x_1.device
    h = sample_step_sizes(len(x_1), weights)  # drawn on the CPU, so that the split below needs no sync
    n_taught = int((h > 1 / text_steps).sum())
    t = sample_grid_times(h)
    t, h = t.to(device, non_blocking=True), h.to(device, non_blocking=True)
    x_t = sample_path(x_1, t, config)
    answer = student(x_t, t, h, hidden=True)  # (B, L, d)

    def from_text(logits, x_1, x_t, t):
        return generalized_kl(logits, x_1, x_t, t, config, largest_rate)

    def from_teacher(logits, x_t, *answers):
        kl = forward_kl(target_logits(teacher, stage_weights, answers), text_logits(logits, config))
        return torch.where(x_t == config.mask_id, kl, 0) if config.source == "mask" else kl

    losses = []  # (n, L) each
    if n_taught:
        stage_weights, answers = shortcut_answers(teacher, x_t[:n_taught], t[:n_taught], h[:n_taught], rule, mean)
        losses.append(in_parts(from_teacher, student, answer[:n_taught], x_t[:n_taught], *answers))
    if n_taught < len(x_1):
        losses.append(in_parts(from_text, student, answer[n_taught:], x_1[n_taught:], x_t[n_taught:], t[n_taught:]))
    return torch.cat(losses).mean()


@torch.no_grad()
def update_ema(ema, model, decay):
    """ema <- decay * ema + (1 - decay) * model, over all weights."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
