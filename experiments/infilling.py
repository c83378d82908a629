"""How well does a story go on? Right stories, where the first sentence of a held-out story is given
and the others are written.

    python experiments/infilling.py      of the DFM and FS-DFM in 8 and 64 steps

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
    parser.add_argument("--out", default="out", help="folder of the checkpoints (default: out)")
    out, device, (meta, tokens) = parser.parse_args().out, pick_device(), load_tokens("stories")
    print("| first sentence given | steps | right |\n| --- | ---: | ---: |")
    for name in ("dfm", "fsdfm"):
        path = find_network(out, name)
        model, tokenizer = load_model(path, device)
        if not can_check(tokenizer):
            stop(f"right ones are counted of stories, and {path} was trained on another text")
        x_1 = torch.from_numpy(held_out(meta, tokens, model.config.block_size, 128))  # (N, L)
        ends = (x_1 == tokenizer.ids["."]).int()  # (N, L)
        given = ends.cumsum(-1) == ends  # (N, L), the first sentence
        template = torch.where(given, x_1, -1).to(device)  # -1: to be written
        for steps in (8, 64):
            torch.manual_seed(1)
            x = torch.cat([fill(model, part, steps) for part in template.split(AT_A_TIME)])
            share = sum(not check(tokenizer.decode(row)) for row in x.tolist()) / len(x)
            error = (share * (1 - share) / len(x)) ** 0.5
            print(f"| {name} | {steps} | {share:.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
