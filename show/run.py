"""A run: every state x_t from noise to text, with the time each took. What race and page replay.

    record     runs a network once, and keeps its states and the clock
    statuses   what happened to each token by a step: one of STATUSES

The network runs first and is shown afterwards, so that drawing does not slow it. Runs of one seed
start from the same noise x_0, and end in the text that sample.py prints for that seed.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from config.command import autocast
from data.stories import can_check, parse, wrong_places
from flow import generate, kappa, time_grid
from model import next_token_nll

LABELS = {"dfm": "DFM", "fsdfm": "FS-DFM", "dmd": "distribution matching"}
STATUSES = {  # of a token, and what it means
    "noise": "noise",
    "new": "new: just drawn",
    "changed": "changed its mind",
    "settled": "settled",
    "wrong": "wrong in the finished story",
}


@dataclass
class Run:
    name: str  # one of LABELS
    states: np.ndarray  # (n + 1, L) token ids, the noise first
    seconds: list  # n + 1, since the start
    is_noise: np.ndarray  # (n + 1, L) bool
    p: np.ndarray  # (n, L): the posterior's probability of each token, before the step that drew it
    mistakes: list | None = None  # of a story (data/stories.py), None for another text
    perplexity: float | None = None  # the judge's, where there is one

    @property
    def steps(self):
        return len(self.states) - 1

    @property
    def title(self):
        return f"{LABELS[self.name]}, {self.steps:,} step{'s' * (self.steps > 1)}"

    def step_at(self, seconds):
        """The number of steps that are finished after so many seconds."""
        return int(np.searchsorted(self.seconds, seconds, side="right")) - 1

    def verdict(self):
        """What is known of the finished text, in a few words."""
        words = [] if self.perplexity is None else [f"perplexity {self.perplexity:.3g}"]
        if self.mistakes is not None:
            n = len(self.mistakes)
            words.insert(0, f"{n} mistake{'s' * (n > 1)}" if n else "right")
        return ", ".join(words)

    def mistake_lines(self):
        return [f"word {m.position + 1}: {m.message}" for m in self.mistakes or []]


def run_once(model, steps, seed, count=lambda: None):
    """One text on the CPU: states (n + 1, L), the seconds after each, and the posterior's
    probability, at each step, of the token that stands there after it, (n, L)."""
    config, device = model.config, model.embedding.weight.device
    torch.manual_seed(seed)
    x_0 = torch.randint(config.vocab_size, (1, config.block_size), device=device)
    states, seconds, p, logits = [x_0.cpu()], [0.0], [], None
    began = time.perf_counter()

    def network(x_t, t, h):
        nonlocal logits
        logits = model(x_t, t, h)  # (1, L, V)
        return logits

    def on_step(x):
        states.append(x.cpu())  # the clock waits for the device
        seconds.append(time.perf_counter() - began)
        p.append(logits.float().softmax(-1).gather(-1, x[..., None]).squeeze(-1).cpu())
        count()

    with autocast(device):
        model.sampler(network, x_0, steps, on_step=on_step)
    return torch.cat(states), seconds, torch.cat(p)


def find_noise(states, p, sampler, vocab_size):
    """(n + 1, L) bool: which tokens are still noise. A jump leaves noise where it is. Renoise draws
    it afresh: then a token is noise if that is likelier than text, by Bayes' rule."""
    if sampler is generate:
        is_text = (states[1:] != states[:-1]).cumsum(0) > 0  # (n, L)
        is_text[-1] = True  # the last step draws every token
    else:
        k = kappa(torch.tensor(time_grid(len(p))[1:]))[:, None]  # (n, 1)
        is_text = k * p >= (1 - k) / vocab_size
    return torch.cat([torch.ones_like(states[:1], dtype=torch.bool), ~is_text])


@torch.no_grad()
def record(name, model, tokenizer, steps, seed, judge=None, count=lambda: None):
    """The Run of one text. count() is called after each step."""
    run_once(model, 1, seed)  # warm-up
    states, seconds, p = run_once(model, steps, seed, count)
    is_noise = find_noise(states, p, model.sampler, model.config.vocab_size)
    mistakes = perplexity = None
    if can_check(tokenizer):
        mistakes = parse(tokenizer.decode(states[-1].tolist())).mistakes
    if judge is not None:
        device = judge.embedding.weight.device
        with autocast(device):
            perplexity = next_token_nll(judge, states[-1:].to(device)).mean().exp().item()
    return Run(name, states.numpy(), seconds, is_noise.numpy(), p.numpy(), mistakes, perplexity)


def statuses(run, step):
    """The status of each token after `step` steps, a list of L names of STATUSES."""
    now, noise = run.states[step], run.is_noise
    stays = (now == run.states[max(0, step - 1)]) & ~noise[max(0, step - 1)]
    drawn_before = ~noise[:step].all(0)
    result = np.where(drawn_before, "changed", "new").astype(object)
    result[stays] = "settled"
    if step == run.steps:
        result[sorted(wrong_places(run.mistakes or []))] = "wrong"
    result[noise[step]] = "noise"
    return result.tolist()
