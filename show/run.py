"""A run: every state x_t from noise to text, with the time each took. What race and page replay.

    record     runs a network once, and keeps its states and the clock
    statuses   what happened to each token by a step: one of STATUSES

The network runs first and is shown afterwards, so that drawing does not slow it. Runs of one seed
start from the same noise x_0, and end in the text that `sample.py` prints for that seed.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from common.checkpoint import LABELS
from common.command import UserError
from common.device import autocast
from common.judge import long_token_nll
from data.stories import can_check, parse, wrong_places
from flow import Sampler, kappa, sample_source, text_logits, time_grid, trajectory

STATUSES = {  # of a token, and what it means
    "noise": "noise",
    "new": "new: just drawn",
    "changed": "changed its mind",
    "settled": "settled",
    "wrong": "wrong in the finished story",
}
MOST_STEPS = 4096


@dataclass
class Run:
    """States are (n + 1, L) token ids, the noise first; seconds (n + 1,) since the start."""

    model: str
    seed: int
    states: np.ndarray
    seconds: list[float]
    is_noise: np.ndarray  # (n + 1, L) bool
    probabilities: np.ndarray | None  # (n, L): the network's, of the token after each step
    mistakes: list  # of a story (data/stories.py); [] of other text
    wrong: set[int]  # places of wrong tokens in the finished story
    is_story: bool
    perplexity: float | None  # the judge's, where there is one

    @property
    def label(self):
        return LABELS[self.model]

    @property
    def steps(self):
        return len(self.states) - 1

    def step_at(self, seconds):
        """The number of steps that are finished after so many seconds."""
        return int(np.searchsorted(self.seconds, seconds, side="right")) - 1

    def verdict(self):
        """What is known of the finished text, in a few words."""
        words = []
        if self.is_story:
            n = len(self.mistakes)
            words.append(f"{n} mistake{'s' * (n != 1)}" if n else "right")
        if self.perplexity is not None:
            words.append(f"perplexity {self.perplexity:.3g}")
        return ", ".join(words)


def parse_runner(text):
    """"dfm:1024" -> ("dfm", 1024). UserError if it is neither."""
    model, _, steps = text.partition(":")
    fits = model in LABELS and steps.isdecimal() and 1 <= int(steps[:9]) <= MOST_STEPS
    if not fits:
        raise UserError(
            f"{text} is no runner: write MODEL:STEPS, such as dfm:1024, with "
            f"{', '.join(LABELS)} and 1 to {MOST_STEPS:,} steps"
        )
    return model, int(steps)


# ------------------------------------------------------------------------------------------------
# recording


def timed_states(model, steps, seed, length, sampler, on_step):
    """States (n + 1, L) of one text, and the seconds after each. on_step() is called after each."""
    device = next(model.parameters()).device
    torch.manual_seed(seed)
    x_0 = sample_source((1, length), model.config, device)
    states, seconds = [x_0], [0.0]
    with autocast(device):
        began = time.perf_counter()
        for x_t in trajectory(model, x_0, steps, sampler):
            x_t.cpu()  # the clock waits for the device
            states.append(x_t)
            seconds.append(time.perf_counter() - began)
            on_step()
    return torch.cat(states), seconds


@torch.no_grad()
def token_probabilities(model, states, sampler):
    """The posterior's probability, at each step, of the token that stands there after it: (n, L),
    for states (n + 1, L)."""
    times = torch.tensor(time_grid(len(states) - 1, sampler.grid_power), device=states.device)
    parts = []
    for x_t, x_next, t, h in zip(  # some steps at a time
        states[:-1].split(64), states[1:].split(64), times[:-1].split(64), times.diff().split(64)
    ):
        with autocast(states.device):
            logits = text_logits(model(x_t, t, h), model.config)  # (B, L, V)
        p = logits.softmax(-1)
        known = x_next.clamp(max=p.shape[-1] - 1)  # MASK has no probability
        parts.append(p.gather(-1, known[..., None]).squeeze(-1) * (x_next == known))
    return torch.cat(parts)


def noise_of_renoise(probabilities, sampler, config):
    """(n, L) bool: tokens of a renoise step that are more likely noise than text, by Bayes' rule.
    The last step has none."""
    k = torch.tensor(time_grid(len(probabilities), sampler.grid_power)[1:])[:, None]
    k = kappa(k, config.exponent).to(probabilities.device)  # (n, 1)
    return k * probabilities < (1 - k) / config.vocab_size


def find_noise(states, probabilities, sampler, config):
    """(n + 1, L) bool: which tokens are still noise. A jump leaves noise where it is; renoise
    draws it afresh."""
    if config.source == "mask":
        return states == config.mask_id
    first = torch.ones_like(states[:1], dtype=torch.bool)
    if sampler.update == "renoise":
        return torch.cat([first, noise_of_renoise(probabilities, sampler, config)])
    moved = (states[1:] != states[:-1]).cumsum(0) > 0  # (n, L)
    moved[-1] = True  # the last step draws every token
    return torch.cat([first, ~moved])


def record(name, model, tokenizer, steps, seed, length, sampler=Sampler(), judge=None,
           probabilities=False, on_step=lambda: None):
    """The Run of one text of `length` tokens in `steps` steps, with the posterior's probabilities
    if they are asked for."""
    sampler = sampler.for_network(model.config)
    timed_states(model, 1, seed, length, sampler, lambda: None)  # warm-up
    states, seconds = timed_states(model, steps, seed, length, sampler, on_step)  # (n + 1, L)
    p = None
    if probabilities or sampler.update == "renoise":
        p = token_probabilities(model, states, sampler)
    noise = find_noise(states, p, sampler, model.config)
    is_story = can_check(tokenizer)
    mistakes = parse(tokenizer.decode(states[-1].tolist())).mistakes if is_story else []
    perplexity = None
    if judge is not None:
        perplexity = long_token_nll(judge, states[-1:]).mean().exp().item()
    return Run(
        name, seed, states.cpu().numpy(), seconds, noise.cpu().numpy(),
        p.float().cpu().numpy() if probabilities else None, mistakes, wrong_places(mistakes),
        is_story, perplexity,
    )


# ------------------------------------------------------------------------------------------------
# what happened to each token


def statuses(run, step):
    """The status of each token after `step` steps, a list of L names of STATUSES."""
    if step == 0:
        return ["noise"] * run.states.shape[1]
    now, before = run.states[step], run.states[step - 1]
    result = []
    for i in range(len(now)):
        if run.is_noise[step, i]:
            status = "noise"
        elif step == run.steps and i in run.wrong:
            status = "wrong"
        elif now[i] == before[i] and not run.is_noise[step - 1, i]:
            status = "settled"
        else:
            status = "new" if run.is_noise[:step, i].all() else "changed"
        result.append(status)
    return result
