"""Discrete flow matching: the path from noise to text, the loss, and the few large steps that follow it back.

The path.      Every token of x_t is, independently, the text x_1 with probability kappa(t) and noise x_0 otherwise.
The model.     p(y) = softmax(logits(x_t, t, h)) guesses x_1 at every place.
The velocity.  A token at x jumps to y at the rate  kappa'(t) / (1 - kappa(t)) * p(y),  y != x.

A step of size h holds p still and lets the rate act for a time h. Its scale grows without bound as t -> 1, so freezing
it at t (Euler) moves far too little when h is large. FS-DFM's second idea is to use its *average over the step*,

    g(t, h) = (1/h) * integral_t^{t+h} kappa' / (1 - kappa) ds = (1/h) * ln[(1 - kappa(t)) / (1 - kappa(t + h))]

    P(jump) = 1 - exp(-h g (1 - p(x_t))) = 1 - ((1 - kappa(t + h)) / (1 - kappa(t))) ** (1 - p(x_t))

A worked example: kappa = t, t = 0, h = 1/2, p(x_t) = 0.2. Euler: 1 - exp(-0.5 * 1 * 0.8) = 0.33. Cumulative scalar:
1 - 0.5 ** 0.8 = 0.43. In the last step, from t = 1/2, Euler gives 0.55; the cumulative scalar 1: nothing is left behind.

Sources: Gat et al. 2024 (discrete flow matching), Shaul et al. 2025 (generalised KL), FS-DFM (arXiv 2509.20624,
cumulative scalar). Read next: distill.py.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

LAST_TIME = 1 - 1e-3  # DFM is trained up to here: the loss's weight, kappa' / (1 - kappa), has no limit at t = 1


# ---------------------------------------------------------------------------------------------------------------
# the path


def kappa(t, exponent=1.0):
    """The schedule: probability that a token of x_t is text already. t float or tensor in [0, 1]; 0 at 0, 1 at 1."""
    return t**exponent


def sample_source(shape, config, device=None):
    """x_0, int64 of `shape`: every token uniform over the vocabulary, or all MASK."""
    if config.source == "mask":
        return torch.full(shape, config.mask_id, device=device)
    return torch.randint(config.vocab_size, shape, device=device)


def sample_path(x_1, t, config):
    """x_t (B, L) for text x_1 (B, L) at times t (B,): each token is text with probability kappa(t), else noise."""
    is_text = torch.rand(x_1.shape, device=x_1.device) < kappa(t, config.exponent)[:, None]  # (B, L)
    return torch.where(is_text, x_1, sample_source(x_1.shape, config, x_1.device))


def sample_times(batch_size, device=None):
    """(B,) times spread evenly over [0, LAST_TIME) with one shared random offset: uniform, and far less noisy than B draws."""
    offset = torch.rand((), device=device)
    return (torch.arange(batch_size, device=device) / batch_size + offset) % 1 * LAST_TIME


# ---------------------------------------------------------------------------------------------------------------
# large vocabularies

LOGITS_AT_A_TIME = 2**26  # numbers: 256 MB in float32


def in_parts(function, network, hidden, *others):
    """function(logits, *others) for logits = network.read_out(hidden), where the whole (B, L, V) of them is too much for the
    memory: for as many sequences at a time as fit, and again in the backward pass, so that none are kept. hidden (B, L, d);
    others (B, ...), cut likewise. What the function returns is joined, (B, ...)."""

    def part(hidden, *others):
        return function(network.read_out(hidden), *others)

    size = max(1, LOGITS_AT_A_TIME // (hidden.shape[1] * network.config.n_tokens))
    if size >= len(hidden):
        return part(hidden, *others)
    pieces = zip(*(tensor.split(size) for tensor in (hidden, *others)))
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])
    return torch.cat([part(*piece) for piece in pieces])


# ---------------------------------------------------------------------------------------------------------------
# the loss


def rate(t, exponent=1.0):
    """kappa'(t) / (1 - kappa(t)), the velocity's scale; infinite at t = 1."""
    return exponent * t ** (exponent - 1) / (1 - kappa(t, exponent))


def text_logits(logits, config):
    """The float32 logits of the V tokens that text is made of: MASK is never text. (B, L, n_tokens) -> (B, L, V)."""
    return logits[..., : config.vocab_size].float()


def generalized_kl(logits, x_1, x_t, t, config, largest_rate=math.inf):
    """The training loss of DFM, per token: (B, L) nats. An upper bound on -log likelihood when integrated over t.

        kappa' / (1 - kappa) * ( [x_t = x_1] - p(x_t) - [x_t != x_1] log p(x_1) )              (Shaul et al. 2025)

    Under the mask source a shown token is known to be right, p(x_t) = 1 ("carry over"): its loss is 0, and what
    remains is the weighted cross entropy of the masked tokens. logits (B, L, n_tokens), x_1 and x_t (B, L), t (B,).

    Training holds the weight kappa' / (1 - kappa) below `largest_rate`. The best p is the true posterior under any weights,
    but near t = 1 a rare wrong token counts a thousandfold, and that noise drowns what the other times teach.
    """
    weight = rate(t, config.exponent).clamp(max=largest_rate)[:, None]  # (B, 1)
    if config.source == "mask":
        hidden = x_t == config.mask_id  # (B, L)
        log_p = -F.cross_entropy(text_logits(logits, config).flatten(0, 1), x_1.flatten(), reduction="none")
        return weight * torch.where(hidden, -log_p.view(x_1.shape), 0)
    log_p = text_logits(logits, config).log_softmax(-1)  # (B, L, V)
    log_p_text, log_p_stay = log_p.gather(-1, torch.stack([x_1, x_t], dim=-1)).unbind(-1)  # (B, L) each
    p_stay = log_p_stay.exp()
    return weight * torch.where(x_t == x_1, 1 - p_stay, -p_stay - log_p_text)


def dfm_loss(network, x_1, largest_rate=math.inf):
    """What the many-step model is trained with: the mean of the generalised KL over texts x_1 (B, L), each at a time of its own. Nats per token."""
    config = network.config
    t = sample_times(len(x_1), x_1.device)  # (B,)
    x_t = sample_path(x_1, t, config)

    def loss(logits, x_1, x_t, t):
        return generalized_kl(logits, x_1, x_t, t, config, largest_rate)

    return in_parts(loss, network, network(x_t, t, hidden=True), x_1, x_t, t).mean()


# ---------------------------------------------------------------------------------------------------------------
# one step


def survival(t, h, exponent=1.0):
    """exp(-h g(t, h)) = (1 - kappa(t + h)) / (1 - kappa(t)): chance that a token which the model calls noise,
    p(x_t) = 0, is still there after a step of size h. In [0, 1]; 0 when the step ends at t + h = 1."""
    return (1 - kappa(t + h, exponent)) / (1 - kappa(t, exponent))


def cumulative_scalar(t, h, exponent=1.0):
    """g(t, h): the velocity's scale averaged over [t, t + h]. Tensors; infinite when t + h = 1 (FS-DFM)."""
    return -survival(t, h, exponent).log() / h


def jump_probability(p_stay, t, h, exponent=1.0):
    """P(jump) of the cumulative scalar update, in [0, 1]. p_stay = p(x_t) (B, L); t and h broadcast against it."""
    return 1 - survival(t, h, exponent) ** (1 - p_stay).clamp(min=0)


def euler_probability(p_stay, t, h, exponent=1.0):
    """P(jump) of the plain Euler step, whose scale is frozen at t: the baseline of the cumulative scalar."""
    return 1 - torch.exp(-h * rate(t, exponent) * (1 - p_stay))


def categorical(probs, block=64):
    """One draw per row of (N, V) weights that need not sum to 1. Returns (N,) int64.

    Inverse cumulative sum: one uniform number a row instead of V, and in float64, since a tail that rounding cuts off
    lowers the temperature in secret (compiled by Inductor it has float32's resolution). A weight of zero is never drawn.
    The sum is taken over blocks of tokens, and then within the block that was hit, so that V float64 numbers a row are
    never written (13 times as fast at V = 1,024).
    """
    N, V = probs.shape
    whole = V // block * block
    parts = [probs[:, :whole].unflatten(1, (-1, block)).sum(-1), probs[:, whole:].sum(-1, keepdim=True)]
    sums = torch.cat(parts, dim=1).double()  # (N, V // block + 1), the last for what is left over
    cumulative = sums.cumsum(-1)
    target = torch.rand(N, 1, dtype=torch.float64, device=probs.device) * cumulative[:, -1:]
    hit = torch.searchsorted(cumulative, target, right=True).clamp(max=sums.shape[1] - 1)  # (N, 1), which block
    target = target - (cumulative - sums).gather(1, hit)
    tokens = hit * block + torch.arange(block, device=probs.device)  # (N, block)
    weights = probs.gather(1, tokens.clamp(max=V - 1)).double()
    inside = weights.masked_fill(tokens >= V, 0).cumsum(-1)
    target = target.clamp(min=0).minimum(inside[:, -1:] * (1 - 1e-15))  # rounding must not lead out of the block
    drawn = hit * block + torch.searchsorted(inside, target, right=True)
    return drawn.clamp(max=V - 1).squeeze(1)  # of weights that are no numbers, too, a token: the loss says what is wrong


JUMP_PROBABILITIES = {"cumulative": jump_probability, "euler": euler_probability}


def probabilities(logits, temperature=1.0, top_p=1.0):
    """softmax(logits / temperature), (..., V) float32. Below 1, `top_p` keeps the likeliest tokens that reach it together, at least one, and gives the others none."""
    probs = (logits if temperature == 1 else logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, tokens = probs.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have together
        probs = probs.scatter(-1, tokens, torch.where(before < top_p, ordered, 0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def jump(x_t, logits, t, h, config, temperature=1.0, top_p=1.0):
    """One jump: x_t at time t -> (B, L) tokens at time t + h.

    A token leaves x_t with probability P(jump), for y drawn from p restricted to y != x_t. When the step ends at
    t + h = 1 nothing follows that could mend it, and x_1 is drawn from p itself. Under the mask source only MASK moves.
    x_t (B, L), logits (B, L, n_tokens), t and h (B,).
    """
    probs = probabilities(text_logits(logits, config), temperature, top_p)  # (B, L, V)
    at_end = (t + h > 1 - 3e-7)[:, None]  # (B, 1); the last of 1,024 shrinking steps has h = 1e-6
    if config.source == "mask":
        p_stay = torch.zeros(x_t.shape, device=x_t.device)  # p(MASK) = 0
    else:
        p_stay = probs.gather(-1, x_t[..., None]).squeeze(-1)  # p(x_t), (B, L)
        probs.scatter_(-1, x_t[..., None], torch.where(at_end, p_stay, 0)[..., None])  # a token that jumps cannot stay
    p_jump = JUMP_PROBABILITIES[config.update](p_stay, t[:, None], h[:, None], config.exponent)
    moves = at_end | (torch.rand(x_t.shape, device=x_t.device) < p_jump)  # (B, L) bool
    if config.source == "mask":
        moves = moves & (x_t == config.mask_id)
    if x_t.is_cuda or torch.compiler.is_compiling():  # a draw for every token: to pick those that move, a GPU would wait for the host
        return torch.where(moves, categorical(probs.flatten(0, 1)).view(x_t.shape), x_t)
    return x_t.masked_scatter(moves, categorical(probs[moves]))


# ---------------------------------------------------------------------------------------------------------------
# many steps


def step_times(steps, easing=1.0):
    """Steps -> [(t, h), ...]. `steps` is a list of sizes that sum to 1, or a number n >= 1: n steps between the times

        t_i = 1 - (1 - i / n) ** easing,    i = 0, ..., n            (easing 1: uniform steps, those of the paper)

    With easing above 1 the steps shrink towards the end. Under the uniform source a token that was drawn wrong can be drawn
    again, as long as there is time: what the first steps spoil is mended, what the last ones spoil stays. In the exact world
    of the tests 8 steps with easing 2 have a third of the error of 8 uniform ones. Under the mask source no token is drawn
    twice, and uniform steps are best.
    """
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"the number of steps must be at least 1, not {steps}")
        times = [1 - (1 - i / steps) ** easing for i in range(steps + 1)]
    else:
        if not steps or min(steps) <= 0 or abs(sum(steps) - 1) > 1e-6:
            raise ValueError(f"step sizes must be positive and sum to 1, not {steps}")
        times = [sum(steps[:i]) for i in range(len(steps))] + [1.0]
    return [(t, t_next - t) for t, t_next in zip(times, times[1:])]


def make_step(model, temperature=1.0, top_p=1.0):
    """step(x_t, t, h) -> tokens at time t + h: the network, and one jump by what it says. It is a function of its own so that
    torch.compile can make one graph of the two."""

    def jump_by(logits, x_t, t, h):
        return jump(x_t, logits, t, h, model.config, temperature, top_p)

    def step(x_t, t, h):  # (B, L), (B,), (B,)
        return in_parts(jump_by, model, model(x_t, t, h, hidden=True), x_t, t, h)

    return step


@torch.no_grad()
def generate(step, x_0, times, frozen=None, callback=None):
    """From noise x_0 (B, L) to text (B, L).

    step is make_step's; times are those of step_times; frozen (B, L) bool marks tokens of x_0 that are given (a prompt) and
    never change; callback(number, x_t), if any, is called after every step.

    Under the mask source a given token is read as what it is. Under the uniform source that is approximate: the network is not
    told which tokens are given, takes them for noise as long as t is small, and heeds them only in the later steps.
    """
    x_t = x_0
    for number, (t, h) in enumerate(times, start=1):
        t, h = torch.full((len(x_t),), t, device=x_t.device), torch.full((len(x_t),), h, device=x_t.device)
        x_next = step(x_t, t, h)  # (B, L)
        x_t = x_next if frozen is None else torch.where(frozen, x_t, x_next)
        if callback is not None:
            callback(number, x_t)
    return x_t
