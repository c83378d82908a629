"""Proves data/: byte pairs join as by hand, text survives the round trip, batches are what the files hold."""

import base64
import json
import random

import numpy as np
import pytest
import torch

import data.dataset
import data.prepare
from checkpoint import UserError
from data.tokenizer import PATTERN, RARE, Tokenizer, learn_bpe, learn_char


def joined_tokens(description):
    return [base64.b64decode(token) for token in description["tokens"]][256:]


def test_byte_pairs_by_hand():
    """In "aaabdaaabac" (a, a) stands four times; then (aa, a) and (a, b) both twice, and ties go to the larger bytes."""
    assert joined_tokens(learn_bpe("aaabdaaabac", 259)) == [b"aa", b"aaa", b"aaab"]
    assert joined_tokens(learn_bpe("ab cd ab cd ab", 300)) == [b"ab", b"cd", b" cd", b" ab"]


def plain_bpe(text, vocab_size):
    """The textbook's way: count every pair of the whole text anew before each merge."""
    import re

    words = [[bytes([b]) for b in word.encode()] for word in re.findall(PATTERN, text)]
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < vocab_size:
        counts = {}
        for parts in words:
            for pair in zip(parts, parts[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if best[0] + best[1] not in tokens:
            tokens.append(best[0] + best[1])
        for word, parts in enumerate(words):
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            words[word] = merged
    return tokens[256:]


def test_byte_pairs_against_the_textbook():
    text = "".join(random.Random(0).choices(["ab", "ba", "abc", "cab", " ", "b", "é"], k=3000))
    assert joined_tokens(learn_bpe(text, 300)) == plain_bpe(text, 300)


def test_round_trip():
    text = "def f(x):\n    return x  # naïve, 数 and \U0001f600\n\n\n\tend  "
    tokenizer = Tokenizer(learn_bpe(text * 3, 280))
    assert tokenizer.decode(tokenizer.encode(text)) == text and max(tokenizer.encode(text)) < tokenizer.vocab_size == 280
    assert tokenizer.unknown("anything \u2603") == []
    characters = Tokenizer(learn_char("abca " * 20 + "z"))
    assert characters.decode(characters.encode("a cab z")) == f"a cab {RARE}"
    assert characters.unknown("a zebra") == ["z", "e", "r"]


def test_documents_of_python():
    """Help topics and docstrings, nothing of packages that some systems lack. That they are the same on every run is shown by
    test_commands.test_the_text."""
    documents = data.prepare.python_documents()
    assert not any(name.split("/")[0] in data.prepare.OFTEN_MISSING for name in documents)
    assert "collections/__init__.py" in documents and "topic yield" in documents


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A prepared text of the characters a to j in turn."""
    monkeypatch.setattr(data.prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(data.dataset, "FOLDER", tmp_path)
    data.prepare.prepare("turns", "abcdefghij" * 100, "a test", tokenizer="char")
    return tmp_path / "turns"


def test_batches(prepared):
    dataset = data.dataset.Dataset("turns")
    assert len(dataset.train) == 900 and len(dataset.val) == 100
    assert dataset.tokenizer.decode(dataset.val[:12].tolist()) == "abcdefghijab"  # the tail, in order
    x = dataset.batch("train", 500, 7)
    assert x.shape == (500, 7) and x.dtype == torch.int64
    assert ((x[:, 1:] - x[:, :-1]) % 10 == 1).all() and len(x[:, 0].unique()) == 10
    assert {int(start) for start in dataset.batch("val", 200, 99)[:, 0]} == {0, 1}  # both blocks that fit


def test_what_is_wrong_with_files_is_said(prepared):
    dataset = data.dataset.Dataset("turns")
    with pytest.raises(UserError, match="too short"):
        dataset.must_fill(101)
    with pytest.raises(UserError, match="other tokens"):
        dataset.must_match({"tokenizer": learn_char("xyz" * 20)}, "dfm.pt")
    (prepared / "meta.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        data.dataset.Dataset("turns")
    with pytest.raises(UserError, match="prepare.py absent"):
        data.dataset.Dataset("absent")


def test_meta_says_what_the_files_are(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["tokens"] == {"train": 900, "val": 100} and meta["vocab_size"] == 11 and meta["characters"] == 1000
    assert np.fromfile(prepared / "train.bin", np.uint16).max() == 9
