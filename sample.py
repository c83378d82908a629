"""Text from noise, in as few steps as you like.

    python sample.py --model fsdfm --steps 8
    python sample.py --model dfm --steps 64 --watch          see it come into focus
    python sample.py --steps 1/2 1/4 1/8 1/8                 step sizes of your own
    python sample.py --prompt "Return the "                  kept exactly, at the start
    python sample.py --infill "Return the ___ of the _12_."  3 tokens and 12 tokens are written, the rest is kept
    python sample.py --model judge --prompt "Return the "    token by token, to compare
    python sample.py --checkpoint released.pth               a published network

The work is done by flow.generate; here are a command line and a terminal around it. Read next: judge.py.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch

from checkpoint import Parser, UserError, number, pick_device, run_command, seed_number
from flow import generate, make_step, sample_source, step_times
from judge import generate_autoregressive
from model import autocast
from released import NETWORKS, load_model

CHANGED, PLAIN, HOME_AND_CLEAR = "\033[7m", "\033[0m", "\033[H\033[J"
BLANK = re.compile(r"_(\d+)_|(_{3,})")
AT_A_TIME = 64  # texts that are made together


def printable(text):
    """Control characters other than line breaks and tabs, which a terminal might obey, as U+FFFD."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


# ---------------------------------------------------------------------------------------------------------------
# what is given, and what is to be written


def encode_given(text, tokenizer):
    """The token ids of a text that the user gives; UserError if it cannot be written in these tokens."""
    if unknown := tokenizer.unknown(text):
        raise UserError(f"the text has characters that the model does not know: {' '.join(map(ascii, unknown[:9]))}")
    try:
        return tokenizer.encode(text).tolist()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode: {ascii(error.object[error.start])}") from error


def prompt_template(prompt, tokenizer, length):
    """`length` token ids: those of the prompt, then -1 for every token to be written."""
    ids = encode_given(prompt, tokenizer)
    if len(ids) > length:
        raise UserError(f"the prompt has {len(ids)} tokens, and the text is to have {length}: shorten it, or use a larger --length")
    return ids + [-1] * (length - len(ids))


def infill_template(text, tokenizer):
    """Token ids with -1 for every token to be written. ___ stands for as many tokens as it has underscores (3 or more), _12_ for 12."""
    ids, end = [], 0
    for blank in BLANK.finditer(text):
        ids += encode_given(text[end : blank.start()], tokenizer)
        ids += [-1] * (int(blank[1][:6]) if blank[1] else len(blank[2]))
        end = blank.end()
    if -1 not in ids:
        raise UserError("--infill has no blank: write ___ for three tokens, or _12_ for twelve")
    return ids + encode_given(text[end:], tokenizer)


def fill(take_step, model, template, times, num_samples=1, callback=None):
    """(N, L) tokens: the template's, and where it has -1, those that the diffusion model writes in these steps (flow.generate)."""
    device = next(model.parameters()).device
    template = torch.tensor(template, device=device).expand(num_samples, -1)  # (N, L)
    given = template >= 0
    x_0 = torch.where(given, template, sample_source(template.shape, model.config, device))
    with autocast(device):
        return generate(take_step, x_0, times, given, callback)


def write(model, tokenizer, prompt="", num_samples=1, steps=8, **draws):
    """Texts of the model's own length that begin with the prompt, a list of str. For use from Python; draws are temperature and top_p."""
    template = prompt_template(prompt, tokenizer, model.config.block_size)
    x_1 = fill(make_step(model, **draws), model, template, step_times(steps, model.config.easing), num_samples)
    return [tokenizer.decode(row) for row in x_1.tolist()]


# ---------------------------------------------------------------------------------------------------------------
# the command


class Watcher:
    """Redraws the first text after every step, tokens that changed in reverse; a callback of flow.generate."""

    def __init__(self, tokenizer, mask_id, steps):
        self.tokenizer, self.mask_id, self.steps, self.previous = tokenizer, mask_id, steps, None

    def __call__(self, step, x_t):
        ids = x_t[0].tolist()
        pieces = ["_" if i == self.mask_id else printable(self.tokenizer.decode([i])) for i in ids]
        if sys.stdout.isatty():
            before = (self.previous or ids) + [None] * len(ids)  # the judge's text grows
            pieces = [f"{CHANGED}{piece}{PLAIN}" if a != b else piece for piece, a, b in zip(pieces, ids, before)]
            print(HOME_AND_CLEAR, end="")
        print(f"--- step {step} of {self.steps}\n{''.join(pieces)}", flush=True)
        self.previous = ids


def parse_steps(words):
    """["8"] -> 8; step sizes such as ["1/2", "0.25", "1/4"] -> a list of float. UserError if they are neither."""
    if len(words) == 1 and re.fullmatch(r"[+-]?\d+", words[0]):
        if len(words[0]) > 9 or not 1 <= int(words[0]) <= 65536:
            raise UserError(f"--steps must be a number from 1 to 65536, not {words[0]}")
        return int(words[0])
    try:
        parts = [word.partition("/") for word in words]
        sizes = [float(numerator) / float(denominator or 1) for numerator, _, denominator in parts]
        step_times(sizes)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--steps takes a whole number, or step sizes above 0 that sum to 1 (such as 1/2 1/4 1/4), not {' '.join(words)}") from error
    return sizes


def parse_arguments():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("dfm", "fsdfm", "judge"), default="fsdfm", help="which network (default: fsdfm)")
    parser.add_argument("--checkpoint", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/MODEL.pt)")
    parser.add_argument("--n-head", type=number(int, 1, 1000), help="heads of a published .pth that does not store them (default: by its width)")
    parser.add_argument("--steps", nargs="+", default=["8"], metavar="N", help="steps from noise to text, or a list of step sizes that sum to 1; the judge takes one a token (default: 8)")
    parser.add_argument("--easing", type=number(float, 1, 10), help="how N steps shrink towards the end, 1 for uniform ones (default: that of the checkpoint)")
    parser.add_argument("--num-samples", type=number(int, 1, 10**6), default=1, help="how many texts (default: 1)")
    parser.add_argument("--length", type=number(int, 1, 2**20), help="tokens of a text, up to 16 times those of a training sequence (default: as many as those)")
    parser.add_argument("--seed", type=seed_number, default=1, help="of every random number; the same seed, the same text (default: 1)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", default="", help="text to begin with, kept exactly as given (default: none)")
    given.add_argument("--infill", metavar="TEXT", help="text with blanks to be filled: ___ is 3 tokens, ____ 4, _12_ 12 (default: none)")
    parser.add_argument("--temperature", type=number(float, 0.001, 1000), default=1.0, help="divides the logits; below 1 is safer and duller (default: 1)")
    parser.add_argument("--top-p", type=number(float, 0.000001, 1), default=1.0, help="draw from the likeliest tokens that have this probability together (default: 1, all)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--watch", action="store_true", help="redraw the first text after every step (default: no)")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each text (default: no)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoints (default: out)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile, which pays for very many steps (default: no)")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    steps = parse_steps(arguments.steps)
    device = pick_device(arguments.device)
    network = "teacher_model" if arguments.model == "dfm" else NETWORKS[0]
    model, tokenizer = load_model(arguments.checkpoint or arguments.out / f"{arguments.model}.pt", device, network, arguments.n_head)
    block = model.config.block_size
    if arguments.infill is None:
        template = prompt_template(arguments.prompt, tokenizer, arguments.length or block)
    elif model.config.causal or arguments.length:
        raise UserError("--infill is for diffusion models, and its text says how long it is: leave out " + ("--model judge" if model.config.causal else "--length"))
    else:
        template = infill_template(arguments.infill, tokenizer)
    if len(template) > 16 * block:
        raise UserError(f"the text has {len(template)} tokens: the model was trained on {block}, and writes up to {16 * block}")
    prompt = template[: template.index(-1) if -1 in template else None]
    if model.config.causal and not prompt:
        raise UserError("the judge goes on from a text: give it one with --prompt")
    times = step_times(steps, arguments.easing or model.config.easing)
    calls = len(template) - len(prompt) if model.config.causal else len(times)
    draws = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    watcher = Watcher(tokenizer, model.config.mask_id, calls) if arguments.watch else None
    take_step = make_step(model, **draws)
    if arguments.compile:
        model.compile()  # the judge's calls
        take_step = torch.compile(take_step)

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that does not know a character
    torch.manual_seed(arguments.seed)
    began = time.perf_counter()
    for first in range(0, arguments.num_samples, AT_A_TIME):
        count = min(AT_A_TIME, arguments.num_samples - first)
        if model.config.causal:
            with autocast(device):
                x_1 = generate_autoregressive(model, torch.tensor([prompt] * count, device=device), len(template), watcher, **draws)
        else:
            x_1 = fill(take_step, model, template, times, count, watcher)
        for index, row in enumerate(x_1.tolist(), start=first):
            text = tokenizer.decode(row)
            if arguments.json:
                print(json.dumps({"number": index, "text": text, "model": str(arguments.checkpoint or arguments.model), "steps": calls, "seed": arguments.seed}), flush=True)
            else:
                print(("\n" + "-" * 80 + "\n" if index else "") + printable(text), flush=True)
    print(f"[{arguments.checkpoint or arguments.model}, {calls} steps, {time.perf_counter() - began:.2f} s for {arguments.num_samples}]", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
