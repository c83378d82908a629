"""How well does a story go on? Right stories, where the first sentence of a held-out story is given
and the others are written.

    python experiments/infilling.py --models dfm fsdfm dmd

Networks that were trained with given tokens (extras/infill.py, those of weights/) make far more use
of them. Every number is a mean ± its standard error over texts. Before: eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

from config.command import parser_of, pick_device, stop  # before torch

import torch

from data.stories import can_check, check
from data.tokens import held_out, load_tokens
from sample import AT_A_TIME, fill, find_network, load_model


def main():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=["dfm", "fsdfm"], help="OUT/MODEL.pt (dfm fsdfm)")
    add("--steps", type=int, nargs="+", default=[8, 64], help="(default: 8 64)")
    add("--num-samples", type=int, default=256, help="texts (default: 256)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    arguments = parser.parse_args()
    device, (meta, tokens) = pick_device(), load_tokens("stories")
    print("| first sentence given | steps | right |\n| --- | ---: | ---: |")
    for name in arguments.models:
        path = find_network(arguments.out, name)
        model, tokenizer = load_model(path, device)
        if not can_check(tokenizer):
            stop(f"right ones are counted of stories, and {path} was trained on another text")
        x_1 = torch.from_numpy(
            held_out(meta, tokens, model.config.block_size, arguments.num_samples))
        ends = (x_1 == tokenizer.ids["."]).int()  # (N, L)
        given = ends.cumsum(-1) == ends  # (N, L), the first sentence
        template = torch.where(given, x_1, -1).to(device)  # -1: to be written
        for steps in arguments.steps:
            torch.manual_seed(1)
            x = torch.cat([fill(model, part, steps) for part in template.split(AT_A_TIME)])
            share = sum(not check(tokenizer.decode(row)) for row in x.tolist()) / len(x)
            error = (share * (1 - share) / len(x)) ** 0.5
            print(f"| {name} | {steps} | {share:.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
