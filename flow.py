"""Discrete flow matching: a path from noise to text, its loss, and a sampler of few large steps.

    path       every token of x_t is, independently, the text x_1 with probability kappa(t),
               and noise x_0 otherwise
    posterior  p(y) = softmax(logits(x_t, t, h)): the network's prediction of x_1
    velocity   a token at x jumps to y != x at the rate  kappa'(t) / (1 - kappa(t)) * p(y)

The sampler starts from noise and jumps from t to t + h, again and again, until t = 1. The rate's
scale grows without bound as t -> 1, so its value at t is far too small for a large step (Euler).
FS-DFM's second idea is the cumulative scalar, the scale averaged over the step:

    g(t, h) = (1/h) * integral_t^{t+h} kappa'(s) / (1 - kappa(s)) ds = -ln(S) / h

    P(jump) = 1 - exp(-h g (1 - p(x_t))) = 1 - S ** (1 - p(x_t))

    S = (1 - kappa(t+h)) / (1 - kappa(t))

A token moves at most once in a step, and the move is forced: it goes to another token. A frozen p
does not imply that. If the chain runs on with p frozen, a token may move several times and return.
An example of P(a token changes), with kappa = t, t = 0, h = 1/2 and p = p(x_t) = 0.2:

    euler         scale at t             (1 - exp(-h rate)) (1 - p)    0.315   Meta's library
    euler-forced  the same, forced move  1 - exp(-h rate (1 - p))      0.330
    averaged      scale averaged         (1 - S) (1 - p)               0.400   exact for a frozen p
    cumulative    the same, forced move  1 - S ** (1 - p)              0.426   FS-DFM

The last step is special. There S = 0, and the forced move would expel even a token that the
network is 99% sure of. Nothing follows that could correct it, so the last step draws x_1 ~ p.

Sources: Gat et al. 2024 (discrete flow matching), Shaul et al. 2025 (generalised KL), FS-DFM
(arXiv 2509.20624, cumulative scalar). Before: toy.py, model.py. Read next: distill.py.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

MAX_TRAINING_TIME = 1 - 1e-3  # the loss weight is infinite at t = 1
MAX_STEP_START = 1 - 2**-20  # of a sampler's step: nearer to 1 float32 cannot resolve t + h
FINEST = 1024  # step sizes are trained from 1 down to 1 / FINEST

# ------------------------------------------------------------------------------------------------
# schedule and path


def kappa(t, exponent=1.0):
    """The schedule: the probability that a token of x_t is text. kappa(0) = 0, kappa(1) = 1."""
    return t**exponent


def sample_source(shape, config, device=None):
    """x_0, int64 of `shape`: tokens uniform over the vocabulary, or all MASK."""
    if config.source == "mask":
        return torch.full(shape, config.mask_id, device=device)
    return torch.randint(config.vocab_size, shape, device=device)


def sample_path(x_1, t, config):
    """x_t (B, L) at times t (B,): every token is that of x_1 (B, L) with probability kappa(t)."""
    x_0 = sample_source(x_1.shape, config, x_1.device)
    is_text = torch.rand(x_1.shape, device=x_1.device) < kappa(t, config.exponent)[:, None]
    return torch.where(is_text, x_1, x_0)


def reveal(x_t, x_1, t, share):
    """Training for prompts and infilling, where some tokens are given and the others noisy.

    In `share` of the texts a random part of the tokens, from none to all, becomes that of x_1 with
    a time of its own, t = 1 (times of every token: Diffusion Forcing, Chen et al. 2024). Returns
    x_t (B, L) and the times of its tokens (B, L).
    """
    part = torch.rand(len(t), 1, device=t.device)  # (B, 1)
    part = torch.where(torch.rand_like(part) < share, part, 0)
    given = torch.rand(x_t.shape, device=t.device) < part  # (B, L)
    return torch.where(given, x_1, x_t), torch.where(given, 1.0, t[:, None])


# ------------------------------------------------------------------------------------------------
# the loss of the many-step model


def rate(t, exponent=1.0):
    """The scale of the velocity, kappa'(t) / (1 - kappa(t)). Infinite at t = 1."""
    return exponent * t ** (exponent - 1) / (1 - kappa(t, exponent))


def text_logits(logits, config):
    """(B, L, n_tokens) -> (B, L, V) in float32: MASK is never text."""
    return logits[..., : config.vocab_size].float()


def log_p_of(x, log_p):
    """log p(x), (B, L), for tokens x (B, L) and log_p (B, L, V)."""
    return -F.nll_loss(log_p.flatten(0, 1), x.flatten(), reduction="none").view_as(x)


def generalized_kl(logits, x_1, x_t, t, config, loss_weight_max=math.inf):
    """The loss of DFM per token, (B, L) in nats (Shaul et al. 2025).

        kappa' / (1 - kappa) * ( [x_t = x_1] - p(x_t) - [x_t != x_1] log p(x_1) )

    Integrated over t it bounds -log p(x_1) from above. Under the mask source an unmasked token
    is known to be right, p(x_t) = 1 ("carry over"): its loss is 0, and the rest is the weighted
    cross entropy of the masked tokens. logits (B, L, n_tokens); x_1, x_t (B, L); t (B,), or (B, L)
    with t = 1 for tokens that are given: they have no loss.

    With the loss weight kappa' / (1 - kappa) clipped at loss_weight_max the loss is no bound any
    more. The best p is the true posterior under any positive weights.
    """
    t = t[:, None] if t.dim() == 1 else t  # (B, 1) or (B, L); B may be 0
    weight = rate(t, config.exponent).clamp(max=loss_weight_max)
    weight = torch.where(t < 1, weight, 0)
    log_p = text_logits(logits, config).log_softmax(-1)  # (B, L, V)
    log_p_1 = log_p_of(x_1, log_p)  # (B, L), log p(x_1)
    if config.source == "mask":
        return weight * torch.where(x_t == config.mask_id, -log_p_1, 0)
    p_stay = log_p_of(x_t, log_p).exp()  # (B, L), p(x_t)
    return weight * torch.where(x_t == x_1, 1 - p_stay, -p_stay - log_p_1)


def sample_times(batch_size, device=None):
    """(B,) times in [0, MAX_TRAINING_TIME), evenly spread with one shared random offset: every one
    is uniform, and their mean loss varies far less than that of B independent times."""
    offset = torch.rand((), device=device)
    return (torch.arange(batch_size, device=device) / batch_size + offset) % 1 * MAX_TRAINING_TIME


def dfm_loss(model, x_1, loss_weight_max=math.inf):
    """The training loss of DFM: mean nats per token over texts x_1 (B, L)."""
    t = sample_times(len(x_1), x_1.device)  # (B,)
    x_t = sample_path(x_1, t, model.config)  # (B, L)
    token_t = t
    if model.config.given_share:
        x_t, token_t = reveal(x_t, x_1, t, model.config.given_share)
    logits = model(x_t, token_t)  # (B, L, n_tokens): a DFM is not conditioned on h
    return generalized_kl(logits, x_1, x_t, token_t, model.config, loss_weight_max).mean()


# ------------------------------------------------------------------------------------------------
# tokens that agree: the same random numbers for all tokens of a text


def draw_with_shared_noise(p):
    """One token from each of p (B, L, V), which need not sum to 1, with the same random numbers for
    all tokens of a text: (B, L) int64.

        y_i = argmax_v p_i(v) / E_v        E_v ~ Exp(1), V numbers for each text

    With an E of its own for every token i this is the exponential race, or Gumbel-max trick: an
    independent draw from p_i. With one E for all, y_i still has exactly the distribution p_i, but
    tokens whose p are alike draw alike: P(y_i != y_j) <= 2 TV / (1 + TV), where TV is the total
    variation between p_i and p_j, the best that holds for all pairs ("correlated sampling":
    Holenstein 2007, Bavarian et al. 2016). Three places that all wait for the same name get the
    same name in one step. Where a text should *not* repeat a token that is wrong: docs/results.md.
    """
    race = torch.empty(len(p), 1, p.shape[-1], device=p.device).exponential_()
    return (p / race.clamp(min=1e-30)).argmax(-1)


def draw_texts(p, shared_noise):
    """x_1 ~ p (B, L, V), every token independently or with shared noise: (B, L) int64."""
    return draw_with_shared_noise(p) if shared_noise else categorical(p)


# ------------------------------------------------------------------------------------------------
# one step: cumulative scalar and jump


def survival(t, h, exponent=1.0):
    """S = (1 - kappa(t+h)) / (1 - kappa(t)) = exp(-h g(t, h)): the probability that a token with
    p(x_t) = 0 is still there after the step. 1 - kappa is at least 1e-8, as in the published code.
    """
    return (1 - kappa(t + h, exponent)).clamp(min=1e-8) / (1 - kappa(t, exponent))


def cumulative_scalar(t, h, exponent=1.0):
    """g(t, h): the rate averaged over [t, t + h]. FS-DFM's second idea. jump_probability uses it in
    the form exp(-h g) = S."""
    return -survival(t, h, exponent).log() / h


def jump_probability(p_stay, t, h, exponent=1.0, update="cumulative"):
    """P(a token changes in a step from t to t + h) for p_stay = p(x_t), by a rule of UPDATES."""
    others = (1 - p_stay).clamp(min=0)  # what the posterior gives to other tokens
    if update == "cumulative":
        return 1 - survival(t, h, exponent) ** others
    if update == "averaged":
        return (1 - survival(t, h, exponent)) * others
    if update == "euler":
        return (1 - torch.exp(-h * rate(t, exponent))) * others
    return 1 - torch.exp(-h * rate(t, exponent) * others)  # euler-forced


UPDATES = {
    "cumulative": "FS-DFM: scale averaged over the step, forced move",
    "averaged": "scale averaged, jump to x_1 ~ p, which may be x_t: exact for a frozen p",
    "euler": "the baseline of Meta's library: scale at t, jump to x_1 ~ p",
    "euler-forced": "scale at t, forced move",
}


def posterior(logits, config):
    """softmax over the text's tokens, (B, L, n_tokens) float32, with p(MASK) = 0."""
    p = text_logits(logits, config).softmax(-1)
    return F.pad(p, (0, 1)) if config.source == "mask" else p


def jump(x_t, logits, t, h, config, last=None, update="cumulative", shared_noise=False):
    """One step: x_t (B, L) at times t (B,) -> x_{t+h} (B, L), for logits (B, L, V); a column for
    MASK is ignored. With times of every token, t (B, L) and h (B, 1), one at t = 1 is given: it
    stays.

    A token jumps with jump_probability, to y ~ p restricted to y != x_t. Where last (B,) bool is
    true, nothing follows and x_1 ~ p is drawn. Under the mask source only masked tokens move.
    With shared_noise the tokens of a text do not draw independently (draw_with_shared_noise).
    """
    if last is None:
        last = torch.zeros(len(x_t), dtype=torch.bool, device=x_t.device)
    t, h = t.reshape(len(x_t), -1), h.reshape(len(x_t), -1)  # (B, 1) or (B, L)
    p = posterior(logits, config)  # (B, L, n_tokens)
    p_stay = p.gather(-1, x_t[..., None]).squeeze(-1)  # (B, L), p(x_t)
    p_jump = jump_probability(p_stay, t, h, config.exponent, update)
    p_jump = torch.where(last[:, None], 1, p_jump)  # (B, L)
    p_jump = torch.where(t < 1, p_jump, 0)
    p_return = torch.where(last[:, None], p_stay, 0)  # a token that jumps goes elsewhere
    p.scatter_(-1, x_t[..., None], p_return[..., None])
    jumps = torch.rand_like(p_jump) < p_jump  # (B, L)
    if config.source == "mask":
        jumps = jumps & (x_t == config.mask_id)
    if shared_noise:
        return torch.where(jumps, draw_with_shared_noise(p), x_t)
    return draw_where(jumps, p, x_t)


def renoise(x_t, logits, t, h, config, last=None, shared_noise=False):
    """The other way to take a step: draw a whole text x_1 ~ p, and noise it afresh to t + h.

    Where jump keeps most tokens of x_t, here each one is new: x_1 with probability kappa(t + h),
    else noise. Arguments and result are those of jump. (Under the mask source that masks again what
    was unmasked: "remasking", Wang et al. 2025.)
    """
    t, h = t.reshape(len(x_t), -1), h.reshape(len(x_t), -1)  # (B, 1) or (B, L)
    p = posterior(logits, config)  # (B, L, n_tokens)
    x_1 = draw_texts(p, shared_noise)  # (B, L)
    if config.source == "mask":  # an unmasked token is known
        x_1 = torch.where(x_t == config.mask_id, x_1, x_t)
    end = kappa(t + h, config.exponent)
    if last is not None:
        end = torch.where(last[:, None], 1, end)
    is_text = torch.rand(x_t.shape, device=x_t.device) < end
    x_next = torch.where(is_text, x_1, sample_source(x_t.shape, config, x_t.device))
    return torch.where(t < 1, x_next, x_t)  # given tokens stay


# ------------------------------------------------------------------------------------------------
# many steps: time grid and sampler


def grid_time(i, n, power):
    """t_i = 1 - (1 - i / n) ** power, the time before step i of n, for numbers or tensors."""
    return 1 - (1 - i / n) ** power


def time_grid(steps, power=1.0):
    """The times t_0 = 0 <= t_1 <= ... <= t_n = 1 of n steps, a list of n + 1 floats.

        t_i = 1 - (1 - i / n) ** power      power 1: uniform steps, those of the paper

    No step starts later than MAX_STEP_START. At powers of 3 and more a few of very many steps
    therefore have h = 0, and nothing moves in them.

    With power above 1 the steps shrink towards the end (as with rho in Karras et al. 2022). Under
    the uniform source an early mistake can be corrected, and one of the last steps stays: toy.py.
    `steps` may also be a list of step sizes that sum to 1. ValueError for anything else.
    """
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"the number of steps must be at least 1, not {steps}")
        times = [grid_time(i, steps, power) for i in range(steps)]
    else:
        if not steps or min(steps) <= 0 or not abs(sum(steps) - 1) <= 1e-6:
            raise ValueError(f"step sizes must be positive and sum to 1, not {steps}")
        times = [sum(steps[:i]) for i in range(len(steps))]
    return [min(float(t), MAX_STEP_START) for t in times] + [1.0]


@dataclass(frozen=True)
class Sampler:
    """How text is drawn from a trained network. These are the defaults of every command. What is
    None depends on the network (for_network)."""

    grid_power: float | None = None  # of time_grid; None: 2 for the uniform source, 1 for mask
    update: str | None = None  # one of UPDATES, or "renoise"; None: the network's own
    shared_noise: bool | None = None  # draw_with_shared_noise; None: the network's own
    temperature: float = 1.0  # divides the logits; below 1 the posterior is sharper
    leave_one_out: bool = False  # leave_one_out_temperature; the mask source has no other
    top_p: float = 1.0  # keep the likeliest tokens that reach this probability together
    step_conditioning: str = "exact"  # the h of the network: "exact", or the "nearest" trained one
    compile: bool = False  # network and jump as one graph of torch.compile

    def for_network(self, config):
        """The same Sampler, with what a network of this config asks for where a field is None."""
        own = {
            "grid_power": 1.0 if config.source == "mask" else 2.0,
            "update": config.update,
            "shared_noise": config.shared_noise,
        }
        return replace(self, **{k: v for k, v in own.items() if getattr(self, k) is None})


def nearest_trained(h):
    """The nearest of 1, 1/2, ..., 1/1024 on a log scale, for step sizes h (B,)."""
    return 2 ** h.log2().round().clamp(min=-math.log2(FINEST), max=0)


def adjust_logits(logits, temperature=1.0, top_p=1.0):
    """logits / temperature; with top_p < 1 the unlikely tokens get -inf, never the likeliest."""
    if temperature != 1:
        logits = logits / temperature
    if top_p < 1:
        ordered, tokens = logits.softmax(-1).sort(-1, descending=True)
        likelier = ordered.cumsum(-1) - ordered  # the probability of all likelier tokens
        remove = torch.zeros_like(likelier, dtype=torch.bool)
        remove.scatter_(-1, tokens, likelier >= top_p)
        logits = logits.masked_fill(remove, -math.inf)
    return logits


def leave_one_out_temperature(logits, x_t, t, temperature, config):
    """Another temperature for the uniform source (arXiv 2605.22765): logits (B, L, V), x_t (B, L),
    t (B,) or (B, L) -> (B, L, V).

    The posterior of a token is what all *other* tokens say, times what x_t itself says, which Bayes
    knows: x_t is 1 + V kappa / (1 - kappa) times as likely if the token of the text is x_t.

        p(v | x_t) is proportional to p(v | the others) * (1 + [v = x_t] V kappa / (1 - kappa))

    Here the temperature sharpens the first factor alone. The ordinary one raises the second to the
    power 1 / T, too, and so keeps x_t too often: docs/results.md.
    """
    # held below 1, where given tokens are and the factor is infinite
    k = kappa(t, config.exponent).clamp(max=1 - 1e-3).reshape(len(t), -1)  # (B, 1) or (B, L)
    itself = torch.log1p(config.vocab_size * k / (1 - k)).expand(x_t.shape)[..., None]  # (B, L, 1)
    others = logits.scatter_add(-1, x_t[..., None], -itself)
    return (others / temperature).scatter_add(-1, x_t[..., None], itself)


def sampler_step(model, x_t, t, h, last, sampler, given=None):
    """x_t (B, L) at t -> x_{t+h}: one call of the network, one jump, by a Sampler.for_network.
    t, h, last are (B,). Tokens that are given (B, L) bool stay."""
    token_t = t if given is None else torch.where(given, 1.0, t[:, None])  # (B,) or (B, L)
    model_t = token_t if model.config.given_share else t
    model_h = nearest_trained(h) if sampler.step_conditioning == "nearest" else h
    logits = text_logits(model(x_t, model_t, model_h), model.config)  # (B, L, V)
    temperature = sampler.temperature
    if sampler.leave_one_out and model.config.source == "uniform":
        logits = leave_one_out_temperature(logits, x_t, token_t, temperature, model.config)
        temperature = 1
    logits = adjust_logits(logits, temperature, sampler.top_p)
    shared = sampler.shared_noise
    if sampler.update == "renoise":
        return renoise(x_t, logits, token_t, h, model.config, last, shared)
    return jump(x_t, logits, token_t, h, model.config, last, sampler.update, shared)


@torch.no_grad()
def trajectory(model, x_0, steps, sampler=Sampler(), given=None):
    """Yields x_t (B, L) after each of the `steps` steps from noise x_0 (B, L); the last is the text
    x_1. Arguments are those of generate."""
    take_step = torch.compile(sampler_step, fullgraph=True) if sampler.compile else sampler_step
    sampler = sampler.for_network(model.config)
    times = time_grid(steps, sampler.grid_power)
    n = len(times) - 1
    x_t = x_0
    for i in range(n):
        t = torch.full((len(x_t),), times[i], device=x_t.device)  # (B,)
        h = torch.full_like(t, times[i + 1] - times[i])
        last = torch.full_like(t, i == n - 1, dtype=torch.bool)
        x_t = take_step(model, x_t, t, h, last, sampler, given)
        yield x_t


def generate(model, x_0, steps, sampler=Sampler(), given=None, callback=None):
    """From noise x_0 (B, L) to text x_1 (B, L), in `steps` steps (see time_grid).

    given (B, L) bool marks tokens of x_0 that are part of the text already, such as a prompt; they
    never change. callback(number, x_t) is called after every step.

    A network that was trained with given tokens (config.given_share) reads them as text: their time
    is 1. Another takes them for noise while t is small, under the uniform source, and makes little
    use of them. Under the mask source a token that is not MASK is always read as text.
    """
    for number, x_t in enumerate(trajectory(model, x_0, steps, sampler, given), start=1):
        if callback is not None:
            callback(number, x_t)
    return x_t


# ------------------------------------------------------------------------------------------------
# fast: one draw from each of many distributions


def draw_where(jumps, p, x_t):
    """torch.where(jumps, categorical(p), x_t), for p (B, L, V). A CPU draws only for the tokens
    that jump: 55 ms a step instead of 61 (64 texts, V = 1,024). A GPU would have to wait for the
    host to pick them."""
    if x_t.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(jumps, categorical(p), x_t)
    return x_t.masked_scatter(jumps, categorical(p[jumps]))


def finest_dtype(device):
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def positive_sums(weights):
    """cumsum(-1) of weights (N, V), with 0 in the places of zero weights: GPUs add in parallel, and
    their rounded sums can grow there."""
    return weights.cumsum(-1).masked_fill_(weights == 0, 0)


def first_above(cumulative, target):
    """Where cumulative (N, V) first exceeds target (N, 1): (N, 1) int64. V - 1 if nowhere."""
    # int32: amin of int64 can be 0 on Apple GPUs (github.com/pytorch/pytorch/pull/191104)
    index = torch.arange(cumulative.shape[-1], dtype=torch.int32, device=cumulative.device)
    index = torch.where(cumulative > target, index, len(index) - 1)
    return index.amin(-1, keepdim=True).long()


def categorical(weights, block=64):
    """One draw for each row of weights (..., V), which need not sum to 1. Returns (...) int64.

    The inverse of the cumulative sum, which never draws a weight of zero. In plain form, with
    uniform numbers u (..., 1):

        cumulative = weights.double().cumsum(-1)
        torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True)

    float64, since a rounded tail silently lowers the temperature (compiled by Inductor, the uniform
    numbers have float32's resolution). Apple GPUs have float32 alone, which keeps tails of 1e-6.

    Here the sum is taken over blocks of tokens first, and then within the one block that is hit, so
    that the V float64 numbers of a row are never written. At V = 50,257 the plain form takes 13
    times as long, a fifth of a step of the paper's small model.
    """
    rows = weights.flatten(0, -2)  # (N, V)
    exact = finest_dtype(rows.device)
    below_1 = 1 - 4 * torch.finfo(exact).eps
    N, V = rows.shape
    block = min(block, V)
    whole = V // block * block
    sums = rows[:, :whole].unflatten(1, (-1, block)).sum(-1)
    sums = torch.cat([sums, rows[:, whole:].sum(-1, keepdim=True)], dim=1).to(exact)
    cumulative = positive_sums(sums)  # (N, V // block + 1)
    target = torch.rand(N, 1, dtype=exact, device=rows.device)
    target = target * below_1 * cumulative.amax(-1, keepdim=True)
    hit = first_above(cumulative, target)  # (N, 1)
    target = target - (cumulative - sums).gather(1, hit)
    tokens = hit * block + torch.arange(block, device=rows.device)  # (N, block)
    inside = rows.gather(1, tokens.clamp(max=V - 1)).masked_fill(tokens >= V, 0)
    inside = positive_sums(inside.to(exact))  # (N, block)
    largest = inside.amax(-1, keepdim=True) * below_1
    target = target.clamp(min=0).minimum(largest)  # stay within the block
    drawn = hit * block + first_above(inside, target)
    return drawn.clamp(max=V - 1).view(weights.shape[:-1])  # a token even for non-finite weights
