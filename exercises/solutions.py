"""Solutions of the exercises: python -m pytest exercises --solutions."""

import itertools
import math

import torch

def sample_path(x_1, x_0, t):
    # exercise 1
    is_text = torch.rand(x_1.shape) < t[:, None]  # (B, L)
    return torch.where(is_text, x_1, x_0)


def posterior(text, x_t, t):
    # exercise 2
    V = len(text)
    token_path = t * torch.eye(V) + (1 - t) / V  # (V, V): p(x_t = y | x_1 = x)
    first, second = token_path[:, x_t[0]], token_path[:, x_t[1]]  # (V,) each
    joint = text * torch.outer(first, second)
    joint = joint / joint.sum()  # p(x_1 | x_t)
    return torch.stack([joint.sum(1), joint.sum(0)])


def dfm_loss(logits, x_1, x_t, t):
    # exercise 3
    log_p = logits.log_softmax(-1)  # (B, L, V)
    p_stay = log_p.gather(-1, x_t[..., None]).squeeze(-1).exp()  # (B, L), p(x_t)
    log_p_1 = log_p.gather(-1, x_1[..., None]).squeeze(-1)  # (B, L), log p(x_1)
    return torch.where(x_t == x_1, 1 - p_stay, -p_stay - log_p_1) / (1 - t)[:, None]


def jump(x_t, logits, t, h, last):
    # exercise 4
    p = logits.softmax(-1)  # (B, L, V)
    if last:
        return draw(p)
    p_stay = p.gather(-1, x_t[..., None]).squeeze(-1)  # (B, L), p(x_t)
    still_noise = (1 - (t + h)) / (1 - t)
    jumps = torch.rand(x_t.shape) < 1 - still_noise ** (1 - p_stay)
    elsewhere = p.scatter(-1, x_t[..., None], 0)  # p(x_t) = 0
    elsewhere[~jumps] = 1  # not used: a row of zeros could not be drawn from
    return torch.where(jumps, draw(elsewhere), x_t)


def draw(p):
    """One token (B, L) from each of the distributions p (B, L, V)."""
    return torch.multinomial(p.flatten(0, 1), 1).view(p.shape[:2])


def generate(model, x, times):
    # exercise 5
    for i in range(len(times) - 1):
        t, h = times[i], times[i + 1] - times[i]
        logits = model(x, torch.full((len(x),), t), torch.full((len(x),), h))
        x = jump(x, logits, t, h, last=i == len(times) - 2)
    return x


def cumulative_scalar(t, h):
    # exercise 6
    return math.log((1 - t**2) / (1 - (t + h) ** 2)) / h  # r = -(log(1 - kappa))'


def shortcut_target(teacher, step, x_t, t, h):
    # exercise 7
    half = h / 2
    l1 = teacher(x_t, t, half)
    x_a = step(x_t, l1, t, half)
    l2 = teacher(x_a, t + half, half)
    x_b = step(x_a, l2, t + half, half)
    l3 = teacher(x_b, t + half, half)
    x_c = step(x_b, l3, t + half, half)
    l4 = teacher(x_c, t + h, half)
    return (l1 + 2 * l2 + 2 * l3 + l4) / 6


def student_loss(logits, target, x_1, x_t, t, h):
    # exercise 8
    log_q, log_p = target.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)  # (B, L)
    L = x_1.shape[1]
    return torch.where((h > 2 / L)[:, None], kl, dfm_loss(logits, x_1, x_t, t))


def time_grid(steps):
    # exercise 9
    return [1 - (1 - i / steps) ** 2.5 for i in range(steps + 1)]


def measure(texts, true):
    # exercise 10
    V, L = 1 + int(torch.maximum(texts.max(), true.max())), texts.shape[1]

    def frequencies(x, places):
        """How often each combination of symbols stands at three places, (V ** 3,)."""
        code = sum(V**k * x[:, place] for k, place in enumerate(places))
        return torch.bincount(code, minlength=V**3) / len(x)

    # total variation; three places contain their pairs and single tokens
    distances = [(frequencies(texts, three) - frequencies(true, three)).abs().sum().item() / 2
                 for three in itertools.combinations(range(L), 3)]
    return -max(distances)
