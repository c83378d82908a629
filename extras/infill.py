"""Prompts and infilling: some tokens are given, the network writes the others.

    python -m extras.infill "Mia had a golden kite. _99_ with Tom."      99 tokens are written
    python train.py dfm config/stories_long.py                           trained for it

In training a part of the tokens, from none to all, becomes text with a time of its own, t = 1, in a
quarter of the texts (times of every token: Diffusion Forcing, Chen et al. 2024). No loss is new:
those of the core see a network that is given those tokens (sample.conditioned_on), and so is sure
of them. Writing is the same, with the same network. A network that was not trained so takes given
tokens for noise while t is small.
"""

from config.command import parser_of, pick_device, stop  # before torch

import math
import re
import sys

import torch

import distill
import flow
from data.stories import can_check, check
from sample import (
    conditioned_on, fill, find_network, load_model, printable, prompt_ids, spare_threads,
)

SHARE = 0.25  # of the training texts have given tokens
BLANK = re.compile(r"(?<![A-Za-z0-9_])(?:_(\d+)_|(_{3,}))(?![A-Za-z0-9_])")  # no part of a name

# ------------------------------------------------------------------------------------------------
# training: the losses of the core, for config/stories_long.py


def given_tokens(x_1):
    """(B, L) bool: in a share of the texts a random part of the tokens."""
    part = torch.rand(len(x_1), 1, device=x_1.device)
    part = torch.where(torch.rand_like(part) < SHARE, part, 0)  # (B, 1)
    return torch.rand(x_1.shape, device=x_1.device) < part


def dfm_loss(model, x_1, largest_weight=math.inf):
    return flow.dfm_loss(conditioned_on(model, given_tokens(x_1), x_1), x_1, largest_weight)


def distillation_loss(student, teacher, x_1, largest_weight=math.inf):
    given = given_tokens(x_1)
    student, teacher = conditioned_on(student, given, x_1), conditioned_on(teacher, given, x_1)
    return distill.distillation_loss(student, teacher, x_1, largest_weight)


# ------------------------------------------------------------------------------------------------
# the command


def infill_template(text, tokenizer, length):
    """Token ids, a list, with -1 for each token to be written: ___ (three underscores or more)
    stands for as many tokens as it has underscores, _12_ for 12. Underscores of a name, as in
    layer_0_weight, are text."""
    ids, end = [], 0
    for blank in BLANK.finditer(text):
        before = text[end : blank.start()]
        if tokenizer.kind in ("bpe", "gpt2"):  # a written word brings its own blank
            before = before.removesuffix(" ")
        ids += prompt_ids(before, tokenizer, length)
        ids += [-1] * (int(blank[1][:7]) if blank[1] else len(blank[2]))
        end = blank.end()
    ids += prompt_ids(text[end:], tokenizer, length)
    if -1 not in ids:
        stop("the text has no blank: write ___ for three tokens, or _12_ for twelve")
    if len(ids) > length:
        stop(f"the text has {len(ids)} tokens, and the network writes up to {length}")
    return ids


def main():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("text", help="with blanks: ___ is three tokens, _12_ twelve")
    add("--model", default="fsdfm", help="OUT/MODEL.pt (default: fsdfm)")
    add("--steps", type=int, default=8, help="steps from noise to text (default: 8)")
    add("--num-samples", type=int, default=1, help="texts (default: 1)")
    add("--seed", type=int, default=1, help="same seed and --num-samples, same texts (default: 1)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.num_samples) < 1:
        stop("--steps and --num-samples must be above 0")
    device = pick_device(arguments.device)
    path = find_network(arguments.out, arguments.model)
    model, tokenizer = load_model(path, device)
    spare_threads(model, arguments.num_samples)
    ids = infill_template(arguments.text, tokenizer, model.config.block_size)
    template = torch.tensor([ids] * arguments.num_samples, device=device)
    torch.manual_seed(arguments.seed)
    for row in fill(model, template, arguments.steps).tolist():
        text = tokenizer.decode(row)
        print(printable(text))
        if can_check(tokenizer):
            print("\n".join(f"  {mistake}" for mistake in check(text)) or "  right")
    print(f"[{path}, {arguments.steps} steps]", file=sys.stderr)


if __name__ == "__main__":
    main()
