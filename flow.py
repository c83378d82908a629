"""Discrete flow matching: a path from noise to text, its loss, and a sampler of few large steps.

    path       every token of x_t is, independently, that of the text x_1 with probability kappa(t),
               else noise x_0: a random token
    posterior  p(y) = softmax(logits(x_t, t, h)): the network's prediction of x_1
    rate       r(t) = kappa'(t) / (1 - kappa(t)): how often noise becomes text
    velocity   u(y | x) = r(t) (p(y) - [y = x]): how often x jumps to y ([...] is 1 if true, else 0)

The sampler starts from noise at t = 0 and takes steps from t to t + h until t = 1. The rate grows
without bound as t -> 1: with its value at t, as in 1 - exp(-h r), too few tokens move in a large
step. FS-DFM's own idea is the cumulative scalar, the rate averaged over the step:

    g(t, h) = (1/h) * integral_t^{t+h} kappa'(s) / (1 - kappa(s)) ds = ln(1/S) / h
    P(jump) = 1 - exp(-h g (1 - p(x_t))) = 1 - S ** (1 - p(x_t))
    S       = (1 - kappa(t + h)) / (1 - kappa(t)), share of the noise at t that is left at t + h

A token moves at most once a step, and one that jumps is forced to move: to y ~ p restricted to
y != x_t. toy.py compares other rules, extras/samplers.py has them as code.

Sources: Campbell et al. 2024, Gat et al. 2024 (discrete flow matching), Shaul et al. 2025
(generalised KL), FS-DFM (arXiv 2509.20624, cumulative scalar; Wan et al. 2026, arXiv 2601.22519,
found it again, with error bounds). Before: model.py. Read next: distill.py.
"""

import math

import torch

# ------------------------------------------------------------------------------------------------
# schedule, path, loss


LATEST = 0.999  # time of training: at 1 the rate is infinite


def kappa(t):
    """The schedule: kappa(0) = 0, kappa(1) = 1. Another one is another two lines, here and below:
    t ** 2 and 2 * t / (1 - t ** 2)."""
    return t


def rate(t):
    """kappa'(t) / (1 - kappa(t)), the scale of the velocity. Infinite at t = 1."""
    return 1 / (1 - t)


def sample_path(x_1, t, vocab_size):
    """x_t (B, L) at times t (B,): each token is that of x_1 (B, L) with probability kappa(t), else
    a random one."""
    is_text = torch.rand(x_1.shape, device=x_1.device) < kappa(t)[:, None]
    return torch.where(is_text, x_1, torch.randint_like(x_1, vocab_size))


def generalized_kl(logits, x_1, x_t, t, largest_weight=math.inf):
    """The loss of DFM for each token, (B, L) nats (Shaul et al. 2025):

        kappa' / (1 - kappa) * ([x_t = x_1] - p(x_t) - [x_t != x_1] log p(x_1))

    logits (B, L, V); x_1, x_t (B, L); t (B,). Summed over the tokens, averaged over x_t and
    integrated over t it is at least -log of the probability that the model writes x_1. With the
    weight clipped at largest_weight it is no such bound, but the best p is still the posterior, and
    the few times near 1 do not outweigh all others.
    """
    log_p = logits.float().log_softmax(-1)  # (B, L, V)
    log_p_1 = log_p.gather(-1, x_1[..., None]).squeeze(-1)  # (B, L)
    p_stay = log_p.gather(-1, x_t[..., None]).squeeze(-1).exp()  # (B, L), p(x_t)
    weight = rate(t).clamp(max=largest_weight)[:, None]
    return weight * torch.where(x_t == x_1, 1 - p_stay, -p_stay - log_p_1)


def spread_times(B, device):
    """B times, evenly spread with one random offset: (B,) float32. Each is uniform on [0, LATEST),
    and their mean loss varies far less than that of B independent times."""
    offset = torch.rand((), device=device)
    return ((torch.arange(B, device=device) / B + offset) % 1) * LATEST


def dfm_loss(model, x_1, largest_weight=math.inf):
    """The training loss of DFM, mean nats per token over texts x_1 (B, L)."""
    t = spread_times(len(x_1), x_1.device)  # (B,)
    x_t = sample_path(x_1, t, model.config.vocab_size)
    return generalized_kl(model(x_t, t), x_1, x_t, t, largest_weight).mean()


# ------------------------------------------------------------------------------------------------
# one step


def cumulative_scalar(t, h):
    """g(t, h) (B,): the rate averaged over the step from t to t + h, both (B,). At t + h = 1 it is
    infinite; there 1 - kappa is held at 1e-8. In float64: near 1 it has few digits in float32."""
    before, after = ((1 - kappa(time)).clamp(min=1e-8) for time in (t.double(), t.double() + h))
    return (torch.log(before / after) / h).to(h.dtype)


def draw(p):
    """One token from each of the distributions p (..., V), which need not sum to 1: (...) int64. In
    float64: sums and random numbers of float32 would never draw the rarest tokens."""
    total = p.cumsum(-1, dtype=torch.float64)
    u = torch.rand(*p.shape[:-1], 1, dtype=torch.float64, device=p.device) * total[..., -1:]
    token = torch.searchsorted(total, u, right=True).squeeze(-1)
    return token.clamp(max=p.shape[-1] - 1)  # it is V where all of p is 0


def jump(x_t, logits, t, h, last=None):
    """One step of FS-DFM: x_t (B, L) at times t (B,) -> x_{t+h} (B, L), given logits (B, L, V).

    At t + h = 1 no noise may be left: S = 0, and every token would move to another, also one of
    which the network is 99% sure. So where `last` (B,) bool says that the step ends there, x_1 ~ p
    is drawn.
    """
    last = torch.zeros_like(t, dtype=torch.bool) if last is None else last
    p = logits.float().softmax(-1)  # (B, L, V)
    p_stay = p.gather(-1, x_t[..., None]).squeeze(-1)  # (B, L), p(x_t)
    hg = (h * cumulative_scalar(t, h))[:, None]  # (B, 1)
    p_jump = 1 - torch.exp(-hg * (1 - p_stay))  # (B, L)
    jumps = (torch.rand_like(p_jump) < p_jump) | last[:, None]  # (B, L)
    p_return = torch.where(last[:, None], p_stay, 0)  # 0: a token that jumps goes elsewhere
    p.scatter_(-1, x_t[..., None], p_return[..., None])
    return torch.where(jumps, draw(p), x_t)


# ------------------------------------------------------------------------------------------------
# many steps


def time_grid(steps, power=2.0):
    """The times t_0 = 0, ..., t_n = 1 of n steps: t_i = 1 - (1 - i / n) ** power, n + 1 floats.

    Power 1: uniform steps, as in the paper. Above 1 they shrink towards the end, where nothing
    follows that could correct a mistake (as with rho in Karras et al. 2022). Their sizes lie
    between those a student is trained with (distill.py); it interpolates.
    """
    return [1 - (1 - i / steps) ** power for i in range(steps + 1)]


@torch.no_grad()
def generate(model, x, steps, power=2.0, step=jump, on_step=None):
    """Noise x (B, L) int64 -> text (B, L) in so many steps. `step` says how tokens move: jump, or
    any f(x_t, logits, t, h, last) such as those of extras/samplers.py. on_step(x) is called after
    each step."""
    times = time_grid(steps, power)
    for i in range(steps):
        t = torch.full((len(x),), times[i], device=x.device)  # (B,)
        h = torch.full_like(t, times[i + 1] - times[i])
        last = torch.full_like(t, i == steps - 1, dtype=torch.bool)
        x = step(x, model(x, t, h), t, h, last)
        if on_step is not None:
            on_step(x)
    return x
