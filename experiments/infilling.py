"""How well is a text completed when a part of it is given? A measurement beside eval.py.

    python experiments/infilling.py --models dfm fsdfm dmd

Half of the tokens of a held-out text are given, the others are written. Accuracy is the share of
them that equals the real text, and the perplexity is the judge's. Real text shows what is possible.
Of stories the first sentence, the last one or every second word is given, and right ones are
counted. Networks that were trained with given tokens (extras/infill.py, those of weights/) make far
more use of them.

Every number is a mean ± its standard error over texts. Before: eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

from config.command import autocast, pick_device, stop  # before torch

import argparse

import torch
from tqdm import tqdm

from data.stories import can_check, check
from data.tokens import held_out, load_tokens
from model import next_token_nll
from sample import AT_A_TIME, fill, find_network, load_model


def mean(values, digits=3):
    """(N,) -> mean ± standard error, as text."""
    values = values.float()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def given_tokens(x_1, tokenizer):
    """{name: which tokens of texts x_1 (N, L) are given, (N, L) bool}."""
    L = x_1.shape[1]
    position = torch.arange(L, device=x_1.device).expand(x_1.shape)  # (N, L)
    if can_check(tokenizer):
        ends = (x_1 == tokenizer.ids["."]).int()  # (N, L)
        before = ends.cumsum(-1) - ends  # (N, L), sentences that end before the token
        return {
            "first sentence": before == 0,
            "last sentence": before == ends.sum(-1, keepdim=True) - 1,
            "every second word": position % 2 == 0,
        }
    ranks = torch.rand(x_1.shape, device=x_1.device).argsort(-1)  # each row a permutation
    return {"random half": ranks < L // 2, "first half": position < L // 2}


def infill(network, x_1, given, steps):
    """Texts (N, L) that keep the given tokens of x_1 (N, L), the others written in so many steps.
    given (N, L) bool."""
    template = torch.where(given, x_1, -1)  # (N, L), -1: to be written
    parts = tqdm(template.split(AT_A_TIME), f"{steps} steps", leave=False, delay=1)
    return torch.cat([fill(network, part, steps) for part in parts])


def measures(filled, judge, x_1, given, tokenizer):
    """Cells of the table: accuracy and the judge's perplexity of the tokens of `filled` (N, L) that
    are not given, and right stories."""
    gaps = ~given  # (N, L)
    accuracy = ((filled == x_1) & gaps).sum(-1) / gaps.sum(-1)  # (N,)
    scored = gaps[:, 1:]  # the judge does not predict the first token
    with torch.no_grad(), autocast(filled.device):
        nll = torch.cat([next_token_nll(judge, part) for part in filled.split(AT_A_TIME)])
    perplexity = ((nll * scored).sum(-1) / scored.sum(-1)).exp()  # (N,)
    cells = [mean(accuracy), mean(perplexity, 1)]
    if can_check(tokenizer):
        right = [not check(tokenizer.decode(row)) for row in filled.tolist()]
        cells.append(mean(torch.tensor(right)))
    return " | ".join(cells)


def report(networks, judge, x_1, tokenizer, arguments):
    right = can_check(tokenizer)
    print("| given | network | steps | accuracy | perplexity |" + " right |" * right)
    print("| --- | --- | ---: | ---: | ---: |" + " ---: |" * right)
    torch.manual_seed(arguments.seed)
    for pattern, given in given_tokens(x_1, tokenizer).items():
        print(f"| {pattern} | real text | | {measures(x_1, judge, x_1, given, tokenizer)} |")
        for name, network in networks.items():
            for steps in arguments.steps:
                torch.manual_seed(arguments.seed)
                filled = infill(network, x_1, given, steps)
                cells = measures(filled, judge, x_1, given, tokenizer)
                print(f"| {pattern} | {name} | {steps} | {cells} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", default=["dfm", "fsdfm"], help="OUT/MODEL.pt (dfm fsdfm)")
    add("--steps", type=int, nargs="+", default=[8, 64], help="(default: 8 64)")
    add("--num-samples", type=int, default=256, help="texts (default: 256)")
    add("--data", default="stories", help="folder in data/ (default: stories)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--seed", type=int, default=1)
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    meta, tokens = load_tokens(arguments.data)
    networks = {}
    for name in ("judge", *arguments.models):
        networks[name], tokenizer = load_model(find_network(arguments.out, name), device)
        if tokenizer.description != meta["tokenizer"]:
            stop(f"{name} was trained on other tokens than data/{arguments.data}: "
                 "--data and --out belong together")
    judge = networks.pop("judge")
    x_1 = held_out(meta, tokens, judge.config.block_size, arguments.num_samples)
    x_1 = torch.from_numpy(x_1).to(device)
    report(networks, judge, x_1, tokenizer, arguments)


if __name__ == "__main__":
    main()
