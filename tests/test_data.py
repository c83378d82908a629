"""Proves data/: byte pairs join as by hand, text survives the round trip, batches are what the files hold."""

import base64
import gzip
import json
import random
import zipfile

import numpy as np
import pytest
import torch

import data.dataset
import data.prepare
from checkpoint import UserError
from data.tokenizer import END, PATTERN, RARE, Tokenizer, learn_bpe, learn_char


def joined_tokens(description):
    return [base64.b64decode(token) for token in description["tokens"]][256:]


def test_byte_pairs_by_hand():
    """In "aaabdaaabac" (a, a) stands four times; then (aa, a) and (a, b) both twice, and ties go to the larger bytes."""
    assert joined_tokens(learn_bpe(["aaabdaaabac"], 259)) == [b"aa", b"aaa", b"aaab"]
    assert joined_tokens(learn_bpe(["ab cd", " ab cd ab"], 300)) == [b"ab", b"cd", b" cd", b" ab"]


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
    assert joined_tokens(learn_bpe([text], 300)) == plain_bpe(text, 300)


def test_round_trip():
    text = "def f(x):\n    return x  # naïve, 数 and \U0001f600\n\n\n\tend  "
    tokenizer = Tokenizer(learn_bpe([text * 3], 280))
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text and max(ids) < tokenizer.vocab_size == 280
    assert tokenizer.unknown("anything \u2603") == []
    characters = Tokenizer(learn_char(["abca " * 10, "abca " * 10 + "z"]))
    assert characters.decode(characters.encode("a cab z")) == f"a cab {RARE}"
    assert characters.unknown("a zebra") == ["z", "e", "r"]


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_pieces_do_not_change_the_tokens(kind):
    """Texts of words, blanks and signs at random, cut every 80 characters where that is safe: the tokens are those of the whole."""
    dice = random.Random(1)
    words = [" the", " a"] * 6 + ["the", "don't", "we'll", "x1", "42", "...", "  ", " ", "\n", "\n\n", "\t", "\r", "é", "\U0001f600", "__init__", "    return"]
    texts = ["".join(dice.choices(words, k=400)) for _ in range(50)]
    try:
        tokenizer = Tokenizer(learn_bpe(texts, 400) if kind == "bpe" else {"kind": "gpt2"})
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    for text in texts:
        pieces = list(data.prepare.cut_safely(iter([text[:700], text[700:]]), size=80))
        assert "".join(pieces) == text and len(pieces) > 10
        assert np.concatenate([tokenizer.encode(piece) for piece in pieces]).tolist() == tokenizer.encode(text).tolist()


def test_documents_are_separated(tmp_path, monkeypatch):
    """By the end-of-text token in GPT-2's tokens; wikitext's articles at their titles."""
    pieces = "".join(data.prepare.read_texts([write(tmp_path / "a", "one"), write(tmp_path / "b", "two\r\n")], END))
    assert pieces == f"one{END}two\n"
    wiki = " = Title = \n\n some text \n\n = = Section = = \n\n more = than = this \n = Another = \n text"
    assert "".join(data.prepare.read_articles(write(tmp_path / "wiki", wiki))).split(END) == [
        "", " = Title = \n\n some text \n\n = = Section = = \n\n more = than = this \n", " = Another = \n text",
    ]  # fmt: skip
    try:
        assert Tokenizer({"kind": "gpt2"}).encode(f"one{END}two").tolist() == [505, 50256, 11545]
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_packed_files_are_read(tmp_path):
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write("naïve".encode() * 500_000)  # more than one piece
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("folder/text", "naïve" * 500_000)
    for name in ("text.gz", "text.zip#folder/text"):
        assert "".join(data.prepare.read_text(tmp_path / name)) == "naïve" * 500_000


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
    data.prepare.prepare("turns", lambda: iter(["abcdefghij" * 50, "abcdefghij" * 50]), "a test", kind="char")
    return tmp_path / "turns"


def test_batches(prepared):
    dataset = data.dataset.Dataset("turns")
    assert len(dataset.train[0]) == 900 and len(dataset.val[0]) == 100
    assert dataset.tokenizer.decode(dataset.val[0][:12].tolist()) == "abcdefghijab"  # the tail, in order
    x = dataset.batch("train", 500, 7)
    assert x.shape == (500, 7) and x.dtype == torch.int64
    assert ((x[:, 1:] - x[:, :-1]) % 10 == 1).all() and len(x[:, 0].unique()) == 10
    assert {int(start) for start in dataset.batch("val", 200, 99)[:, 0]} == {0, 1}  # both blocks that fit


def test_what_is_wrong_with_files_is_said(prepared):
    dataset = data.dataset.Dataset("turns")
    with pytest.raises(UserError, match="too short"):
        dataset.must_fill(101)
    with pytest.raises(UserError, match="other tokens"):
        dataset.must_match({"tokenizer": learn_char(["xyz" * 20])}, "dfm.pt")
    (prepared / "meta.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        data.dataset.Dataset("turns")
    with pytest.raises(UserError, match="prepare.py absent"):
        data.dataset.Dataset("absent")


def test_meta_says_what_the_files_are(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["tokens"] == {"train": 900, "val": 100} and meta["vocab_size"] == 11 and meta["characters"] == 1000
    assert np.fromfile(prepared / "train.bin", np.uint16).max() == 9
