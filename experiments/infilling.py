"""How well does a story go on? Right stories, where the first sentence of a held-out story is given
and the others are written.

    python experiments/infilling.py      the DFM and FS-DFM of weights/, in 8 and 64 steps

They were trained with given tokens (extras/infill.py). ± is one standard error. Before: eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

import config.command  # before torch

import torch

from data.stories import check
from data.tokens import held_out, load_tokens
from sample import AT_A_TIME, WEIGHTS, fill, load_model


def main():
    meta, tokens = load_tokens("stories")
    print("| first sentence given | steps | right |\n| --- | ---: | ---: |")
    for name in ("dfm", "fsdfm"):
        model, tokenizer = load_model(f"{WEIGHTS}/{name}.pt")
        x_1 = torch.from_numpy(held_out(meta, tokens, model.config.block_size, 128))  # (N, L)
        ends = (x_1 == tokenizer.ids["."]).int()  # (N, L)
        given = ends.cumsum(-1) == ends  # (N, L), the first sentence
        template = torch.where(given, x_1, -1)  # -1: to be written
        for steps in (8, 64):
            torch.manual_seed(1)
            x = torch.cat([fill(model, part, steps) for part in template.split(AT_A_TIME)])
            share = sum(not check(tokenizer.decode(row)) for row in x.tolist()) / len(x)
            error = (share * (1 - share) / len(x)) ** 0.5
            print(f"| {name} | {steps} | {share:.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
