"""Checks data/: byte pairs join as by hand, text survives encoding and decoding, and batches hold
what the files hold."""

import base64
import gzip
import json
import random
import re
import zipfile
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

import data.dataset
import data.prepare
from common.command import UserError
from data.tokenizer import END, PATTERN, RARE, Tokenizer, learn_bpe, learn_char

NEEDS_GPT2 = "needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR"


def write(path, text):
    """Writes a str as UTF-8, with its line ends as they are; returns the path."""
    path.write_bytes(text.encode())
    return path


# ------------------------------------------------------------------------------------------------
# tokenizers


def joined_tokens(description):
    """The learned tokens of a byte-pair tokenizer, after the 256 bytes."""
    return [base64.b64decode(token) for token in description["tokens"]][256:]


def test_byte_pairs_by_hand():
    """In "aaabdaaabac" the pair (a, a) occurs four times. After that, (aa, a) and (a, b) occur
    twice each, and ties go to the larger bytes."""
    assert joined_tokens(learn_bpe(["aaabdaaabac"], 259)) == [b"aa", b"aaa", b"aaab"]
    two_pieces = ["ab cd", " ab cd ab"]
    assert joined_tokens(learn_bpe(two_pieces, 300)) == [b"ab", b"cd", b" cd", b" ab"]


def plain_bpe(text, vocab_size):
    """The textbook algorithm: counts every pair of the whole text again before each merge."""
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
    parts = ["ab", "ba", "abc", "cab", " ", "b", "é"]
    text = "".join(random.Random(0).choices(parts, k=3000))
    assert joined_tokens(learn_bpe([text], 300)) == plain_bpe(text, 300)


def test_decoding_inverts_encoding():
    text = "def f(x):\n    return x  # naïve, 数 and \U0001f600\n\n\n\tend  "
    tokenizer = Tokenizer(learn_bpe([text * 3], 280))
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.vocab_size == 280
    assert tokenizer.unknown("anything \u2603") == []


def test_rare_characters_are_replaced():
    tokenizer = Tokenizer(learn_char(["abca " * 10, "abca " * 10 + "z"]))
    assert tokenizer.decode(tokenizer.encode("a cab z")) == f"a cab {RARE}"
    assert tokenizer.unknown("a zebra") == ["z", "e", "r"]


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_cutting_does_not_change_the_tokens(kind):
    """Random texts of words, blanks and signs are cut about every 80 characters. The tokens of
    the pieces are those of the whole text."""
    generator = random.Random(1)
    words = [" the", " a"] * 6
    words += ["the", "don't", "we'll", "x1", "42", "...", "  ", " ", "\n", "\n\n", "\t", "\r"]
    words += ["é", "\U0001f600", "__init__", "    return"]
    texts = ["".join(generator.choices(words, k=400)) for _ in range(50)]
    try:
        tokenizer = Tokenizer(learn_bpe(texts, 400) if kind == "bpe" else {"kind": "gpt2"})
    except UserError:
        pytest.skip(NEEDS_GPT2)
    for text in texts:
        pieces = list(data.prepare.cut_safely(iter([text[:700], text[700:]]), size=80))
        assert "".join(pieces) == text
        assert len(pieces) > 10
        ids = np.concatenate([tokenizer.encode(piece) for piece in pieces])
        assert ids.tolist() == tokenizer.encode(text).tolist()


# ------------------------------------------------------------------------------------------------
# reading text


def test_files_are_separated(tmp_path):
    files = [write(tmp_path / "a", "one"), write(tmp_path / "b", "two\r\n")]
    assert "".join(data.prepare.read_texts(files, END)) == f"one{END}two\n"


def test_articles_of_wikitext_are_separated(tmp_path):
    """At their titles, and not at the titles of their sections."""
    articles = [
        " = Title = \n\n some text \n\n = = Section = = \n\n more = than = this \n",
        " = Another = \n text",
    ]
    path = write(tmp_path / "wiki", "".join(articles))
    assert "".join(data.prepare.read_articles(path)).split(END) == ["", *articles]


def test_the_separator_is_one_token_of_gpt2():
    try:
        tokenizer = Tokenizer({"kind": "gpt2"})
    except UserError:
        pytest.skip(NEEDS_GPT2)
    assert tokenizer.encode(f"one{END}two").tolist() == [505, 50256, 11545]


def test_compressed_files_are_read(tmp_path):
    text = "naïve" * 500_000  # more than one piece
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write(text.encode())
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("folder/text", text)
    for name in ("text.gz", "text.zip#folder/text"):
        assert "".join(data.prepare.read_text(tmp_path / name)) == text


def test_progress_bars_know_the_size_of_a_text(tmp_path):
    """Exactly in a file and a zip archive, about in a .gz: within a third for English."""
    text = "".join(topics.values()).encode()
    (tmp_path / "text").write_bytes(text)
    (tmp_path / "text.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/text", text)
    for name, tolerance in (("text", 0), ("text.zip#folder/text", 0), ("text.gz", 0.33)):
        size = data.prepare.size_of_text(str(tmp_path / name))
        assert size == pytest.approx(len(text), rel=tolerance), name


def test_documents_of_python():
    """Help topics and docstrings, and none of packages that some systems lack. That every run
    gives the same text is checked in test_commands.py."""
    documents = data.prepare.python_documents()
    folders = {name.split("/")[0] for name in documents}
    assert not folders & data.prepare.OFTEN_MISSING
    assert "collections/__init__.py" in documents
    assert "topic yield" in documents


# ------------------------------------------------------------------------------------------------
# a prepared text


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The folder of a prepared text: the characters a to j, repeated."""
    monkeypatch.setattr(data.prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(data.dataset, "FOLDER", tmp_path)
    piece = "abcdefghij" * 50
    data.prepare.prepare("turns", lambda: iter([piece, piece]), "a test", kind="char")
    return tmp_path / "turns"


def test_batches(prepared):
    dataset = data.dataset.Dataset("turns")
    assert len(dataset.train[0]) == 900
    assert len(dataset.val[0]) == 100
    # the tail of the text, in order
    assert dataset.tokenizer.decode(dataset.val[0][:12].tolist()) == "abcdefghijab"
    x = dataset.batch("train", 500, 7)
    assert x.shape == (500, 7)
    assert x.dtype == torch.int64
    assert ((x[:, 1:] - x[:, :-1]) % 10 == 1).all()
    assert len(x[:, 0].unique()) == 10
    # 100 tokens hold two blocks of 99, and both are drawn
    assert {int(start) for start in dataset.batch("val", 200, 99)[:, 0]} == {0, 1}


def test_errors_say_what_is_wrong(prepared):
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


def test_meta_describes_the_files(prepared):
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["tokens"] == {"train": 900, "val": 100}
    assert meta["vocab_size"] == 11
    assert meta["characters"] == 1000
    assert np.fromfile(prepared / "train.bin", np.uint16).max() == 9
