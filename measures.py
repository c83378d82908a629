"""What good text is: the measures, each a formula on tokens, and none of it about files or tables.

Perplexity  exp of the judge's mean negative log likelihood (nats) of the next token, taken per sample and then averaged
            over samples, the paper's convention; `corpus` is exp of the mean over all tokens of all samples.
Entropy     Shannon entropy, in bits, of a sample's own histogram of tokens (or 4-grams). Perplexity alone can be had for nothing:
            a lower temperature, or one word repeated, lowers both. Always read the two together.
Distinct    share of a sample's 4-grams that are different: falls when the text repeats itself.

Each with its standard error over samples, s / sqrt(n). The same numbers for held-out real text say what is natural.
Source: FS-DFM (arXiv 2509.20624), whose judge is GPT-2 Large; ours is train.py's (judge.py). Read next: heldout.py.
"""

import math
from collections import Counter

import torch

from judge import next_token_nll
from model import autocast


@torch.no_grad()
def token_nll(judge, x, batch_size=64):
    """What the judge thinks of every token but the first, in nats: (N, L) tokens -> (N, L - 1) float32."""
    with autocast(x.device):
        return torch.cat([next_token_nll(judge, part) for part in x.split(batch_size)])


def long_token_nll(judge, x):
    """token_nll of texts longer than the judge was trained on, (N, L) -> (N, L - 1): it reads windows of its own
    block, each half a block further, and scores the second half of each (of the first, all)."""
    block = judge.config.block_size
    if x.shape[1] <= block:
        return token_nll(judge, x)
    parts = [token_nll(judge, x[:, :block])]  # (N, block - 1)
    for end in range(block + block // 2, x.shape[1] + block // 2, block // 2):
        end, scored = min(end, x.shape[1]), sum(part.shape[1] for part in parts) + 1
        parts.append(token_nll(judge, x[:, end - block : end])[:, scored - end :])
    return torch.cat(parts, dim=1)


def count_ngrams(x, n):
    """For each of the samples x (N, L), how often each n-gram occurs in it: N Counters."""
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return [Counter(map(tuple, row)) for row in grams.tolist()]


def ngram_entropy(x, n=1):
    """(N,) bits: the entropy of each sample's histogram of n-grams, from 0 to log2(L - n + 1)."""
    samples = [torch.tensor(list(counts.values())) / counts.total() for counts in count_ngrams(x, n)]
    return torch.stack([torch.special.entr(p).sum() for p in samples]) / math.log(2)


def distinct_ngrams(x, n=4):
    """(N,) share of each sample's n-grams that are different from one another, in (0, 1]."""
    return torch.tensor([len(counts) / counts.total() for counts in count_ngrams(x, n)])


def with_errors(values):
    """{name: (N,) values} -> {name: mean, name_error: standard error (0 for a single sample)}."""
    row = {}
    for name, value in values.items():
        row[name] = value.mean().item()
        row[name + "_error"] = (value.std() / len(value) ** 0.5).item() if len(value) > 1 else 0.0
    return row


def measure(x, judge):
    """All measures of samples x (N, L), each with its standard error."""
    nll = long_token_nll(judge, x)
    values = {
        "perplexity": nll.mean(-1).exp(),
        "entropy": ngram_entropy(x),
        "entropy_4grams": ngram_entropy(x, 4),
        "distinct_4grams": distinct_ngrams(x),
    }
    return {"samples": len(x), "corpus_perplexity": nll.mean().exp().item()} | with_errors(values)


def perplexity_by_quarter(x, judge):
    """Does the end of a text hold up? A row of perplexities, with errors, for each quarter of x (N, L)."""
    quarters = long_token_nll(judge, x).chunk(4, dim=1)  # of the L - 1 tokens that are foretold; the last is the shortest
    return [with_errors({"perplexity": nll.mean(-1).exp()}) for nll in quarters]
