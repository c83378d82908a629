"""The network: a transformer that predicts the whole text x_1 from a noisy one.

    logits = model(x_t, t, h)      tokens x_t (B, L), time t (B,), step size h (B,) -> (B, L, V)

t may also be (B, L), a time for every token: tokens of a prompt are text already, so their time is
1 (flow.reveal).

softmax(logits) is the posterior: for every position, the probability of each of the V tokens of the
vocabulary to stand there in the text x_1, given the noisy x_t. (Under the mask source there is one
token more, MASK, whose logit is ignored.)

It is a DiT (Peebles & Xie, 2023) over tokens: a transformer without a causal mask, whose layer
norms are shifted, scaled and gated by a vector c ("adaLN"). c says when on the path from noise
to text we are (t), and, for the few-step student, how large the next step is (h). Conditioning
on the step size is FS-DFM's first idea: one network that knows how far it must go.

    DFM, the many-step baseline    c = SiLU(E_t(t))
    FS-DFM, the few-step student   c = SiLU(W2 SiLU(W1 [E_t(t), E_h(h)]))
    judge, which scores text       a causal mask, and no noise: t = 1 always

Sources: FS-DFM (arXiv 2509.20624), whose network follows SEDD (Lou et al., 2024); rotary
positions from RoFormer (Su et al., 2021), sinusoidal ones from Vaswani et al. (2017).
Read next: flow.py, where logits become text.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from common.fast import Linear, attention


@dataclass
class ModelConfig:
    """What is needed to rebuild a network and its path. Stored with the weights."""

    vocab_size: int  # V, the tokens of the text; the mask source adds one more, MASK, with id V
    block_size: int = 128  # L, tokens in a training sequence
    n_layer: int = 6
    n_head: int = 4
    dim: int = 256  # d, width of the residual stream
    cond_dim: int = 64  # width of the vectors that t and h are embedded in
    dropout: float = 0.0
    source: str = "uniform"  # x_0: "uniform" (random tokens) or "mask" (all MASK)
    exponent: float = 1.0  # the schedule is kappa(t) = t ** exponent
    causal: bool = False  # the judge: attention to the left only
    step_aware: bool = False  # FS-DFM: conditioned on h
    time_scale: float = 1000.0  # t and h are multiplied by it before they are embedded
    positions: str = "rotary"  # or "sinusoidal": rotary, and sines of the absolute position
    given_share: float = 0.0  # share of training texts in which some tokens are given (flow.reveal)
    update: str = "cumulative"  # the sampler's rule that suits the network (flow.Sampler)
    shared_noise: bool = False  # whether its tokens are to be drawn with the same random numbers

    @property
    def n_tokens(self):
        """Rows of the embedding and of the output: V, or V + 1 with MASK."""
        return self.vocab_size + (self.source == "mask")

    @property
    def mask_id(self):
        """The id of MASK; -1, which equals no token, under the uniform source."""
        return self.vocab_size if self.source == "mask" else -1


# ------------------------------------------------------------------------------------------------
# conditioning on t and h


class ScalarEmbedding(nn.Module):
    """A number in [0, 1] -> a vector: 128 cosines and 128 sines, then a small MLP."""

    def __init__(self, cond_dim, scale):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(Linear(256, cond_dim), nn.SiLU(), Linear(cond_dim, cond_dim))

    def forward(self, value):  # (B, T) -> (B, T, cond_dim)
        powers = torch.arange(128, device=value.device) / 128
        frequencies = torch.exp(-math.log(10000) * powers)  # (128,)
        angles = self.scale * value[..., None].float() * frequencies  # (B, T, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Condition(nn.Module):
    """t (and h) -> the vectors that modulate every block: (B, T, c) for DFM, (B, T, 2c) for FS-DFM.
    T is 1, or L if every token has a time of its own. c is config.cond_dim."""

    def __init__(self, config):
        super().__init__()
        self.time_embedding = ScalarEmbedding(config.cond_dim, config.time_scale)
        if config.step_aware:
            self.step_embedding = ScalarEmbedding(config.cond_dim, config.time_scale)
            self.fuser = Linear(2 * config.cond_dim, 2 * config.cond_dim)
        self.step_aware = config.step_aware

    def forward(self, t, h):  # t (B,) or (B, L); h (B,) or (B, 1)
        e_t = self.time_embedding(t.reshape(len(t), -1))  # (B, T, c)
        if not self.step_aware:
            return F.silu(e_t)
        e_h = self.step_embedding(h.reshape(len(h), -1)).expand_as(e_t)
        return F.silu(self.fuser(torch.cat([e_t, e_h], dim=-1)))  # (B, T, 2c)


class Modulation(nn.Module):
    """adaLN: c -> `parts` vectors (B, T, d): shifts, scales, gates. All are zero at the start."""

    def __init__(self, config, parts):
        super().__init__()
        self.parts = parts
        self.fuser = None
        if config.step_aware:
            self.fuser = Linear(2 * config.cond_dim, config.cond_dim)
        self.linear = Linear(config.cond_dim, parts * config.dim)

    def forward(self, c):
        if self.fuser is not None:
            c = F.silu(self.fuser(c))  # (B, T, 2c) -> (B, T, c)
        return self.linear(c).chunk(self.parts, dim=-1)


# ------------------------------------------------------------------------------------------------
# the transformer


def position_angles(positions, dim):
    """Position times frequency, (L, dim / 2), for positions (L,) and dim / 2 frequencies."""
    powers = torch.arange(0, dim, 2, device=positions.device).float() / dim
    return positions.float()[:, None] * 10000**-powers


def sinusoidal_positions(positions, dim):
    """Sines and cosines of absolute positions, (L, dim), a little larger than a new embedding. They
    help where a text begins at the first position; rotary positions say only how far apart two
    tokens are."""
    angles = position_angles(positions, dim)
    return 0.07 * torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotary_tables(positions, head_dim):
    """cos and sin (L, head_dim) of the angles, each of which turns two numbers."""
    angles = position_angles(positions, head_dim)  # (L, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (L, head_dim)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotates the pairs (x[i], x[i + head_dim / 2]) by their angles, so that q . k depends on the
    distance of two positions only. x (B, heads, L, head_dim)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.causal = config.causal
        self.qkv = Linear(config.dim, 3 * config.dim, bias=False)
        self.out = Linear(config.dim, config.dim, bias=False)
        self.kv_cache = None  # the judge sets one while it writes token by token (common/judge.py)

    def forward(self, x, cos, sin):
        B, L, d = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.n_head, d // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, head_dim) each
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        if self.kv_cache is not None:
            k, v = self.kv_cache.extend(k, v)
        y = attention(q, k, v, is_causal=self.causal and L > 1)  # (B, heads, L, head_dim)
        return self.out(y.transpose(1, 2).reshape(B, L, d))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.modulation = Modulation(config, parts=6)
        self.norm1 = nn.LayerNorm(config.dim, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, bias=False)
        self.mlp = nn.Sequential(
            Linear(config.dim, 4 * config.dim),
            nn.GELU(approximate="tanh"),
            Linear(4 * config.dim, config.dim),
        )
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
        self.linear = Linear(config.dim, config.n_tokens)

    def forward(self, x, c):  # (B, L, d) -> (B, L, n_tokens)
        shift, scale = self.modulation(c)
        x = self.norm(x) * (1 + scale) + shift
        return self.linear(x)


class Transformer(nn.Module):
    """logits = model(x_t, t, h).

    x_t (B, L) int64 tokens below config.n_tokens; t (B,) or (B, L) float in [0, 1]; h (B,) or
    (B, 1) float in (0, 1], ignored unless config.step_aware. Returns (B, L, n_tokens) logits for
    x_1, in bfloat16 under autocast. The judge (config.causal) takes x alone; `start` is the
    position of its first token.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_dim = config.dim // config.n_head
        self.embedding = nn.Embedding(config.n_tokens, config.dim)
        # made once, for speed alone: torch.compile makes them anew in every block, which takes
        # 6.4 ms of a training step instead of 1.1 (H200, the paper's small network: 46.7 ms)
        tables = rotary_tables(torch.arange(config.block_size, device="cpu"), self.head_dim)
        self.register_buffer("rotary", torch.stack(tables), persistent=False)  # (2, L, head_dim)
        self.condition = Condition(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.output_layer = OutputLayer(config)
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        with torch.no_grad():  # at first it predicts the token that it reads
            self.output_layer.linear.weight.copy_(self.embedding.weight)

    def forward(self, x_t, t=None, h=None, start=0):
        if self.config.causal:
            t = torch.ones(len(x_t), device=x_t.device)  # clean text, the end of every path
        end = start + x_t.shape[1]
        positions = torch.arange(start, end, device=x_t.device)
        cos, sin = self.rotary[:, start:end]  # (L, head_dim) each
        if end > self.config.block_size:  # a text longer than those of training
            cos, sin = rotary_tables(positions, self.head_dim)
        c = self.condition(t, h)
        x = self.embedding(x_t)  # (B, L, d)
        if self.config.positions == "sinusoidal":
            x = x + sinusoidal_positions(positions, self.config.dim)
        for block in self.blocks:
            x = block(x, c, cos, sin)
        return self.output_layer(x, c)  # (B, L, n_tokens)


def init_weights(module):
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------
# from DFM to FS-DFM


@torch.no_grad()
def copy_dfm_weights(student, dfm, fuser_init="copy"):
    """Fills `student` (step_aware) with the weights of `dfm`.

    fuser_init "copy": the student starts as exactly the same function. The layers that read h are
    new and must not disturb what is learned. SiLU(a) - SiLU(-a) = a, so two linear layers with a
    SiLU between them can pass E_t(t) through: W1 makes [a, -a], and W2 = [I, -I] makes a again.
    The columns of W1 that read E_h(h) start at zero.

    fuser_init "fresh": random weights there, as in the published code.
    """
    student.load_state_dict(dfm.state_dict(), strict=False)
    if fuser_init == "fresh":
        return
    identity = torch.eye(dfm.config.cond_dim)
    zeros = torch.zeros_like(identity)
    w1 = torch.cat([torch.cat([identity, zeros], 1), torch.cat([-identity, zeros], 1)])
    w2 = torch.cat([identity, -identity], 1)
    student.condition.fuser.weight.copy_(w1)
    student.condition.fuser.bias.zero_()
    for module in student.modules():
        if isinstance(module, Modulation):
            module.fuser.weight.copy_(w2)
            module.fuser.bias.zero_()
