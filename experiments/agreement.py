"""How often do words that must agree disagree, if the posterior is exact?

    python experiments/agreement.py

A network that errs is one reason why few steps write wrong stories, drawing tokens apart is the
other. Here the first is left out. A few words of a story depend on one another and on nothing else,
all right combinations are equally likely, and Bayes' rule replaces the network:

    P(x_1 = c | x_t) is proportional to prod over words i of  kappa [x_i = c_i] + (1 - kappa) / V

What is then wrong after n steps is the price of drawing every word from its own marginal. Before:
toy.py, data/stories.py.
"""

import sys
from itertools import permutations
from pathlib import Path

# `python experiments/agreement.py` puts experiments/ on the path, and flow.py is one folder above
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common.early  # first: Ctrl-C is quiet from here on

import torch
from tqdm import tqdm

from common.command import Parser, number, run_command
from data.stories import vocabulary
from flow import Sampler, generate, kappa, sample_source
from model import ModelConfig

STEPS = (2, 4, 8, 16, 64)
CASES = {  # right combinations of tokens; different words of a story have different tokens
    "a thing of 12, said twice": [(a, a) for a in range(12)],
    "a name of 16, said three times": [(a, a, a) for a in range(16)],
    "a name of 16, said six times": [(a,) * 6 for a in range(16)],
    "three different names of 8, each said twice": [c + c for c in permutations(range(8), 3)],
    "a sum, a + b = c, of a and b to 8": [
        (a, 20 + b, 40 + a + b) for a in range(8) for b in range(8)
    ],
}


class ExactPosterior:
    """In the place of a network: log P(x_1[i] = y | x_t), for right combinations (M, k)."""

    def __init__(self, combinations):
        self.combinations = torch.tensor(combinations)
        self.config = ModelConfig(vocab_size=len(vocabulary()) + 2)

    def __call__(self, x_t, t, h):  # (B, k), (B,), (B,) -> (B, k, V)
        V, (_, k) = self.config.vocab_size, self.combinations.shape
        text = kappa(t)[:, None]  # (B, 1)
        log_likelihood = torch.zeros(len(x_t), len(self.combinations))  # (B, M)
        for i in range(k):
            equal = x_t[:, i : i + 1] == self.combinations[:, i]  # (B, M)
            log_likelihood += (equal * text + (1 - text) / V).log()
        p = log_likelihood.softmax(-1)  # (B, M)
        marginals = torch.zeros(len(x_t), k, V)
        for i in range(k):
            marginals[:, i].index_add_(1, self.combinations[:, i], p)
        return marginals.clamp(min=1e-30).log()


def share_wrong(combinations, steps, grid_power, n):
    """The share of n texts, written in so many steps, that are none of the right combinations."""
    torch.manual_seed(1)
    model, right = ExactPosterior(combinations), set(combinations)
    x_0 = sample_source((n, len(combinations[0])), model.config)
    x_1 = generate(model, x_0, steps, Sampler(grid_power=grid_power))
    return sum(tuple(row) not in right for row in x_1.tolist()) / n


def main():
    parser = Parser(__doc__)
    parser.add_argument("--num-samples", type=number(int, 1, 10**6), default=4000,
        help="texts of a figure (default: 4000)")
    n = parser.parse_args().num_samples
    print(f"{'':45}{'grid':>8}" + "".join(f"{steps:>8}" for steps in STEPS))
    for power in (2, 1):
        for name, combinations in CASES.items():
            counts = tqdm(STEPS, "drawing texts", leave=False, delay=1)
            wrong = [share_wrong(combinations, steps, power, n) for steps in counts]
            grid = "power 2" if power == 2 else "uniform"
            print(f"{name:45}{grid:>8}" + "".join(f"{share:8.4f}" for share in wrong), flush=True)


if __name__ == "__main__":
    run_command(main)
