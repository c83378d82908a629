"""Checks data/: tokens by hand and against the textbook, the files, a user's mistakes."""

import base64
import random
import re
from contextlib import nullcontext

import numpy as np
import pytest

import data.prepare as prepare
import data.tokens
from data.tokenizer import END, PATTERN, RARE, Tokenizer, learn, learn_bpe
from sample import printable

ENGLISH = "the cat sat on the mat, and the dog sat by the door.\n" * 40


def gpt2():
    try:
        return Tokenizer({"kind": "gpt2"})
    except SystemExit:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")


def joined_tokens(description):
    return [base64.b64decode(token) for token in description["tokens"]][256:]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(line, status=0): what prepare.py prints, with tmp_path in the place of data/."""
    monkeypatch.setattr(prepare, "FOLDER", tmp_path)
    monkeypatch.setattr(data.tokens, "FOLDER", tmp_path)
    monkeypatch.setattr(prepare, "DOWNLOADS", dict(prepare.DOWNLOADS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en.txt").write_text(ENGLISH)

    def run(line, status=0):
        monkeypatch.setattr("sys.argv", ["prepare.py", *line.split()])
        with pytest.raises(SystemExit, match=f"^{status}$") if status else nullcontext():
            prepare.main()
        out, err = capsys.readouterr()
        assert not status or err.startswith("error: ") and err.count("\n") == 1
        return err if status else out

    return run


def test_byte_pairs_by_hand():
    # (a, a) occurs four times, then (aa, a) and (a, b) twice each; ties go to the larger bytes
    assert joined_tokens(learn_bpe(["aaabdaaabac"], 259)) == [b"aa", b"aaa", b"aaab"]
    assert joined_tokens(learn_bpe(["ab cd", " ab cd ab"], 300)) == [b"ab", b"cd", b" cd", b" ab"]


def test_byte_pairs_against_the_textbook():
    text = "".join(random.Random(0).choices(["ab", "ba", "abc", "cab", " ", "b", "é"], k=1000))
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(PATTERN, text)]
    tokens = {}
    while len(tokens) < 34:
        pairs = [pair for parts in words for pair in zip(parts, parts[1:])]
        best = max(set(pairs), key=lambda pair: (pairs.count(pair), pair))
        tokens[best[0] + best[1]] = None
        for parts in words:
            for i in range(len(parts) - 1):
                if tuple(parts[i : i + 2]) == best:
                    parts[i : i + 2] = [best[0] + best[1]]
    assert joined_tokens(learn_bpe([text], 290)) == list(tokens)


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_characters_of_several_tokens_are_held_back(kind):
    text = "def f(x):\n  “naïve”, 中国 and \U0001f600\u00a0!\n\n\tend  "
    tokenizer = gpt2() if kind == "gpt2" else Tokenizer(learn_bpe([text], 280))
    ids = tokenizer.encode(text).tolist()
    assert "".join(map(printable, tokenizer.pieces(ids))) == tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode("\U0001f601").tolist()[:-1]) == RARE
    assert tokenizer.unknown("anything \u2603") == []


def test_gpt2_has_a_multiple_of_64_tokens():
    assert gpt2().vocab_size == 50304
    assert gpt2().encode(f"one{END}two").tolist() == [505, 50256, 11545]
    assert gpt2().decode([505, 50257, 50303, 11545]) == "onetwo"


def test_rare_characters_and_words_are_replaced():
    tokenizer = Tokenizer(learn("char", ["abca " * 10, "abca " * 10 + "z"], None))
    assert tokenizer.decode(tokenizer.encode("a cab z").tolist()) == f"a cab {RARE}"
    assert tokenizer.unknown("a zebra") == ["z", "e", "r"]
    assert learn("word", ["the cat the"], 3)["words"] == ["[pad]", "[unk]", "the"]


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "word", "char"])
def test_cutting_does_not_change_the_tokens(kind):
    rng = random.Random(1)
    words = [" the", " a", "  ", " ", "\n", "\n\n", "\t", "\r", "    return", " the", " a"]
    words += "the don't we'll x1 42 ... é \U0001f600 __init__".split()
    texts = ["".join(rng.choices(words, k=400)) for _ in range(50)]
    tokenizer = gpt2() if kind == "gpt2" else Tokenizer(learn(kind, texts, 400))
    for text in texts:
        pieces = list(prepare.cut_safely(text[i : i + 80] for i in range(0, len(text), 80)))
        assert "".join(pieces) == text and len(pieces) > 10
        ids = np.concatenate([tokenizer.encode(piece) for piece in pieces])
        assert ids.tolist() == tokenizer.encode(text).tolist()


def test_the_files(command, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert "from files: en.txt, b.txt" in command("mine --text en.txt b.txt")
    meta, tokens = data.tokens.load_tokens("mine")
    assert meta["row"] == 1 and meta["tokens"] == {s: len(tokens[s]) for s in ("train", "val")}
    written = [Tokenizer(meta["tokenizer"]).decode(tokens[split]) for split in ("train", "val")]
    assert written == [f"{ENGLISH[:1908]}\n\ncat\ndog", f"{ENGLISH[1908:]}\n\n\n"]  # of each 9/10
    command("other --text en.txt --tokens-of mine")
    assert data.tokens.load_tokens("other")[0]["tokenizer"] == meta["tokenizer"]


def test_another_alphabet_is_held_out(command, tmp_path):
    arabic = "بيت قمر عالم مدرسة " * 15
    (tmp_path / "mixed.txt").write_text(ENGLISH + arabic)
    (tmp_path / "ar.txt").write_text(arabic)
    assert "not like the rest" in command("one --text mixed.txt --tokenizer char")
    assert "not like" not in command("two --text en.txt ar.txt --tokenizer char")


def test_mistakes(command, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve " * 300)
    (tmp_path / "utf16.txt").write_text("Мир и земля. " * 99, "utf-16-le")
    (tmp_path / "short.txt").write_text(ENGLISH[:999])
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.txt").write_text("x" * (prepare.PIECE + 1))  # its last piece is one character
    assert sum(map(len, prepare.read_file(str(tmp_path / "one.txt")))) == prepare.PIECE + 1
    lines = {
        "mine": "no text mine", "mine --text nowhere.txt": "No such file",
        "mine --text folder": "Is a directory", "mine --text short.txt": "too short",
        "mine --text utf16.txt": "not UTF-8", "mine --text latin.txt": "not UTF-8",
        "mine --text en.txt --tokens-of absent": "no meta.json in data/absent",
        "stories --tokenizer bpe": "tokens of its own", "../x --text en.txt": "is not a folder",
    }
    assert all(words in command(line, status=2) for line, words in lines.items())
    assert not (tmp_path / "mine").exists()
    command("mine --text en.txt")
    assert "--overwrite" in command("mine --text en.txt --tokenizer char", status=2)
    assert data.tokens.load_tokens("mine")[0]["tokenizer"]["kind"] == "bpe"


def test_downloads(command, tmp_path, monkeypatch):
    www = f"file://{tmp_path}"
    prepare.DOWNLOADS["tinystories"] = [f"{www}/en.txt", f"{www}/en.txt"]
    command("tinystories --tokenizer char")
    assert len(data.tokens.load_tokens("tinystories")[1]["train"]) == len(ENGLISH)
    prepare.DOWNLOADS["shakespeare"] = [f"{www}/absent.txt"]
    assert "is there a network?" in command("shakespeare", status=2)
    gpt2()
    monkeypatch.setattr(prepare, "SHARDS", f"{www}/{{}}_{{}}.bin")
    for name, ids in {"train_1": [1, 2], "train_2": [3], "val_0": [4, 5]}.items():
        (tmp_path / f"{name}.bin").write_bytes(bytes(1024) + np.array(ids, "u2").tobytes())
    command("fineweb-edu --shards 2")
    assert data.tokens.load_tokens("fineweb-edu")[1]["train"].tolist() == [1, 2, 3]
