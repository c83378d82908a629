"""1. The path from noise to text.

At time t a token of x_t is that of the text x_1 with probability kappa(t) = t, else that of the
noise x_0. Every token decides for itself.
"""

import torch


def sample_path(x_1, x_0, t):
    """x_t (B, L) for text x_1 (B, L) and noise x_0 (B, L), int64, and times t (B,) in [0, 1]."""
    is_text = torch.rand(x_1.shape) < t[:, None]  # (B, L)
    return torch.where(is_text, x_1, x_0)
