"""How well do the networks know held-out text? Two measurements beside the curve of eval.py.

    python experiments/heldout.py likelihood                      nats per token
    python experiments/heldout.py infill --models dfm fsdfm dmd   half of a text is written again

Likelihood  Of a diffusion model an upper bound on -log p(x_1), per token (Shaul et al. 2025):

                integral_0^1 E[generalised KL at t] dt

            It is not tight for noise of random tokens, so compare it among diffusion models. The
            judge's likelihood is exact.
Infilling   Half of the tokens of a held-out text are given, the others are written. Accuracy is the
            share of them that equals the real text, and the perplexity is the judge's. Real text
            shows what is possible. Of stories the first sentence, the last one or every second word
            is given, and right ones are counted. Networks that were trained with given tokens
            (extras/infill.py, those of weights/) make far more use of them.

Every number is a mean ± its standard error over texts. Source: FS-DFM (arXiv 2509.20624), whose
tables have both. Before: eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

from config.command import autocast, pick_device, stop  # before torch

import argparse
import math

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.stories import can_check, check
from data.tokens import held_out, load_tokens
from distill import FINEST
from flow import LATEST, generalized_kl, sample_path
from model import next_token_nll
from sample import AT_A_TIME, fill, find_network, load_model

POINTS = 16  # times of the integral

# ------------------------------------------------------------------------------------------------
# likelihood


def in_parts(measure, x, title):
    """measure(part) -> (n,) for parts of texts x (N, L), together (N,), under autocast."""
    bar = tqdm(x.split(AT_A_TIME), title, leave=False, delay=1)
    with torch.no_grad(), autocast(x.device):
        return torch.cat([measure(part) for part in bar])


def likelihood_bound(model, x_1):
    """An upper bound on -log p(x_1), nats per token, (N,) for texts x_1 (N, L):

        integral_0^T E[generalised KL at t] dt + E[-log p(x_1 | x_T)],    T = 0.999

    Training ends at T, too. FS-DFM is told h = 1/1024, its finest step.
    """
    N, V = len(x_1), model.config.vocab_size
    h = torch.full((N,), 1 / FINEST, device=x_1.device)
    offset = torch.rand(N, device=x_1.device)
    total = torch.zeros(N, device=x_1.device)
    for point in range(POINTS):
        t = (point + offset) / POINTS * LATEST  # (N,), evenly spread
        x_t = sample_path(x_1, t, V)  # (N, L)
        loss = generalized_kl(model(x_t, t, h), x_1, x_t, t)  # (N, L)
        total += loss.mean(-1) * LATEST / POINTS
    t = torch.full_like(h, LATEST)
    logits = model(sample_path(x_1, t, V), t, h).float()  # (N, L, V)
    return total + F.cross_entropy(logits.mT, x_1, reduction="none").mean(-1)


def judge_nll(judge, x_1):
    """The judge's -log p(x_1), nats per token, (N,) for texts x_1 (N, L). It does not predict the
    first token, which counts as one of V equally likely ones."""
    first = math.log(judge.config.vocab_size)
    return (next_token_nll(judge, x_1).sum(-1) + first) / x_1.shape[1]


def mean(values, digits=3):
    """(N,) -> mean ± standard error, as text."""
    values = values.float()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def report_likelihood(networks, judge, x_1, seed):
    print("| network | nats per token | perplexity |\n| --- | ---: | ---: |")
    nats = in_parts(lambda part: judge_nll(judge, part), x_1, "judge")
    print(f"| judge | {mean(nats)} | {nats.mean().exp():.1f} |")
    for name, network in networks.items():
        torch.manual_seed(seed)
        nats = in_parts(lambda part: likelihood_bound(network, part), x_1, name)
        print(f"| {name} | at most {mean(nats)} | {nats.mean().exp():.1f} |", flush=True)


# ------------------------------------------------------------------------------------------------
# infilling


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
    nll = in_parts(lambda part: next_token_nll(judge, part), filled, "judge")  # (N, L - 1)
    perplexity = ((nll * scored).sum(-1) / scored.sum(-1)).exp()  # (N,)
    cells = [mean(accuracy), mean(perplexity, 1)]
    if can_check(tokenizer):
        right = [not check(tokenizer.decode(row)) for row in filled.tolist()]
        cells.append(mean(torch.tensor(right)))
    return " | ".join(cells)


def report_infill(networks, judge, x_1, tokenizer, arguments):
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


# ------------------------------------------------------------------------------------------------
# the command


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("likelihood", "infill"))
    add("--models", nargs="+", default=["dfm", "fsdfm"], help="OUT/MODEL.pt (dfm fsdfm)")
    add("--steps", type=int, nargs="+", default=[8, 64], help="of infilling (default: 8 64)")
    add("--num-samples", type=int, default=256, help="texts (default: 256)")
    add("--data", default="stories", help="folder in data/ (default: stories)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--seed", type=int, default=1)
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    if arguments.part == "likelihood" and "dmd" in arguments.models:
        stop("dmd has no likelihood: what it predicts is no posterior (extras/matching.py)")

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
    if arguments.part == "likelihood":
        report_likelihood(networks, judge, x_1, arguments.seed)
    else:
        report_infill(networks, judge, x_1, tokenizer, arguments)


if __name__ == "__main__":
    main()
