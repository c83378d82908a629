"""What is there for speed alone. Plumbing, to be skipped on a first reading."""

import math

import torch
import torch.nn.functional as F


def attention_by_formula(q, k, v, is_causal=False):
    """F.scaled_dot_product_attention by its formula, softmax(q k^T / sqrt(head_dim)) v.

    PyTorch's is slow in the backward pass on a CPU. Written out, 250 training iterations of the
    `cpu-text` preset take 13.7 s instead of 17.1 (2 cores with AMX), 13% of its speedrun (derived).
    It also serves texts written token by token, whose keys have another length at every token:
    PyTorch's may prepare anew for each on newer GPUs. A validation that wrote 1,016 tokens took
    54 s (H200); that this was the cause, and what the formula gains there, has not been measured.
    (B, heads, L, head_dim) each; k and v may be longer.
    """
    many_scores = q[..., 0].numel() * k.shape[2] > 2**21 and q.shape[2] > 1
    if many_scores and not torch.is_grad_enabled():  # long texts: PyTorch's form needs less memory
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, L, L)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def padded_linear(x, weight, bias):
    """F.linear with the rows of the weight filled up to a multiple of 64, and the extra outputs cut
    off, for a GPU: x (..., m), weight (n, m), bias (n,) -> (..., n).

    GPT-2 has 50,257 tokens. Rows of an odd number of logits are not aligned in memory, and matrix
    products with them are slow. Filled up, a training step of the paper's small network takes
    88.5 ms instead of 111.7 (H200, not compiled).
    """
    missing = -len(weight) % 64
    if missing == 0:
        return F.linear(x, weight, bias)
    weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))
    return F.linear(x, weight, bias)[..., :-missing]
