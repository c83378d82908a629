"""Text from noise, in as few steps as you like.

    python sample.py --model fsdfm --steps 8
    python sample.py --model dmd --steps 4                   the other student (matching.py)
    python sample.py --model dfm --steps 64 --watch          every step on the screen
    python sample.py --steps 1/2 1/4 1/8 1/8                 step sizes of your own
    python sample.py --prompt "Mia had a"                    kept as given, at the start
    python sample.py --infill "Mia had a _2_. _99_ with Tom." 2 tokens and 99 tokens are written
    python sample.py --model judge --prompt "Mia had a"      token by token, to compare
    python sample.py --num-samples 4 --check                 of stories: what is wrong with each
    python sample.py --checkpoint published.pth              a published network
    python sample.py --race                                  8 steps beside 1,024, on one clock
    python sample.py --html race.html --gif race.gif         the same for a browser, and for slides

Without trained networks in out/ it uses those in weights/, which come with the project. The work is
done by flow.generate; here are a command line and a terminal around it. Read next: eval.py.
"""

import common.early  # first: Ctrl-C is quiet from here on

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from common.checkpoint import NETWORKS, find_network, load_model
from common.command import Parser, UserError, number, printable, run_command, seed_number
from common.device import autocast, pick_device, texts_at_a_time
from common.files import OUT
from common.judge import generate_autoregressive
from data.stories import can_check, check, wrong_places
from data.tokenizer import spaced_words, split_words
from flow import UPDATES, Sampler, generate, sample_source, time_grid
from show.command import add_show_flags, is_asked_for, must_fit_together, pace_of, run_show

REVERSE, RED, PLAIN, HOME_AND_CLEAR = "\033[7m", "\033[31m", "\033[0m", "\033[H\033[J"
BLANK = re.compile(r"_(\d+)_|(_{3,})")

# ------------------------------------------------------------------------------------------------
# templates: tokens that are given, and -1 for tokens to be written


def encode_given(text, tokenizer):
    """The token ids of a text that the user gives. UserError if these tokens cannot write it."""
    unknown = tokenizer.unknown(text)
    if unknown:
        shown = " ".join(map(ascii, unknown[:9]))
        raise UserError(f"the text has characters or words that the model does not know: {shown}")
    try:
        return tokenizer.encode(text).tolist()
    except UnicodeEncodeError as error:
        character = ascii(error.object[error.start])
        raise UserError(f"the text is not valid Unicode: {character}") from error


def prompt_template(prompt, tokenizer, length):
    """`length` token ids: those of the prompt, then -1 for every token to be written."""
    ids = encode_given(prompt, tokenizer)
    if len(ids) > length:
        raise UserError(
            f"the prompt has {len(ids)} tokens, and the text is to have {length}: "
            "shorten it, or use a larger --length"
        )
    return ids + [-1] * (length - len(ids))


def infill_template(text, tokenizer):
    """Token ids, with -1 for every token to be written: ___ (3 underscores or more) stands for as
    many tokens as it has underscores, _12_ for 12."""
    ids, end = [], 0
    for blank in BLANK.finditer(text):
        ids += encode_given(text[end : blank.start()], tokenizer)
        count = int(blank[1].lstrip("0")[:7] or 0) if blank[1] else len(blank[2])
        ids += [-1] * count
        end = blank.end()
    if -1 not in ids:
        raise UserError("--infill has no blank: write ___ for three tokens, or _12_ for twelve")
    return ids + encode_given(text[end:], tokenizer)


def fill(model, template, steps, sampler=Sampler(), num_samples=1, callback=None):
    """(N, L) tokens: the template's, and where it has -1, those that the model writes."""
    device = next(model.parameters()).device
    template = torch.tensor(template, device=device).expand(num_samples, -1)  # (N, L)
    given = template >= 0
    x_0 = torch.where(given, template, sample_source(template.shape, model.config, device))
    with autocast(device):
        return generate(model, x_0, steps, sampler, given, callback)


def write(model, tokenizer, prompt="", num_samples=1, steps=8, sampler=Sampler()):
    """Texts of the model's own length that begin with the prompt, a list of str. For use from
    Python."""
    template = prompt_template(prompt, tokenizer, model.config.block_size)
    x_1 = fill(model, template, steps, sampler, num_samples)
    return [tokenizer.decode(row) for row in x_1.tolist()]


# ------------------------------------------------------------------------------------------------
# the command


class Watcher:
    """Prints the first text after every step, changed tokens in reverse, and shows each for at
    least `pace` seconds: a callback of generate."""

    def __init__(self, tokenizer, mask_id, steps, pace):
        self.tokenizer, self.mask_id, self.steps, self.pace = tokenizer, mask_id, steps, pace
        self.previous = None
        self.seconds, self.began = 0.0, time.perf_counter()  # the network's time

    def __call__(self, step, x_t):
        x_t.cpu()  # the clock waits for the device
        self.seconds += time.perf_counter() - self.began
        self.show(step, x_t)
        if step < self.steps:
            time.sleep(self.pace)
        self.began = time.perf_counter()

    def show(self, step, x_t):
        ids = x_t[0].tolist()
        before = (self.previous or ids) + [None] * len(ids)  # the judge's text grows
        texts = iter(self.tokenizer.pieces([i for i in ids if i != self.mask_id]))
        pieces = []
        for token, old in zip(ids, before):
            piece = "_" if token == self.mask_id else printable(next(texts))
            changed = token != old and sys.stdout.isatty()
            pieces.append(f"{REVERSE}{piece}{PLAIN}" if changed else piece)
        if sys.stdout.isatty():
            print(HOME_AND_CLEAR, end="")
        print(f"--- step {step} of {self.steps}, {self.seconds:.2f} s")
        print("".join(pieces), flush=True)
        self.previous = ids


def marked(text, mistakes):
    """The text of a story, its wrong words in red on a terminal, then what is wrong with it."""
    wrong = wrong_places(mistakes)
    colour = sys.stdout.isatty()
    pieces = []
    for i, word in enumerate(spaced_words(split_words(text))):
        pieces.append(f"{RED}{word}{PLAIN}" if colour and i in wrong else word)
    lines = ["".join(pieces)]
    lines += [f"  word {mistake.position + 1}: {mistake.message}" for mistake in mistakes]
    return "\n".join(lines if mistakes else [*lines, "  right"])


def parse_steps(words):
    """["8"] -> 8; step sizes such as ["1/2", "0.25", "1/4"] -> a list of float. UserError if they
    are neither."""
    if len(words) == 1 and re.fullmatch(r"[+-]?\d+", words[0]):
        if len(words[0]) > 9 or not 1 <= int(words[0]) <= 65536:
            raise UserError(f"--steps must be a number from 1 to 65536, not {words[0]}")
        return int(words[0])
    try:
        parts = [word.partition("/") for word in words]
        sizes = [float(numerator) / float(denominator or 1) for numerator, _, denominator in parts]
        time_grid(sizes)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            "--steps takes a whole number, or step sizes above 0 that sum to 1 "
            f"(such as 1/2 1/4 1/4), not {' '.join(words)}"
        ) from error
    return sizes


def add_sampler_flags(parser):
    """The flags of flow.Sampler that sample.py and eval.py share."""
    add = parser.add_argument
    add("--grid-power", type=number(float, 1, 10), metavar="X",
        help="n steps run between the times 1 - (1 - i/n)^X: above 1 they shrink towards the end "
             "(default: 2 for the uniform source, 1 for mask)")
    rules = UPDATES | {"renoise": "draw all of x_1 ~ p and noise it afresh to the next time"}
    add("--update", choices=rules, default=Sampler.update,
        help="how x_t moves: " + "; ".join(f"{k}: {v}" for k, v in rules.items())
             + " (default: renoise for dmd, else cumulative)")
    parser.add_boolean("--shared-noise", Sampler.shared_noise,
        "all tokens of a text draw with the same random numbers in a step, so that places that "
        "wait for the same word agree: good for stories, bad for other text "
        "(default: as dmd was trained, else no)")
    add("--step-conditioning", choices=("exact", "nearest"),
        default=Sampler.step_conditioning,
        help="the h that the network is conditioned on: that of the step, or the nearest of "
             "1, 1/2, ..., 1/1024, which are trained (default: exact)")


def add_leave_one_out(parser):
    parser.add_boolean("--leave-one-out", Sampler.leave_one_out,
        "a temperature sharpens what the other tokens say of a token, not what x_t itself says: "
        "better for a DFM with the uniform source (docs/results.md)")


def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    models = ("fsdfm", "dfm", "dmd", "judge")
    add("--model", choices=models, default="fsdfm", help="which network (default: fsdfm)")
    add("--checkpoint", type=Path, help="a file to use instead, ours or a published .pth")
    add("--n-head", type=number(int, 1, 1000), help="heads of a published .pth without them")
    add("--steps", nargs="+", default=["8"], metavar="N",
        help="steps from noise to text, or a list of step sizes that sum to 1 (default: 8)")
    add_sampler_flags(parser)
    add("--num-samples", type=number(int, 1, 10**6), default=1, help="texts (default: 1)")
    add("--length", type=number(int, 1, 2**20),
        help="tokens of a text, up to 16 times those of a training sequence (default: as many)")
    add("--seed", type=seed_number, default=1, help="the same seed, the same text (default: 1)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", default="", help="text to begin with, kept as given")
    given.add_argument("--infill", metavar="TEXT", help="text with blanks: ___ 3 tokens, _12_ 12")
    add("--temperature", type=number(float, 0.001, 1000), default=Sampler.temperature,
        help="divides the logits: below 1 text is likelier and of lower entropy (default: 1)")
    add_leave_one_out(parser)
    add("--top-p", type=number(float, 0.000001, 1), default=Sampler.top_p,
        help="draw from the likeliest tokens that have this probability together (default: 1)")
    add("--check", action="store_true", help="say what is wrong with each story")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--watch", action="store_true", help="print the first text at every step")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each text")
    add("--out", type=Path, default=OUT, help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    parser.add_boolean("--compile", False, "torch.compile, worth it for very many steps")
    add_show_flags(parser)
    arguments = parser.parse_args()
    must_fit_together(arguments, parser)
    return arguments


def make_sampler(arguments):
    return Sampler(
        grid_power=arguments.grid_power,
        update=arguments.update,
        shared_noise=arguments.shared_noise,
        leave_one_out=arguments.leave_one_out,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        step_conditioning=arguments.step_conditioning,
        compile=arguments.compile,
    )


def make_template(arguments, model, tokenizer):
    """The template of --prompt or --infill. UserError if the model cannot write it."""
    block, causal = model.config.block_size, model.config.causal
    if arguments.infill is None:
        template = prompt_template(arguments.prompt, tokenizer, arguments.length or block)
    elif causal or arguments.length:
        flag = "--model judge" if causal else "--length"
        raise UserError(
            "--infill is for diffusion models, and its text says how long it is: "
            f"leave out {flag}"
        )
    else:
        template = infill_template(arguments.infill, tokenizer)
    if len(template) > 16 * block:
        raise UserError(
            f"the text has {len(template)} tokens: the model was trained on {block}, "
            f"and writes up to {16 * block}"
        )
    if len(template) > block:
        print(f"note: the text has {len(template)} tokens, and the model was trained on {block}",
              file=sys.stderr)
    if causal and template[0] == -1:
        raise UserError("the judge goes on from a text: give it one with --prompt")
    return template


def write_batch(arguments, model, template, steps, count, callback):
    """(count, L) tokens of a template, by the judge or by a diffusion model."""
    if not model.config.causal:
        return fill(model, template, steps, make_sampler(arguments), count, callback)
    device = next(model.parameters()).device
    prompt = template[: template.index(-1) if -1 in template else None]
    x = torch.tensor([prompt] * count, device=device)
    with autocast(device):
        temperature, top_p = arguments.temperature, arguments.top_p
        return generate_autoregressive(model, x, len(template), callback, temperature, top_p)


def print_text(index, text, facts, arguments):
    """A text, or a line of JSON, with what is wrong with it if --check asks for that."""
    mistakes = check(text) if arguments.check else None
    if arguments.json:
        line = {"number": index, "text": text} | facts
        if arguments.check:
            line["mistakes"] = [asdict(mistake) for mistake in mistakes]
        print(json.dumps(line), flush=True)
        return
    rule = "\n" + "-" * 80 + "\n" if index else ""
    text = printable(text)
    print(rule + (marked(text, mistakes) if arguments.check else text), flush=True)


def main():
    arguments = parse_arguments()
    if is_asked_for(arguments):
        return run_show(arguments, make_sampler(arguments))
    steps = parse_steps(arguments.steps)
    device = pick_device(arguments.device)
    network = "teacher_model" if arguments.model == "dfm" else NETWORKS[0]
    path = arguments.checkpoint or find_network(arguments.out, arguments.model)
    model, tokenizer = load_model(path, device, network, arguments.n_head)
    if arguments.check and not can_check(tokenizer):
        raise UserError(f"--check is for stories, and {path} was trained on another text")
    template = make_template(arguments, model, tokenizer)
    name = str(arguments.checkpoint or arguments.model)
    calls = steps if isinstance(steps, int) else len(steps)
    if model.config.causal:
        calls = template.count(-1)
        model = torch.compile(model) if arguments.compile else model
    watcher = None
    if arguments.watch:
        watcher = Watcher(tokenizer, model.config.mask_id, calls, pace_of(arguments, calls))

    torch.manual_seed(arguments.seed)
    began = time.perf_counter()
    at_a_time = texts_at_a_time(len(template), model.config.n_tokens)
    for first in range(0, arguments.num_samples, at_a_time):
        count = min(at_a_time, arguments.num_samples - first)
        with tqdm(total=calls, desc="sampling", unit="step", leave=False, delay=2) as bar:
            callback = watcher or (lambda number, x_t: bar.update())
            x_1 = write_batch(arguments, model, template, steps, count, callback)  # (N, L)
        for index, row in enumerate(x_1.tolist(), start=first):
            if watcher and not index and not arguments.check:
                continue  # it is on the screen already
            text = tokenizer.decode(row)
            facts = {"model": name, "steps": calls, "seed": arguments.seed}
            print_text(index, text, facts, arguments)
    seconds = watcher.seconds if watcher else time.perf_counter() - began
    print(f"[{path}, {calls} steps, {seconds:.2f} s for {arguments.num_samples}]", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
