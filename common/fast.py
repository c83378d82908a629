"""PyTorch's functions, in the form that suits the device. Plumbing, to be skipped at first.

    attention    F.scaled_dot_product_attention, or its formula
    Linear       nn.Linear, with rows filled up or on two dimensions alone
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def attention(q, k, v, is_causal=False):
    """softmax(q k^T / sqrt(head_dim)) v. (B, heads, L, head_dim) each; k and v may be longer.

    PyTorch's is slow in the backward pass on a CPU. Written out, 250 training iterations of the
    `cpu-text` preset take 13.7 s instead of 17.1 (2 cores with AMX), 13% of its speedrun (derived).
    The formula also serves texts written token by token, whose keys have another length at every
    token: PyTorch's may prepare anew for each on newer GPUs. A validation that wrote 1,016 tokens
    took 54 s (H200); that this was the cause, and what the formula gains there, has not been
    measured.

    On Apple GPUs it is the formula always. There PyTorch's is silently wrong in several versions:
    for permuted tensors (github.com/pytorch/pytorch/issues/181133), and in half precision a causal
    network sees the future (issues/195910).
    """
    token_by_token = k.shape[2] > q.shape[2]
    many_scores = q[..., 0].numel() * k.shape[2] > 2**21  # PyTorch's form needs less memory
    on_cpu = q.device.type == "cpu" and (torch.is_grad_enabled() or not many_scores)
    if token_by_token or on_cpu or q.device.type == "mps":
        return attention_by_formula(q, k, v, is_causal)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def attention_by_formula(q, k, v, is_causal=False):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, L, L)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


class Linear(nn.Linear):
    """nn.Linear: (..., m) -> (..., n)."""

    def forward(self, x):
        if x.device.type == "cuda":
            return padded_linear(x, self.weight, self.bias)
        if x.device.type == "mps":
            return flat_linear(x, self.weight, self.bias)
        return super().forward(x)


def padded_linear(x, weight, bias):
    """For NVIDIA GPUs: the weight (n, m) has its n rows filled up to a multiple of 64. GPT-2 has
    50,257 tokens: rows of an odd number of logits are not aligned in memory, and matrix products
    with them are slow. Filled up, a training step of the paper's small network takes 88.5 ms
    instead of 111.7 (H200, not compiled)."""
    missing = -len(weight) % 64
    if missing == 0:
        return F.linear(x, weight, bias)
    weight = F.pad(weight, (0, 0, 0, missing))
    bias = None if bias is None else F.pad(bias, (0, missing))
    return F.linear(x, weight, bias)[..., :-missing]


def flat_linear(x, weight, bias):
    """For Apple GPUs, around silent faults of PyTorch's issues 180776, 188438, 192934 and 193487
    (github.com/pytorch/pytorch/issues). On some chips F.linear is wrong for more than two
    dimensions, or loses the bias of a single row. Sums of 32,767 terms and more are wrong: the
    gradient of x sums over the rows of the weight, which are taken 2**14 at a time."""
    rows = x.flatten(0, -2)  # (N, m)
    y = torch.cat([F.linear(rows, part) for part in weight.split(2**14)], dim=-1)  # (N, n)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.unflatten(0, x.shape[:-1])
