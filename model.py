"""The network: a transformer that reads a noisy text x_t and predicts the whole text x_1.

    logits = model(x_t, t, h)      tokens x_t (B, L), time t (B,), step size h (B,) -> (B, L, V)

softmax(logits) is the posterior: for every position, the probability of each of the V tokens of the
vocabulary to stand there in the text x_1, given the noisy x_t.

It is a DiT (Peebles & Xie 2023) over tokens. Two things differ from a GPT: attention has no causal
mask, and a condition c shifts and scales every layer norm and gates every branch ("adaLN"). c says
at which time t between noise and text we are and, for the few-step student, how large the next step
h is. One network that is told its step size: an idea of shortcut models (Frans et al. 2024) that
FS-DFM takes over.

    DFM, the many-step baseline    c = SiLU(E_t(t))
    FS-DFM, the few-step student   c = SiLU(W1 [E_t(t), E_h(h)]); each Modulation: SiLU(W2 c)
    judge, which scores text       a causal mask; it reads text alone, so t = 1

Sources: FS-DFM (arXiv 2509.20624), whose network follows SEDD (Lou et al. 2024); rotary positions
from RoFormer (Su et al. 2021); normalised queries and keys (Henry et al. 2020), which the paper
does not have. Before: toy.py. Read next: flow.py, where logits become text.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    """All that is needed to build a network; saved with its weights."""

    vocab_size: int  # V
    block_size: int = 128  # L, the most tokens of a text
    n_layer: int = 4
    n_head: int = 4
    dim: int = 128  # d, width of the residual stream
    cond_dim: int = 64  # width of the vectors that t and h are embedded in
    dropout: float = 0.0
    step_aware: bool = False  # FS-DFM is told h, the DFM is not
    causal: bool = False  # the judge: attention to the left only
    time_scale: float = 1000.0  # of t and h before they are embedded
    position_scale: float = 0.07  # of sines of the position that are added to the embedding


# ------------------------------------------------------------------------------------------------
# conditioning on t and h


def angles(value, n):
    """(...) -> (..., n): a number times n frequencies from 1 down to nearly 1/10,000."""
    return value[..., None].float() * 10_000 ** (-torch.arange(n, device=value.device) / n)


class ScalarEmbedding(nn.Module):
    """A number in [0, 1] -> cond_dim numbers, by way of 128 cosines, 128 sines and a small MLP."""

    def __init__(self, config):
        super().__init__()
        width = config.cond_dim
        self.scale = config.time_scale
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value):  # (B, T) -> (B, T, cond_dim)
        a = angles(self.scale * value, 128)
        return self.mlp(torch.cat([a.cos(), a.sin()], dim=-1))


class Condition(nn.Module):
    """t (and h) -> c, (B, T, cond_dim), or (B, T, 2 cond_dim) if step_aware. T is 1, or L where
    every token has a time of its own: those of a prompt are text already, at t = 1."""

    def __init__(self, config):
        super().__init__()
        self.step_aware = config.step_aware
        self.time_embedding = ScalarEmbedding(config)
        if config.step_aware:
            self.step_embedding = ScalarEmbedding(config)
            self.fuser = nn.Linear(2 * config.cond_dim, 2 * config.cond_dim)

    def forward(self, t, h):  # t (B,) or (B, L); h (B,)
        e = self.time_embedding(t.reshape(len(t), -1))  # (B, T, cond_dim)
        if self.step_aware:
            assert h is not None, "a student is told its step size h"
            e_h = self.step_embedding(h[:, None]).expand_as(e)
            e = self.fuser(torch.cat([e, e_h], dim=-1))  # (B, T, 2 cond_dim)
        return F.silu(e)


class Modulation(nn.Module):
    """adaLN: the condition -> `parts` vectors (B, T, d), shift, scale and gate; at first all 0."""

    def __init__(self, config, parts):
        super().__init__()
        width = config.cond_dim
        self.parts = parts
        self.fuser = nn.Linear(2 * width, width) if config.step_aware else None
        self.linear = nn.Linear(width, parts * config.dim)

    def forward(self, c):
        c = c if self.fuser is None else F.silu(self.fuser(c))
        return self.linear(c).chunk(self.parts, dim=-1)


# ------------------------------------------------------------------------------------------------
# the transformer


def rotate(x, cos, sin):
    """Rotary positions: turns pairs of numbers of x (B, heads, L, head_dim) by angles that grow
    with the position, cos and sin (L, head_dim / 2). q . k then depends on the distance alone."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.causal = config.causal
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.qk_norm = nn.RMSNorm(config.dim // config.n_head, elementwise_affine=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x, cos, sin):
        B, L, d = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        q, k = self.qk_norm(q), self.qk_norm(k)  # (B, heads, L, head_dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = attend(q, k, v, self.causal)
        return self.out(y.transpose(1, 2).reshape(B, L, d))


def attend(q, k, v, causal):
    """softmax(q k^T / sqrt(head_dim)) v, each (B, heads, L, head_dim). Written out where PyTorch's
    own backward pass is slow, in bfloat16 on a CPU (docs/speed.md)."""
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if slow and not causal:
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config.dim
        self.modulation = Modulation(config, parts=6)
        self.norm1 = nn.LayerNorm(d, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU("tanh"), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, c, cos, sin):  # x (B, L, d)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)  # (B, T, d) each
        branch = self.attention(self.norm1(x) * (1 + scale_1) + shift_1, cos, sin)
        x = x + gate_1 * self.dropout(branch)
        branch = self.mlp(self.norm2(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.dropout(branch)


class OutputLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modulation = Modulation(config, parts=2)
        self.norm = nn.LayerNorm(config.dim, bias=False)
        self.linear = nn.Linear(config.dim, config.vocab_size)

    def forward(self, x, c):  # (B, L, d) -> (B, L, V)
        shift, scale = self.modulation(c)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class Transformer(nn.Module):
    """logits = model(x_t, t, h): x_t (B, L) int64 below V; t (B,) or (B, L) float in [0, 1]; h (B,)
    float in (0, 1], which only a step_aware network reads. Logits (B, L, V), under autocast
    of its type. L is at most config.block_size."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.condition = Condition(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.output_layer = OutputLayer(config)
        position = torch.arange(config.block_size)
        a = angles(position, config.dim // config.n_head // 2)  # (L, head_dim / 2)
        self.register_buffer("rotary", torch.stack([a.cos(), a.sin()]), persistent=False)
        a = angles(position, config.dim // 2)
        sines = config.position_scale * torch.cat([a.sin(), a.cos()], dim=-1)  # (L, d)
        self.register_buffer("sines", sines, persistent=False)
        self.apply(init_weights)
        # at first it predicts the token that it reads
        self.output_layer.linear.weight.data.copy_(self.embedding.weight)

    def forward(self, x_t, t, h=None):
        L, most = x_t.shape[1], self.config.block_size
        assert L <= most, f"a text of {L} tokens, and the network was made for {most} (block_size)"
        cos, sin = self.rotary[:, :L]
        c = self.condition(t, h)
        x = self.embedding(x_t) + self.sines[:L]  # (B, L, d)
        for block in self.blocks:
            x = block(x, c, cos, sin)
        return self.output_layer(x, c)  # (B, L, V)


def init_weights(module):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, Modulation):  # apply() comes to its Linear first, and then to it
        nn.init.zeros_(module.linear.weight)


# ------------------------------------------------------------------------------------------------
# from DFM to FS-DFM, and the judge


@torch.no_grad()
def student_from(dfm):
    """A step-aware copy of the DFM that starts as exactly the same function.

    The new layers are E_h, W1 and, in each Modulation, W2. W1 and W2 must pass a = E_t(t) on:
    SiLU(a) - SiLU(-a) = a, so W1 makes [a, -a] and W2 = [I, -I] makes a again. The columns of W1
    that read E_h(h) start at 0.
    """
    student = type(dfm)(replace(dfm.config, step_aware=True))
    keys = student.load_state_dict(dfm.state_dict(), strict=False)  # biases of W1 and W2 are 0
    assert not keys.unexpected_keys, f"the student has no {keys.unexpected_keys}"
    eye = torch.eye(dfm.config.cond_dim)
    for module in student.modules():
        if isinstance(module, Condition):
            module.fuser.weight.copy_(torch.kron(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), eye))
        if isinstance(module, Modulation):
            module.fuser.weight.copy_(torch.cat([eye, -eye], dim=1))
    return student


def next_token_nll(judge, x):
    """-log p(x[i] | x[:i]) under a causal network, in nats: tokens (B, L) -> (B, L - 1)."""
    logits = judge(x[:, :-1], torch.ones(len(x), device=x.device)).float()  # (B, L - 1, V)
    return F.cross_entropy(logits.mT, x[:, 1:], reduction="none")
