"""A run: every state x_t from noise to text, with the time each took. What race and page show.

Runs of one seed start from the same noise x_0, and end in the text that sample.py prints for that
seed. The clock stands still while something is drawn: its seconds are those of the network alone.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from config.command import autocast
from data.stories import can_check, parse, wrong_places
from data.worlds import world_of
from eval import LABELS, wilson
from flow import generate, kappa, time_grid
from sample import fill

STATUSES = {  # of a token, and what it means
    "noise": "noise",
    "new": "new: just drawn",
    "changed": "changed its mind",
    "settled": "settled",
    "wrong": "wrong in the finished text",
}
FEW_STEPS = 32  # a run of so many is over before the eye sees it
TEXTS, AT_A_TIME = 64, 8  # stories of which the right ones are counted


def plural(n, word):
    """"1 mistake", "2 mistakes", and "" for none."""
    return f"{n:,} {word}{'s' * (n > 1)}" if n else ""


@dataclass
class Run:
    name: str  # one of LABELS
    states: np.ndarray  # (n + 1, L) token ids, the noise first
    seconds: list  # since the start, after 0, 1, ... steps: n + 1 when it is finished
    is_noise: np.ndarray  # (n + 1, L) bool
    p: np.ndarray  # (n, L): the posterior's probability of each token, before the step that drew it
    mistakes: list | None = None  # of a story or book, None for another text
    noun: str = "story"  # or book
    right: tuple | None = None  # (right stories, stories), of those that are counted
    seed: int = 1  # of the noise

    @property
    def steps(self):
        return len(self.states) - 1

    @property
    def finished(self):
        return len(self.seconds) > self.steps

    def step_at(self, seconds):
        """The number of steps that are finished after so many seconds."""
        return int(np.searchsorted(self.seconds, seconds, side="right")) - 1

    def verdict(self):
        """What is known of the finished text: "right", "3 mistakes", or "" for another text."""
        return "" if self.mistakes is None else plural(len(self.mistakes), "mistake") or "right"

    def tally(self):
        """The right stories of those that are counted, and the 95% interval of their share."""
        if self.right is None:
            return ""
        (right, n), (low, high) = self.right, wilson(*self.right)
        return f"{right} of {n} right, 95%: {low:.0%} to {high:.0%}"


# ------------------------------------------------------------------------------------------------
# running


@torch.no_grad()
def record(name, model, tokenizer, steps, seed, on_step=lambda run: None):
    """The Run of one text. on_step(run) is called after each step, with what is done by then."""
    L, V, device = model.config.block_size, model.config.vocab_size, next(model.parameters()).device
    times, shape, logits = time_grid(steps), (steps + 1, L), None
    states, is_noise, p = np.zeros(shape, int), np.ones(shape, bool), np.zeros(shape, "float32")
    run = Run(name, states, [0.0], is_noise, p[1:], seed=seed)

    def noise():
        torch.manual_seed(seed)
        return torch.randint(V, (1, L), device=device)

    def network(x_t, t, h):
        nonlocal logits
        logits = model(x_t, t, h)  # (1, L, V)
        return logits

    def after_step(x):
        nonlocal began
        k, x_t = len(run.seconds), x[0].cpu().numpy()  # the clock waits for the device
        run.seconds.append(run.seconds[-1] + time.perf_counter() - began)
        p = logits.float().softmax(-1).gather(-1, x[..., None])[0, :, 0].cpu().numpy()
        run.states[k], run.p[k - 1] = x_t, p
        if model.sampler is generate:
            run.is_noise[k] = run.is_noise[k - 1] & (x_t == run.states[k - 1]) & (k < steps)
        else:
            run.is_noise[k] = likelier_noise(p, times[k], V)
        if k == steps and (world := world_of(tokenizer)):
            run.noun, run.mistakes = world.NOUN, world.check(tokenizer.decode(x_t.tolist()))
        on_step(run)
        began = time.perf_counter()

    with autocast(device):
        model.sampler(model, noise(), 1)  # warm-up
        x_0 = noise()
        run.states[0] = x_0[0].cpu()
        began = time.perf_counter()
        model.sampler(network, x_0, steps, on_step=after_step)
    return run


def likelier_noise(p, t, vocab_size):
    """Which tokens, drawn with probabilities p, are noise rather than text, by Bayes' rule: where
    renoise draws noise afresh, that it changed does not tell. (A jump leaves it where it is.)"""
    k = kappa(torch.tensor(t)).item()
    return k * p < (1 - k) / vocab_size


@torch.no_grad()
def count_right(runs, networks, tokenizer, seed):
    """Counts right stories for the runs of few steps, and yields after every few of them."""
    for first in range(0, TEXTS if can_check(tokenizer) else 0, AT_A_TIME):
        for run in runs:
            if run.steps > FEW_STEPS:
                continue
            model = networks[run.name]
            torch.manual_seed(seed * TEXTS + first)
            template = torch.full((AT_A_TIME, model.config.block_size), -1)
            x = fill(model, template.to(next(model.parameters()).device), run.steps)
            right, n = run.right or (0, 0)
            right += sum(not parse(tokenizer.decode(ids)).mistakes for ids in x.tolist())
            run.right = right, n + AT_A_TIME
            yield


# ------------------------------------------------------------------------------------------------
# what is said of runs


def statuses(run, step, since=None):
    """The status of each token after `step` steps, a list of L names of STATUSES: what happened to
    it after `since` steps, by default in the last one."""
    since = max(0, step - 1) if since is None else since
    states, noise = run.states[: step + 1], run.is_noise[: step + 1]
    stays = ((states[since + 1 :] == states[since:-1]) & ~noise[since:-1]).all(0)
    drawn_before = ~noise[: since + 1].all(0)
    result = np.where(drawn_before, "changed", "new").astype(object)
    result[stays] = "settled"
    if step == run.steps:
        result[sorted(wrong_places(run.mistakes or []))] = "wrong"
    result[noise[step]] = "noise"
    return result.tolist()


def title(run, runs):
    """"student, 4 steps". The teacher is hurried where it also takes more steps."""
    if run.name != "dfm":
        return f"{who(run, runs)}, {plural(run.steps, 'step')}"
    hurried = any(other.name == "dfm" and other.steps > run.steps for other in runs)
    return f"teacher, {'hurried to ' * hurried}{plural(run.steps, 'step')}"


def longest_and_shortest(runs):
    """The run of most steps, and the last of those of fewest."""
    return max(runs, key=lambda run: run.steps), min(runs[::-1], key=lambda run: run.steps)


def conclusion(runs):
    """The race in a sentence."""
    slow, fast = longest_and_shortest(runs)
    said = f"The {who(fast, runs)} wrote {text_of(fast)} in {plural(fast.steps, 'step')}"
    if slow.steps > fast.steps:
        times = slow.seconds[-1] / fast.seconds[-1]
        said += f", {times:.0f} times faster than the {who(slow, runs)} in {slow.steps:,}"
    for run in runs:
        if run.name != fast.name and run.steps == fast.steps:
            said += f"; in {plural(run.steps, 'step')} the {who(run, runs)} wrote {text_of(run)}"
    return f"{said}."


def who(run, runs):
    """"teacher" or "student", with the network's name where there are two kinds of students."""
    if run.name == "dfm":
        return "teacher"
    two = len({other.name for other in runs} - {"dfm"}) > 1
    return f"student ({run.name})" if two else "student"


def text_of(run):
    if run.mistakes is None:
        return "a text"
    return f"a {run.noun} with {run.verdict()}" if run.mistakes else f"a right {run.noun}"
