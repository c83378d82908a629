"""Checks what eval.py and experiments/heldout.py report, and how the judge writes.

Each measure is compared with numbers worked out by hand, or with the exact world of exact.py.
"""

import math
import sys

import numpy as np
import pytest
import torch

from common.command import UserError
from common.device import autocast
from common.judge import generate_autoregressive, load_judge, long_token_nll, set_kv_caches
from common.judge import token_nll
from data.tokenizer import gpt2_encoding
from eval import distinct_ngrams, measure, ngram_entropy
from exact import ExactNetwork
from experiments import heldout
from experiments.heldout import infill, judge_nll, likelihood_bound, measure_filled
from experiments.heldout import perplexity_by_quarter, train_on
from model import ModelConfig, Transformer
from toy import TEXT, TEXTS

# ------------------------------------------------------------------------------------------------
# of texts


class TableJudge:
    """A judge whose next token depends on the last one by a table."""

    config = ModelConfig(vocab_size=3, block_size=6, causal=True)
    longest = 0
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])

    def __call__(self, x):
        self.longest = max(self.longest, x.shape[1])
        return self.table.log()[x] + 2.0  # a constant changes no probability


def test_perplexity_by_hand():
    x = torch.tensor([[0, 1, 1, 2], [2, 2, 2, 0]])
    first, second = [0.25, 0.8, 0.1], [0.5, 0.5, 0.25]
    torch.testing.assert_close(token_nll(TableJudge(), x), -torch.tensor([first, second]).log())
    row = measure(x, TableJudge())
    perplexities = [math.prod(p) ** (-1 / 3) for p in (first, second)]
    error = abs(perplexities[0] - perplexities[1]) / 2
    corpus = math.prod(first + second) ** (-1 / 6)
    assert row["samples"] == 2
    assert row["perplexity"] == pytest.approx(sum(perplexities) / 2, rel=1e-5)
    assert row["perplexity_error"] == pytest.approx(error, rel=1e-4)
    assert row["corpus_perplexity"] == pytest.approx(corpus, rel=1e-5)


def test_a_single_sample_has_no_error():
    row = measure(torch.tensor([[0, 1, 1, 2]]), TableJudge())
    assert row["perplexity_error"] == row["entropy_error"] == 0.0


def test_entropy_and_distinct_ngrams_by_hand():
    x = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3], [5] * 8, [0, 1] * 4])
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(ngram_entropy(x), torch.tensor([2.0, 0.0, 1.0]), **close)
    alternating = 3 / 5 * math.log2(5 / 3) + 2 / 5 * math.log2(5 / 2)  # 0101 three times of five
    expected = torch.tensor([math.log2(5), 0.0, alternating])
    torch.testing.assert_close(ngram_entropy(x, 4), expected, **close)
    torch.testing.assert_close(distinct_ngrams(x), torch.tensor([1.0, 1 / 5, 2 / 5]))


@pytest.mark.parametrize("length", [5, 6, 7, 9, 13, 24])
def test_long_texts_are_read_in_windows(length):
    """A judge that looks back one token scores the same in any window of at most one block."""
    judge, x = TableJudge(), torch.randint(3, (4, length))
    expected = -judge.table.log()[x[:, :-1], x[:, 1:]]
    torch.testing.assert_close(long_token_nll(judge, x), expected)
    assert judge.longest <= 6


class CountingJudge:
    """A judge whose -log p of the next token, 1 among V - 1 others, grows with the context."""

    config = ModelConfig(vocab_size=2, block_size=6, causal=True)

    def __call__(self, x):
        odds = torch.arange(x.shape[1]).float().expand(x.shape)  # log odds of token 0: 0, 1, 2, ...
        return torch.stack([odds, torch.zeros_like(odds)], dim=-1)


def test_every_token_of_a_long_text_has_half_a_block_before_it():
    """The context of each score is visible in it: 0 to 4 tokens, then 2 to 4 in each window."""
    nll = long_token_nll(CountingJudge(), torch.zeros(1, 12, dtype=torch.long))  # windows of 6
    context = torch.tensor([[0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]]).float()
    torch.testing.assert_close(nll, torch.nn.functional.softplus(-context))


def test_quarters_by_hand():
    x = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])
    quarters = perplexity_by_quarter(x, TableJudge())  # 7 scored tokens: 2, 2, 2 and 1
    expected = [2.0, (0.25 * 0.8) ** -0.5, (0.8 * 0.1) ** -0.5, 2.0]
    assert [quarter["perplexity"] for quarter in quarters] == pytest.approx(expected)


def test_the_judges_own_likelihood():
    """The first token, which the judge does not predict, counts as one of V."""
    x = torch.tensor([[0, 1, 1, 2]])
    expected = -math.log(0.25 * 0.8 * 0.1 / 3) / 4
    assert judge_nll(TableJudge(), x).item() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------
# of a network: in the exact world

ENTROPY_PER_TOKEN = -(TEXT * np.log(TEXT)).sum() / 2


def draw_texts(n):
    index = np.random.default_rng(1).choice(16, n, p=TEXT.flatten())
    return torch.tensor(TEXTS)[index]  # (n, 2)


def four_errors(values):
    """Four standard errors of the mean."""
    return 4 * values.std().item() / len(values) ** 0.5


def test_the_bound_is_tight_under_the_mask_source():
    """With the exact posterior its mean is the entropy, and with another it is above."""
    x_1 = draw_texts(1000)
    bound = likelihood_bound(ExactNetwork("mask"), x_1)
    assert abs(bound.mean().item() - ENTROPY_PER_TOKEN) < four_errors(bound)
    worse = likelihood_bound(ExactNetwork("mask", perturb=2.0), x_1)
    assert worse.mean() > ENTROPY_PER_TOKEN + four_errors(worse)


def test_the_bound_is_above_the_likelihood_under_the_uniform_source():
    bound = likelihood_bound(ExactNetwork("uniform"), draw_texts(1000))
    assert bound.mean() > ENTROPY_PER_TOKEN + four_errors(bound)


class ContextFree:
    """A network that predicts the same whatever it reads; the last logit is MASK's."""

    p = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def __init__(self, source):
        self.config = ModelConfig(vocab_size=4, source=source)

    def __call__(self, x_t, t, h):
        logits = torch.cat([self.p.log(), torch.tensor([5.0])])[: self.config.n_tokens]
        return logits.expand(*x_t.shape, -1)


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_the_last_draw_is_part_of_the_bound(source, monkeypatch):
    """With an integral over no time at all, the text is drawn from noise at once."""
    monkeypatch.setattr(heldout, "MAX_TRAINING_TIME", 0.0)
    x_1 = torch.tensor([[0, 1, 3], [2, 2, 2]])
    expected = torch.tensor([-math.log(0.1 * 0.2 * 0.4) / 3, -math.log(0.3)])
    torch.testing.assert_close(likelihood_bound(ContextFree(source), x_1), expected)


class UniformJudge:
    """A judge that knows nothing: every token is one of 4."""

    config = ModelConfig(vocab_size=4, causal=True)

    def __call__(self, x):
        return torch.zeros(*x.shape, 4)


@pytest.mark.parametrize("steps", [1, 3])
def test_infilling(steps):
    """Under the mask source one gap has the exact conditional, in any number of steps."""
    n = 4000
    x_1 = draw_texts(n)
    given = torch.tensor([[True, False]]).expand(n, 2)
    filled = infill(ExactNetwork("mask"), x_1, given, steps)
    row = measure_filled(filled, UniformJudge(), x_1, given)
    conditional = TEXT / TEXT.sum(1, keepdims=True)
    expected = (TEXT * conditional).sum()  # of two independent draws from it being the same
    assert abs(row["accuracy"] - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    assert row["perplexity"] == pytest.approx(4.0)


class JudgeThatExpects0:
    """After a 0 every token is one of 4 equally likely; after another, 3 is far the likeliest."""

    config = ModelConfig(vocab_size=4, causal=True)

    def __call__(self, x):
        return (x != 0)[..., None] * torch.tensor([0.0, 0.0, 0.0, 9.0])


def test_given_tokens_stay_while_others_are_filled():
    """Under the uniform source, where the sampler would move them."""
    x_1 = torch.zeros(50, 2, dtype=torch.long)
    given = torch.tensor([[True, False]]).expand(50, 2)
    filled = infill(ContextFree("uniform"), x_1, given, steps=4)
    row = measure_filled(filled, JudgeThatExpects0(), x_1, given)
    assert row["perplexity"] == pytest.approx(4.0)  # all first tokens are still 0


def test_measures_of_filled_tokens_by_hand():
    x_1, filled = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 2, 1, 2]])
    given = torch.tensor([[True, False, True, False]])
    row = measure_filled(filled, TableJudge(), x_1, given)
    assert row["accuracy"] == 0.5 and row["perplexity"] == pytest.approx((0.25 * 0.1) ** -0.5)


# ------------------------------------------------------------------------------------------------
# a published judge


def test_a_published_judge(tmp_path):
    """A tiny GPT-2 of random weights, saved and loaded by the name of its folder.

    token_nll is the cross entropy of its own logits, also in windows of a longer text.
    """
    reason = "needs the optional library transformers"
    transformers = pytest.importorskip("transformers", reason=reason)
    try:
        gpt2_encoding()
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32)
    network = transformers.GPT2LMHeadModel(config).eval()
    network.save_pretrained(tmp_path / "tiny")
    judge, tokenizer, _ = load_judge(tmp_path / "tiny", torch.device("cpu"))
    assert tokenizer.description == {"kind": "gpt2"} and judge.config.block_size == 32
    x = torch.randint(50257, (3, 40))
    with torch.no_grad(), autocast(x.device):  # the last token of a window predicts nothing
        windows = [network(part).logits.float() for part in (x[:, :31], x[:, 8:39])]
    log_p = [logits.log_softmax(-1) for logits in windows]
    first = -log_p[0].gather(2, x[:, 1:32, None])[..., 0]
    rest = -log_p[1][:, 23:].gather(2, x[:, 32:, None])[..., 0]
    torch.testing.assert_close(long_token_nll(judge, x), torch.cat([first, rest], dim=1))
    config = transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="judges other tokens"):
        load_judge(tmp_path / "other", torch.device("cpu"))


def test_a_published_judge_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    with pytest.raises(UserError, match="pip install transformers"):
        load_judge("gpt2-large", torch.device("cpu"))
    with pytest.raises(UserError, match="there is no"):
        load_judge(tmp_path / "judge.pt", torch.device("cpu"))


# ------------------------------------------------------------------------------------------------
# the judge writes, token by token


@pytest.fixture
def judge():
    config = ModelConfig(20, block_size=16, n_layer=2, n_head=2, dim=32, cond_dim=16, causal=True)
    model = Transformer(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@torch.no_grad()
def test_logits_with_a_cache(judge):
    """Four tokens at once, then one by one: the logits of the whole text."""
    text = torch.randint(20, (3, 16))
    expected = judge(text)
    set_kv_caches(judge, 16)
    parts = [judge(text[:, :4])]
    parts += [judge(text[:, i : i + 1], start=i) for i in range(4, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-5, atol=1e-5)
    set_kv_caches(judge, None)
    assert torch.equal(judge(text), expected)


@torch.no_grad()
def test_writing_with_a_cache(judge):
    """Token for token what a judge without a cache writes."""
    x, calls = torch.randint(20, (3, 4)), []
    torch.manual_seed(5)
    written = generate_autoregressive(judge, x, 16, lambda *call: calls.append(call), 0.7)
    assert all(block.attention.kv_cache is None for block in judge.blocks)
    torch.manual_seed(5)
    for step in range(1, 13):
        p = (judge(x)[:, -1] / 0.7).softmax(-1)  # (3, V)
        cumulative = p.cumsum(-1, dtype=torch.float64)
        u = torch.rand(3, 1, dtype=torch.float64) * cumulative[:, -1:]
        x = torch.cat([x, torch.searchsorted(cumulative, u, right=True)], dim=1)
        assert calls[step - 1][0] == step and torch.equal(calls[step - 1][1], x)
    assert torch.equal(written, x) and len(calls) == 12


# ------------------------------------------------------------------------------------------------
# reverse perplexity


def markov_texts(count, length):
    """Texts of the chain of TableJudge, (count, length)."""
    x = [torch.randint(3, (count,))]
    while len(x) < length:
        x.append(torch.multinomial(TableJudge.table[x[-1]], 1).squeeze(1))
    return torch.stack(x, dim=1)


def test_neither_noise_nor_repetition_lowers_reverse_perplexity():
    """Trained on true texts, the network comes near the chain's own nats. Noise teaches that all
    tokens are as likely, and one text over and over teaches that text."""
    held_out = markov_texts(500, 12)
    floor = token_nll(TableJudge(), held_out).mean().item()
    given = {
        "true": markov_texts(500, 12),
        "noise": torch.randint(3, (500, 12)),
        "one text": markov_texts(1, 12).expand(500, -1),
    }
    nats = {
        name: token_nll(train_on(x, 3, seed=1, iterations=150), held_out).mean().item()
        for name, x in given.items()
    }
    assert floor - 0.01 < nats["true"] < floor + 0.04
    assert nats["noise"] == pytest.approx(math.log(3), abs=0.03) and nats["noise"] > floor + 0.1
    assert nats["one text"] > floor + 0.5
