"""Proves what eval.py reports: each measure against numbers worked out by hand or against the exact world of exact.py."""

import math
import sys

import numpy as np
import pytest
import torch

from checkpoint import UserError
from data.tokenizer import gpt2_encoding
from exact import TEXT, TEXTS, ExactNetwork
from heldout import infill, judge_nll, likelihood_bound, measure_filled
from judge import generate_autoregressive, load_judge
from measures import distinct_ngrams, long_token_nll, measure, ngram_entropy, perplexity_by_quarter, token_nll
from model import Cache, ModelConfig, Transformer, autocast

# of texts


class TableJudge:
    """A judge whose next token depends on the last one by a table."""

    config = ModelConfig(vocab_size=3, block_size=6, causal=True)
    longest = 0
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])

    read_out = staticmethod(lambda hidden: hidden)

    def __call__(self, x, hidden=True):
        self.longest = max(self.longest, x.shape[1])
        return self.table.log()[x] + 2.0  # a constant changes no probability


def test_perplexity_by_hand():
    x = torch.tensor([[0, 1, 1, 2], [2, 2, 2, 0]])
    first, second = [0.25, 0.8, 0.1], [0.5, 0.5, 0.25]
    torch.testing.assert_close(token_nll(TableJudge(), x), -torch.tensor([first, second]).log())
    row = measure(x, TableJudge())
    perplexities = [math.prod(p) ** (-1 / 3) for p in (first, second)]
    assert row["perplexity"] == pytest.approx(sum(perplexities) / 2, rel=1e-5)
    assert row["perplexity_error"] == pytest.approx(abs(perplexities[0] - perplexities[1]) / 2, rel=1e-4)
    assert row["corpus_perplexity"] == pytest.approx(math.prod(first + second) ** (-1 / 6), rel=1e-5)


def test_entropy_and_distinct_ngrams_by_hand():
    x = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3], [5, 5, 5, 5, 5, 5, 5, 5], [0, 1, 0, 1, 0, 1, 0, 1]])
    torch.testing.assert_close(ngram_entropy(x), torch.tensor([2.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    entropy_of_4grams = torch.tensor([math.log2(5), 0.0, 3 / 5 * math.log2(5 / 3) + 2 / 5 * math.log2(5 / 2)])
    torch.testing.assert_close(ngram_entropy(x, 4), entropy_of_4grams, rtol=0, atol=1e-6)
    torch.testing.assert_close(distinct_ngrams(x), torch.tensor([1.0, 1 / 5, 2 / 5]))


@pytest.mark.parametrize("length", [5, 6, 7, 9, 13, 24])
def test_long_texts_are_read_in_windows(length):
    """A judge that looks back one token must score the same in any window; and none is longer than its block."""
    judge, x = TableJudge(), torch.randint(3, (4, length))
    torch.testing.assert_close(long_token_nll(judge, x), -judge.table.log()[x[:, :-1], x[:, 1:]])
    assert judge.longest <= 6


def test_quarters_by_hand():
    x = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    quarters = perplexity_by_quarter(x, TableJudge())  # 7 scored tokens: 2, 2, 2 and 1
    assert [q["perplexity"] for q in quarters] == pytest.approx([2.0, (0.25 * 0.8) ** -0.5, (0.8 * 0.1) ** -0.5, 2.0])


def test_the_judges_own_likelihood():
    """The first token, which nothing foretells, counts as one of V."""
    x = torch.tensor([[0, 1, 1, 2]])
    assert judge_nll(TableJudge(), x).item() == pytest.approx(-math.log(0.25 * 0.8 * 0.1 / 3) / 4)


# of a network: in the exact world


def draw_texts(n):
    index = np.random.default_rng(1).choice(16, n, p=TEXT.flatten())
    return torch.tensor(TEXTS)[index]  # (n, 2)


def test_the_bound_is_tight_under_the_mask_source():
    """With the exact posterior, and all masked at t = 0, the bound is the negative log likelihood itself on average."""
    x_1 = draw_texts(1000)
    bound = likelihood_bound(ExactNetwork("mask"), x_1)
    entropy = -(TEXT * np.log(TEXT)).sum() / 2
    assert abs(bound.mean().item() - entropy) < 4 * bound.std().item() / 1000**0.5
    worse = likelihood_bound(ExactNetwork("mask", perturb=2.0), x_1)
    assert worse.mean() > entropy + 4 * worse.std() / 1000**0.5


def test_the_bound_is_above_the_likelihood_under_the_uniform_source():
    bound = likelihood_bound(ExactNetwork("uniform"), draw_texts(1000))
    entropy = -(TEXT * np.log(TEXT)).sum() / 2
    assert bound.mean() > entropy + 4 * bound.std() / 1000**0.5


class Quiet:
    """A judge that knows nothing: every token is one of 4."""

    config = ModelConfig(vocab_size=4, causal=True)

    read_out = staticmethod(lambda hidden: hidden)

    def __call__(self, x, hidden=True):
        return torch.zeros(*x.shape, 4)


@pytest.mark.parametrize("steps", [1, 3])
def test_infilling(steps):
    """Under the mask source one gap is filled from the exact conditional, in any number of steps."""
    n = 4000
    x_1 = draw_texts(n)
    kept = torch.tensor([[True, False]]).expand(n, 2)
    row = infill(ExactNetwork("mask"), Quiet(), x_1, kept, steps)
    conditional = TEXT / TEXT.sum(1, keepdims=True)
    expected = (TEXT * conditional).sum()  # of two independent draws from it being the same
    assert abs(row["accuracy"] - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    assert row["perplexity"] == pytest.approx(4.0)


def test_measures_of_filled_tokens_by_hand():
    x_1, filled = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 2, 1, 2]])
    kept = torch.tensor([[True, False, True, False]])
    row = measure_filled(filled, TableJudge(), x_1, kept)
    assert row["accuracy"] == 0.5 and row["perplexity"] == pytest.approx((0.25 * 0.1) ** -0.5)


# a published judge


def test_a_published_judge(tmp_path):
    """A tiny GPT-2 of random weights, built from its config, saved and loaded by the name of its folder: what token_nll says of it is the
    cross entropy of its own logits, also in windows of a text longer than it can read."""
    transformers = pytest.importorskip("transformers", reason="needs the optional library transformers")
    try:
        gpt2_encoding()
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    network.save_pretrained(tmp_path / "tiny")
    judge, tokenizer, _ = load_judge(tmp_path / "tiny", torch.device("cpu"))
    assert tokenizer.description == {"kind": "gpt2"} and judge.config.block_size == 32
    x = torch.randint(50257, (3, 40))
    with torch.no_grad(), autocast(x.device):
        log_p = [network(window).logits.float().log_softmax(-1) for window in (x[:, :31], x[:, 8:39])]  # the last token foretells nothing
    first = -log_p[0].gather(2, x[:, 1:32, None])[..., 0]
    rest = -log_p[1][:, 23:].gather(2, x[:, 32:, None])[..., 0]
    torch.testing.assert_close(long_token_nll(judge, x), torch.cat([first, rest], dim=1))
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="judges other tokens"):
        load_judge(tmp_path / "other", torch.device("cpu"))


def test_a_published_judge_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)  # what Python does where it is not installed
    with pytest.raises(UserError, match="pip install transformers"):
        load_judge("gpt2-large", torch.device("cpu"))
    with pytest.raises(UserError, match="there is no"):
        load_judge(tmp_path / "judge.pt", torch.device("cpu"))


# the ordinary way of writing


def test_the_cache_changes_nothing():
    """Token for token what a judge without a cache writes, and the same logits."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16, causal=True)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randint(20, (3, 4))
    with torch.no_grad():
        caches = [Cache(16) for _ in model.blocks]
        text = torch.randint(20, (3, 16))
        parts = [model(text[:, :4], caches=caches)] + [model(text[:, i : i + 1], caches=caches) for i in range(4, 16)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(text), rtol=1e-5, atol=1e-5)
    torch.manual_seed(5)
    written = generate_autoregressive(model, x, 16, temperature=0.7)
    torch.manual_seed(5)
    with torch.no_grad():
        while x.shape[1] < 16:
            cumulative = (model(x)[:, -1] / 0.7).softmax(-1).cumsum(-1, dtype=torch.float64)
            x = torch.cat([x, torch.searchsorted(cumulative, torch.rand(3, 1, dtype=torch.float64) * cumulative[:, -1:], right=True)], dim=1)
    assert torch.equal(written, x)
