"""Other samplers: each takes the steps of flow.generate in another way.

    python sample.py --sampler extras.samplers.euler
    python eval.py --sampler extras.samplers.uniform_grid

A step is f(x_t, logits, t, h, last) -> x_{t+h}, and a sampler is flow.generate with another step or
another time grid. The rules of one step differ in P(a token changes), where r = 1 / (1 - t) is the
rate at t, S = (1 - t - h) / (1 - t), and p = p(x_t):

    flow.jump   1 - S ** (1 - p)                   FS-DFM: rate averaged over the step, forced move
    averaged    (1 - S) (1 - p)                    no forced move; textbook Euler (Gat et al. 2024)
    euler       (1 - exp(-h r)) (1 - p)            Meta's flow_matching library: rate at t
    renoise     (draws every token anew)           for distribution matching and books

docs/results.md and docs/lab-notebook.md say what they are worth.
"""

from functools import partial

import torch

import flow
from flow import cumulative_scalar, generate, kappa, rate


def towards_text(x_t, logits, p_jump, last):
    """Draws x_1 ~ p, and moves each token to it with probability p_jump (B,): it may be x_t."""
    x_1 = flow.draw(logits.float().softmax(-1))  # (B, L)
    jumps = torch.rand(x_t.shape, device=x_t.device) < p_jump[:, None]
    return torch.where(jumps | last[:, None], x_1, x_t)


def euler_step(x_t, logits, t, h, last):
    return towards_text(x_t, logits, 1 - torch.exp(-h * rate(t)), last)


def averaged_step(x_t, logits, t, h, last):
    return towards_text(x_t, logits, 1 - torch.exp(-h * cumulative_scalar(t, h)), last)


def renoise_step(x_t, logits, t, h, last):
    """A whole text x_1 ~ p, noised afresh to t + h. It makes p a distribution of texts, which is
    what extras/matching.py trains."""
    x_1 = flow.draw(logits.float().softmax(-1))  # (B, L)
    is_text = torch.rand(x_t.shape, device=x_t.device) < kappa(t + h)[:, None]
    return torch.where(is_text | last[:, None], x_1, torch.randint_like(x_t, logits.shape[-1]))


REDRAWS = 32  # of a token from noise to text, on average; in fewer steps one in each


def renoise(model, x, steps, **options):
    """flow.generate with renoise_step. In more than REDRAWS steps some tokens, chosen at random,
    are drawn anew, and the others jump: redrawn one at a time they keep the distribution of x_t
    (Gibbs sampling), all at once they become alike. The last step takes the likeliest tokens."""

    def step(x_t, logits, t, h, last):
        x = renoise_step(x_t, logits, t, h, last)
        if steps > REDRAWS:
            chosen = torch.rand(x_t.shape, device=x_t.device) < REDRAWS / steps
            x = torch.where(chosen, x, flow.jump(x_t, logits, t, h, last))
        return torch.where(last[:, None], logits.argmax(-1), x)

    return generate(model, x, steps, step=step, **options)


euler = partial(generate, step=euler_step)
averaged = partial(generate, step=averaged_step)
uniform_grid = partial(generate, power=1.0)  # that of the paper
