"""Text from noise, in as few steps as you like.

    python sample.py --model fsdfm --steps 8
    python sample.py --model dfm --steps 64 --watch          see it come into focus
    python sample.py --model fsdfm --prompt "Return the "    kept exactly, at the start
    python sample.py --model judge --prompt "Return the "    token by token, to compare
    python sample.py --checkpoint released.pth               a published network

The work is done by flow.generate; here are a command line and a terminal around it, and the ordinary way of writing,
one token after the other, that all of this is measured against. Read next: measures.py.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from checkpoint import Parser, UserError, load_checkpoint, must_be_ours, pick_device, run_command, seed_number
from data.tokenizer import Tokenizer
from flow import categorical, generate, sample_source
from model import Cache, ModelConfig, Transformer, autocast
from released import NETWORKS, is_released, load_released

CHANGED, PLAIN, HOME_AND_CLEAR = "\033[7m", "\033[0m", "\033[H\033[J"


def load_model(path, device="cpu", network=NETWORKS[0], n_head=None):
    """A trained network (its EMA where it has one), ready to use, and its tokenizer.

    From a checkpoint of train.py or a published `.pth`, told apart by their keys; `network` and `n_head` are for the
    latter (see released.py). UserError if the file is missing, damaged or something else.
    """
    checkpoint = load_checkpoint(path)
    if is_released(checkpoint):
        return load_released(checkpoint, network, n_head).to(device), Tokenizer({"kind": "gpt2"})
    must_be_ours(checkpoint, path)
    model = Transformer(ModelConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["ema"] or checkpoint["model"])
    return model.to(device).eval(), Tokenizer(checkpoint["tokenizer"])


def printable(text):
    """Control characters other than line breaks and tabs, which a terminal might obey, as U+FFFD."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def encode_prompt(prompt, tokenizer, block_size):
    """Token ids of the prompt; UserError if it cannot be written or leaves no room."""
    if unknown := tokenizer.unknown(prompt):
        raise UserError(f"the prompt has characters that the model does not know: {' '.join(map(repr, unknown))}")
    ids = tokenizer.encode(prompt)
    if len(ids) > block_size:
        raise UserError(f"the prompt has {len(ids)} tokens, and the model's block only {block_size}: shorten it")
    return ids


def noise_with_prompt(ids, num_samples, config, device):
    """x_0 (B, L) with the prompt's ids at the start, and which tokens are frozen, (B, L) bool."""
    x_0 = sample_source((num_samples, config.block_size), config, device)
    frozen = torch.zeros_like(x_0, dtype=torch.bool)
    x_0[:, : len(ids)] = torch.tensor(ids, device=device, dtype=torch.int64)
    frozen[:, : len(ids)] = True
    return x_0, frozen


@torch.no_grad()
def generate_autoregressive(judge, x, length, temperature=1.0, callback=None):
    """The causal judge goes on from tokens x (B, n), n >= 1, to (B, length), one network call a token; keys and values
    of what it has written are kept. callback(step, x) is called after every token."""
    caches = [Cache(length) for _ in judge.blocks]
    unread = x
    for step in range(1, length - x.shape[1] + 1):
        logits = judge(unread, caches=caches)[:, -1].float() / temperature  # (B, V)
        unread = categorical(logits.softmax(-1))[:, None]  # (B, 1)
        x = torch.cat([x, unread], dim=1)
        if callback is not None:
            callback(step, x)
    return x


class Watcher:
    """Redraws the first text after every step, tokens that changed in reverse; a callback of flow.generate."""

    def __init__(self, tokenizer, mask_id, steps):
        self.tokenizer, self.mask_id, self.steps, self.previous = tokenizer, mask_id, steps, None

    def __call__(self, step, x_t):
        ids = x_t[0].tolist()
        pieces = ["_" if i == self.mask_id else printable(self.tokenizer.decode([i])) for i in ids]
        if sys.stdout.isatty():
            changed = [self.previous is not None and a != b for a, b in zip(ids, self.previous or ids)]
            pieces = [f"{CHANGED}{piece}{PLAIN}" if mark else piece for piece, mark in zip(pieces, changed)]
            print(HOME_AND_CLEAR, end="")
        print(f"--- step {step} of {self.steps}\n{''.join(pieces)}", flush=True)
        self.previous = ids


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("dfm", "fsdfm", "judge"), default="fsdfm", help="which network (default: fsdfm)")
    parser.add_argument("--checkpoint", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/MODEL.pt)")
    parser.add_argument("--n-head", type=int, help="heads of a published .pth that does not store them (default: by its width)")
    parser.add_argument("--steps", type=int, default=8, help="uniform steps from noise to text, 1 or more; the judge takes one a token (default: 8)")
    parser.add_argument("--num-samples", type=int, default=1, help="how many texts (default: 1)")
    parser.add_argument("--seed", type=seed_number, default=1, help="of every random number; the same seed, the same text (default: 1)")
    parser.add_argument("--prompt", default="", help="text to begin with, kept exactly as given (default: none)")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits; below 1 is safer and duller (default: 1)")
    parser.add_argument("--watch", action="store_true", help="redraw the first text after every step (default: no)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoints (default: out)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile, which pays for very many steps (default: no)")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, not {arguments.steps}")
    if arguments.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {arguments.num_samples}")
    if not 0 < arguments.temperature < float("inf"):
        raise UserError(f"--temperature must be above 0, not {arguments.temperature}")

    device = pick_device(arguments.device)
    network = "teacher_model" if arguments.model == "dfm" else NETWORKS[0]
    model, tokenizer = load_model(arguments.checkpoint or arguments.out / f"{arguments.model}.pt", device, network, arguments.n_head)
    if arguments.compile:
        model.compile()
    prompt = encode_prompt(arguments.prompt, tokenizer, model.config.block_size)
    if model.config.causal and not prompt:
        raise UserError("the judge goes on from a text: give it one with --prompt")
    torch.manual_seed(arguments.seed)
    x_0, frozen = noise_with_prompt(prompt, arguments.num_samples, model.config, device)
    steps = model.config.block_size - len(prompt) if model.config.causal else arguments.steps
    watcher = Watcher(tokenizer, model.config.mask_id, steps) if arguments.watch else None
    began = time.perf_counter()
    with autocast(device):
        if model.config.causal:
            x_1 = generate_autoregressive(model, x_0[:, : len(prompt)], model.config.block_size, arguments.temperature, watcher)
        else:
            x_1 = generate(model, x_0, steps, frozen, arguments.temperature, watcher)
    texts = [printable(tokenizer.decode(row)) for row in x_1.tolist()]
    seconds = time.perf_counter() - began
    for number, text in enumerate(texts, start=1):
        if number > 1:
            print("\n" + "-" * 80)
        print(text)
    print(f"[{arguments.checkpoint or arguments.model}, {steps} steps, {seconds:.2f} s for {len(texts)}]", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
