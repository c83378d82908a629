"""The network: one transformer that serves as judge, as many-step DFM and as few-step FS-DFM.

    logits = model(x_t, t, h)        x_t (B, L) tokens  ->  (B, L, V) scores for what x_1 is at every place

It is a DiT (Peebles & Xie, 2023) over tokens: a transformer without a causal mask whose LayerNorms are shifted,
scaled and gated by a vector c that says *when* on the path from noise to text we are (t) and, for the few-step
student, *how far the next step will go* (h). That h is FS-DFM's first idea: one network, told its step size.

    DFM      c = SiLU(E_t(t))
    FS-DFM   c = SiLU(W2 SiLU(W1 [E_t(t), E_h(h)]))        W1 shared, W2 its own in every block
    judge    causal attention, no noise and so no time: t = 1 always

Source: FS-DFM (arXiv 2509.20624), whose network follows SEDD (Lou et al., 2024); rotary positions from RoFormer
(Su et al., 2021). Read next: flow.py, where the logits become motion.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ModelConfig:
    """All that is needed to rebuild a network and the path it was trained on; stored in every checkpoint."""

    vocab_size: int  # V: tokens that text is made of; the mask source adds one more, MASK, with the id V
    block_size: int = 128  # L: tokens in a training sequence (rotary positions run on past it)
    n_layer: int = 6
    n_head: int = 4
    dim: int = 256  # d: width of the residual stream
    cond_dim: int = 64  # width of the vector c that carries t and h
    dropout: float = 0.0
    source: str = "uniform"  # what x_0 is: "uniform" (random tokens) or "mask" (all MASK)
    exponent: float = 1.0  # the schedule is kappa(t) = t ** exponent
    easing: float = 1.0  # n steps run between the times 1 - (1 - i/n)^easing: 1 is uniform, above 1 they shrink towards the end
    update: str = "cumulative"  # how a step's jump probability is found: "cumulative" (scalar) or "euler"
    causal: bool = False  # the judge: attention looks back only
    step_aware: bool = False  # FS-DFM: the network is told h
    time_scale: float = 1000.0  # t and h are multiplied by it before the sinusoids; the released checkpoints use 1

    @property
    def n_tokens(self) -> int:
        """Size of the embedding and of the output: V, or V + 1 with a MASK token."""
        return self.vocab_size + (self.source == "mask")

    @property
    def mask_id(self) -> int:
        """The id of MASK under the mask source; under the uniform source -1, which equals no token."""
        return self.vocab_size if self.source == "mask" else -1


# ---------------------------------------------------------------------------------------------------------------
# t and h as vectors


class ScalarEmbedding(nn.Module):
    """A number in [0, 1] as a vector: 128 cosines and 128 sines of falling frequency, then a small MLP."""

    def __init__(self, cond_dim, scale):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, value):  # (B,) -> (B, cond_dim)
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=value.device) / 128)  # (128,)
        angles = self.scale * value[:, None].float() * frequencies  # (B, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Condition(nn.Module):
    """t (and h) -> the vector that each block's Modulation reads: (B, c) for DFM, (B, 2c) for FS-DFM."""

    def __init__(self, config):
        super().__init__()
        self.time_embedding = ScalarEmbedding(config.cond_dim, config.time_scale)
        if config.step_aware:
            self.step_embedding = ScalarEmbedding(config.cond_dim, config.time_scale)
            self.fuser = nn.Linear(2 * config.cond_dim, 2 * config.cond_dim)
        self.step_aware = config.step_aware

    def forward(self, t, h):
        if not self.step_aware:
            return F.silu(self.time_embedding(t))  # (B, c)
        both = torch.cat([self.time_embedding(t), self.step_embedding(h)], dim=-1)  # (B, 2c)
        return F.silu(self.fuser(both))


class Modulation(nn.Module):
    """adaLN: c -> `parts` vectors of width d (shifts, scales, gates). Starts at zero, so gates start shut."""

    def __init__(self, config, parts):
        super().__init__()
        self.parts = parts
        self.fuser = nn.Linear(2 * config.cond_dim, config.cond_dim) if config.step_aware else None
        self.linear = nn.Linear(config.cond_dim, parts * config.dim)

    def forward(self, c):  # (B, c) or (B, 2c) -> parts x (B, 1, d)
        if self.fuser is not None:
            c = F.silu(self.fuser(c))
        return self.linear(c).unsqueeze(1).chunk(self.parts, dim=-1)


# ---------------------------------------------------------------------------------------------------------------
# the transformer


def rotary_tables(length, heads, head_dim, device):
    """cos and signed sin of position times frequency for `rotate`, (L, heads, head_dim) each: the same for all heads, but
    written out, since long rows without a broadcast in them are twice as fast on a CPU (measured)."""
    frequencies = 10000 ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)  # (head_dim / 2,)
    angles = torch.arange(length, device=device).float()[:, None] * frequencies  # (L, head_dim / 2)
    cos, sin = torch.cat([angles, angles], dim=-1).cos(), torch.cat([-angles, angles], dim=-1).sin()  # (L, head_dim)
    return cos[:, None].repeat(1, heads, 1), sin[:, None].repeat(1, heads, 1)


def rotate(x, cos, sin):
    """Turns the pairs (x[i], x[i + head_dim / 2]) by their angles, so that q . k depends on distance only.
    (a, b) -> (a cos - b sin, b cos + a sin), for x (B, L, heads, head_dim)."""
    a, b = x.chunk(2, dim=-1)  # (B, L, heads, head_dim / 2) each
    return torch.addcmul(x * cos, torch.cat([b, a], dim=-1), sin)


def attend(q, k, v, causal):
    """softmax(q k^T / sqrt(head_dim)) v. (B, heads, L, head_dim) each; k and v may be longer than q."""
    few = q[..., 0].numel() * k.shape[2] <= 2**21  # scores that fit into a processor's cache
    if q.is_cuda or not (few or torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # On a CPU the formula written out is faster: 3 times in the backward pass, 2 to 3 times for few scores in bfloat16 (measured, L = 128).
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, L, L)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


class Cache:
    """The keys and values of the tokens a causal block has read, with room for `capacity`."""

    def __init__(self, capacity):
        self.capacity, self.length = capacity, 0

    def extend(self, k, v):
        """Takes in those of new tokens; returns all so far, (B, heads, length, head_dim) each."""
        if self.length == 0:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = k, v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.causal = config.n_head, config.causal
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x, cos, sin, cache=None):
        B, L, d = x.shape
        qk, v = self.qkv(x).view(B, L, 3 * self.n_head, d // self.n_head).split([2 * self.n_head, self.n_head], dim=2)
        qk = rotate(qk, cos.to(qk.dtype), sin.to(qk.dtype))  # (B, L, 2 heads, d / heads)
        q, k, v = (part.transpose(1, 2) for part in (*qk.chunk(2, dim=2), v))  # (B, heads, L, d / heads) each
        if cache is not None:  # what was read before is not computed again
            k, v = cache.extend(k, v)  # (B, heads, tokens so far, d / heads) each
        y = attend(q, k, v, self.causal and L > 1)  # (B, heads, L, d / heads)
        return self.out(y.transpose(1, 2).reshape(B, L, d))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modulation = Modulation(config, parts=6)
        self.norm1 = nn.LayerNorm(config.dim, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(approximate="tanh"), nn.Linear(4 * config.dim, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, c, cos, sin, cache=None):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)  # (B, 1, d) each
        y = self.attention(torch.addcmul(shift_1, self.norm1(x), 1 + scale_1), cos, sin, cache)  # addcmul(a, b, c) = a + b c
        x = torch.addcmul(x, gate_1, self.dropout(y))
        y = self.mlp(torch.addcmul(shift_2, self.norm2(x), 1 + scale_2))
        return torch.addcmul(x, gate_2, self.dropout(y))  # (B, L, d)


class OutputLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modulation = Modulation(config, parts=2)
        self.norm = nn.LayerNorm(config.dim, bias=False)
        self.linear = nn.Linear(config.dim, config.n_tokens)

    def forward(self, x, c):
        shift, scale = self.modulation(c)
        return self.norm(x) * (1 + scale) + shift  # (B, L, d), for self.linear to read


class Transformer(nn.Module):
    """Logits for x_1 at every place.

    forward(x, t, h): x (B, L) int64 tokens below config.n_tokens; t (B,) float in [0, 1]; h (B,) float in (0, 1],
    ignored unless config.step_aware. The judge (config.causal) takes x alone, and with `caches`, one a block, only
    the tokens that follow those it has read: all of a text's beginning at once, then one at a time. Returns
    (B, L, n_tokens), in the autocast type if autocast is on: call .float() before a softmax that is sampled from.

    With hidden=True it stops before the last matrix and returns (B, L, d). `read_out` makes logits of that, of some
    sequences at a time where the vocabulary is large (flow.in_parts): they are by far the largest tensor of all.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.n_tokens, config.dim)
        self.condition = Condition(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.output_layer = OutputLayer(config)
        self.apply(self._init_weights)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.output_layer.linear.weight)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x, t=None, h=None, caches=None, hidden=False):
        if self.config.causal:
            t = torch.ones(len(x), device=x.device)  # the judge reads clean text, the end of every path
        start = caches[0].length if caches else 0
        heads = 2 * self.config.n_head  # those of q and of k
        tables = rotary_tables(start + x.shape[1], heads, self.config.dim // self.config.n_head, x.device)
        cos, sin = (table[start:] for table in tables)  # (L, 2 heads, head_dim) each
        c = self.condition(t, h)
        x = self.embedding(x)  # (B, L, d)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            x = block(x, c, cos, sin, cache)
        x = self.output_layer(x, c)
        return x if hidden else self.read_out(x)

    def read_out(self, hidden):
        """(..., d) -> (..., n_tokens): a linear map, so the mean of logits is the logits of the mean."""
        return self.output_layer.linear(hidden)


# ---------------------------------------------------------------------------------------------------------------
# from DFM to FS-DFM


@torch.no_grad()
def make_step_aware(student, dfm):
    """Fills `student` (step_aware) with the weights of `dfm` so that it starts as exactly the same function.

    What reads h is new, and must not disturb what is learned. SiLU(a) - SiLU(-a) = a, so the two fusers can pass
    E_t(t) through unharmed: W1 makes [a, -a], W2 = [I, -I] restores a, and the last SiLU is the DFM's own. The
    columns of W1 that read E_h(h) start at zero: the student knows nothing of h, and learns from there.
    """
    state = dfm.state_dict()
    student.load_state_dict(state, strict=False)
    identity = torch.eye(dfm.config.cond_dim)
    nothing = torch.zeros_like(identity)
    student.condition.fuser.weight.copy_(torch.cat([torch.cat([identity, nothing], 1), torch.cat([-identity, nothing], 1)]))
    student.condition.fuser.bias.zero_()
    for module in student.modules():
        if isinstance(module, Modulation):
            module.fuser.weight.copy_(torch.cat([identity, -identity], 1))
            module.fuser.bias.zero_()


# ---------------------------------------------------------------------------------------------------------------
# where it runs


def autocast(device):
    """bfloat16 for the matrix products where the hardware is faster at it: GPUs that have it, and CPUs with AMX or AVX-512's bfloat16
    products (7 to 18 times and 4 times there, measured; weights stay float32). Elsewhere float32 throughout."""
    if device.type == "cuda":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can = getattr(torch.cpu, "get_capabilities", dict)()
        enabled = can.get("amx_bf16", False) or can.get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
