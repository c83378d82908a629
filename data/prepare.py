"""Text -> train.bin and val.bin (token ids, uint16) and meta.json (what they are), in data/NAME/.

    python data/prepare.py stories                    the small stories of stories.py; no network
    python data/prepare.py books                      the same in 1,024 tokens, of books.py
    python data/prepare.py pydocs                     documentation of Python itself; no network
    python data/prepare.py mine --text a.txt b.txt    your own UTF-8 text, of any size
    python data/prepare.py shakespeare                downloaded; also tinystories
    python data/prepare.py fineweb-edu --shards 10    a billion of GPT-2's tokens, ready made

A text is read in pieces, which are cut only where no token can cross. The tail of each file is held
out. Files are separated by GPT-2's end-of-text token, or by a blank line in other tokens.
Read next: tokenizer.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run this file

from config.command import parser_of, stop  # before torch

import ast
import hashlib
import json
import os
import platform
import random
import re
import sysconfig
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
from tqdm import tqdm

from data import books, stories
from data.tokenizer import END, PAD, Tokenizer, describe_words, learn
from data.tokens import FOLDER, load_tokens

PIECE = 2**18  # characters that are read at a time

HUB = "https://huggingface.co/datasets/%s/resolve/main/"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
TINY = HUB % "roneneldan/TinyStories" + "TinyStoriesV2-GPT4-"
DOWNLOADS = {  # name: the training text, and the held-out one unless it is the tail of the first
    "shakespeare": [f"{SHAKESPEARE}input.txt"],
    "tinystories": [f"{TINY}{split}.txt" for split in ("train", "valid")],
}
SHARDS = HUB % "kjj0/finewebedu10B-gpt2" + "finewebedu_{}_{:06}.bin"
WORLDS = {  # what draws a text, its words, tokens of a row, texts to train on and held out
    "stories": (stories.make_story, stories.vocabulary, 128, 100_000, 5_000),
    "books": (books.make_book, books.vocabulary, books.LENGTH, 20_000, 1_000),
}
NAMES = [*WORLDS, "pydocs", *DOWNLOADS, "fineweb-edu"]

# ------------------------------------------------------------------------------------------------
# reading: iterators of str, the pieces of a text


def python_documentation():
    """The help topics of Python and the docstrings of its standard library, no text twice: a str.

    ast reads them from the sources, so nothing is imported or run. What some systems leave out is
    skipped. Documents are ordered by the hash of their names, so that the tail is like the rest.
    """
    from pydoc_data.topics import topics

    left_out = set("test tests idlelib tkinter turtledemo lib2to3 distutils ensurepip turtle.py "
                   "site-packages dist-packages pydoc_data".split())
    documents = {f"topic {name}": text.strip() for name, text in topics.items()}
    library, seen = Path(sysconfig.get_path("stdlib")), set()
    for path in sorted(library.rglob("*.py"), key=lambda path: path.as_posix()):
        name = path.relative_to(library)
        if not left_out & set(name.parts) and not name.name.startswith("_sysconfigdata"):
            new = [text for text in docstrings(path) if len(text) > 40 and text not in seen]
            seen.update(new)
            if new:
                documents[name.as_posix()] = "\n\n".join(new)
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    return "\n\n".join(documents[name] for name in order)


def docstrings(path):
    """The distinct docstrings of a Python file; none if it cannot be parsed."""
    try:
        nodes = ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    return list(dict.fromkeys(text.strip() for text in texts))


def read_file(path):
    """Yields a UTF-8 file in pieces."""
    try:
        with open(path, encoding="utf-8-sig") as text:  # without a byte-order mark
            while piece := text.read(PIECE):
                controls = len(re.findall(r"[\0-\x08]", piece))
                if 20 * controls > len(piece) + 20:  # UTF-16 without a mark
                    raise UnicodeError
                yield piece
    except UnicodeError:
        stop(f"{path} is not UTF-8 text: convert it first")
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}")


def read_text(path, kind):
    """Yields the text of a file in pieces, for a kind of tokenizer."""
    for piece in cut_safely(read_file(path)):
        yield piece if kind == "gpt2" else piece.replace(END, "")


def cut_safely(pieces):
    """Yields the same text, cut before the last blank or line end of a piece that something else
    follows: the words of every tokenizer begin or end there."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        found = re.match(r"(?s).*(?=[ \n]\S)", text)
        cut = found and found.end() or len(text)  # without such a place: anywhere
        yield text[:cut]
        rest = text[cut:]
    yield rest


def part_of(pieces, start, stop):
    """Yields the characters from `start` to `stop` of a text in pieces."""
    for piece in pieces:
        yield piece[max(0, start) : max(0, stop)]
        start, stop = start - len(piece), stop - len(piece)


# ------------------------------------------------------------------------------------------------
# writing data/NAME/


def prepare_text(arguments, source, kind, texts, held_out=None):
    """Writes data/NAME/ from texts, with a tokenizer that is learned from their training part.

    texts, held_out: functions that return an iterator of str, every time the same text. Without
                     held_out it is the tail of each text, a tenth of its characters.
    """
    lengths = [sum(map(len, tqdm(text(), "reading", leave=False, delay=1))) for text in texts]
    cuts = [n if held_out else int(0.9 * n) for n in lengths]
    if (length := sum(lengths)) < 1000:
        stop(f"a text of {length} characters is too short: give 1,000 or more")

    def parts(starts, stops):
        for index, (text, start, end) in enumerate(zip(texts, starts, stops)):
            if index:
                yield END if kind == "gpt2" else "\n\n"
            yield from part_of(text(), start, end)

    def train(what):
        pieces = parts([0] * len(texts), cuts)
        return tqdm(pieces, what, total=length // PIECE, leave=False, delay=1)

    if arguments.tokens_of:
        description = load_tokens(arguments.tokens_of)[0]["tokenizer"]
    else:
        description = learn(kind, train("counting"), arguments.vocab_size)
    tokenizer = Tokenizer(description)
    val = held_out() if held_out else parts(cuts, lengths)
    write(arguments.name, source, tokenizer,
          encode(train("encoding"), tokenizer), encode(val, tokenizer))


def encode(pieces, tokenizer):
    """Yields the ids of each piece, on all cores: tiktoken releases Python's global lock (GIL)."""
    pieces, threads = iter(pieces), os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        while group := list(islice(pieces, 2 * threads)):
            yield from pool.map(tokenizer.encode, group)


def write(name, source, tokenizer, train, val, row=1):
    """Writes data/NAME/. train, val: iterables of uint16 arrays. row: tokens of a text, where each
    has a row of its own.

    Files are complete before they get their names, and meta.json comes last: if it is there, it
    describes the files beside it.
    """
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    counts, unknown = {}, {}
    for split, blocks in (("train", train), ("val", val)):
        counts[split] = unknown[split] = 0
        with open(folder / f"{split}.bin.new", "wb") as file:
            for ids in blocks:
                file.write(ids.data)
                counts[split] += len(ids)
                unknown[split] += int((ids == tokenizer.unknown_id).sum())
    meta = {"source": source, "tokenizer": tokenizer.description,
            "vocab_size": tokenizer.vocab_size, "row": row, "tokens": counts}
    (folder / "meta.json.new").write_text(json.dumps(meta, indent=1))
    (folder / "meta.json").unlink(missing_ok=True)
    for file in ("train.bin", "val.bin", "meta.json"):
        os.replace(folder / f"{file}.new", folder / file)
    print(f"data/{name}: {counts['train']:,} tokens to train on, {counts['val']:,} held out, "
          f"V = {tokenizer.vocab_size}, from {source}")
    shares = [unknown[split] / max(1, counts[split]) for split in counts]
    if any(shares):
        print(f"unknown: {shares[0]:.2%} of the tokens to train on, {shares[1]:.2%} held out")
    if shares[1] > 0.01 + 2 * shares[0]:
        print("note: the tails, which are held out, are not like the rest: mix them, or use bpe")


# ------------------------------------------------------------------------------------------------
# stories, books and downloads


def prepare_world(name):
    """Different stories or books, each a row of tokens: the text, then padding."""
    make, vocabulary, row, train, val = WORLDS[name]
    rng, known = random.Random(0), set()
    tokenizer = Tokenizer(describe_words(vocabulary()))

    def rows(count):
        for _ in tqdm(range(count), f"drawing {name}", leave=False):
            while (text := make(rng)) in known:
                pass
            known.add(text)
            ids = tokenizer.encode(text)
            yield np.pad(ids, (0, row - len(ids)), constant_values=tokenizer.ids[PAD])

    write(name, f"{name}.py", tokenizer, rows(train), rows(val), row)


def prepare_shards(name, shards):
    """Downloaded files of GPT-2's tokens, joined: a header of 1,024 bytes in each is left out."""
    train = [download(SHARDS.format("train", i), name) for i in range(1, shards + 1)]
    val = [download(SHARDS.format("val", 0), name)]
    blocks = ((np.memmap(path, np.uint16, "r", 1024) for path in paths) for paths in (train, val))
    write(name, f"FineWeb-Edu, {shards} shards", Tokenizer({"kind": "gpt2"}), *blocks)
    for path in train + val:
        os.remove(path)


def download(address, name):
    """Downloads a file to data/NAME/ unless it is there; returns its path. It is called .part until
    it is complete."""
    path = FOLDER / name / address.rpartition("/")[2]
    if path.exists():
        return str(path)
    path.parent.mkdir(exist_ok=True)
    bar = tqdm(desc=path.name, unit="B", unit_scale=True, delay=1)

    def show(blocks, size, total):
        bar.total = max(total, 0)
        bar.update(blocks * size - bar.n)

    try:
        urllib.request.urlretrieve(address, f"{path}.part", show)
    except OSError as error:
        stop(f"{address} cannot be downloaded ({error}): is there a network?")
    bar.close()
    os.replace(f"{path}.part", path)
    return str(path)


# ------------------------------------------------------------------------------------------------
# the command


def parse_arguments():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("name", help=f"{', '.join(NAMES)}, or one of your own for --text: the folder in data/")
    add("--text", nargs="+", metavar="FILE", default=[], help="UTF-8 files to use instead")
    add("--tokenizer", choices=("bpe", "word", "char", "gpt2"), help="byte pairs learned here, "
        "words (for stories), characters, or GPT-2's byte pairs (default: char for shakespeare, "
        "gpt2 for the other downloads, else bpe)")
    add("--tokens-of", metavar="NAME", help="use the tokens of this prepared text instead")
    add("--vocab-size", type=int, default=1024, help="of bpe or word, 257 to 65536 (1024)")
    add("--shards", type=int, default=1,
        help="files of fineweb-edu, 100 million tokens each, 1 to 99 (1)")
    add("--overwrite", action="store_true", help="replace a text that has this name already")
    arguments = parser.parse_args()
    name = arguments.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        stop(f"{name!r} is not a folder name")
    if name not in NAMES and not arguments.text:
        stop(f"there is no text {name}: use {', '.join(NAMES)}, or your own with --text FILE")
    if not 257 <= arguments.vocab_size <= 65536 or not 1 <= arguments.shards <= 99:
        stop("--vocab-size must be 257 to 65536, and --shards 1 to 99")
    if (FOLDER / name / "meta.json").exists() and not arguments.overwrite:
        stop(f"data/{name} is prepared already: choose another name, or replace it: --overwrite")
    return arguments


def main():
    arguments = parse_arguments()
    name, files, kind = arguments.name, arguments.text, arguments.tokenizer
    if arguments.tokens_of:
        kind = load_tokens(arguments.tokens_of)[0]["tokenizer"]["kind"]
    if files:
        kind, source = kind or "bpe", "files: " + ", ".join(Path(path).name for path in files)
        prepare_text(arguments, source, kind, [partial(read_text, path, kind) for path in files])
    elif name in DOWNLOADS:
        kind = kind or ("char" if name == "shakespeare" else "gpt2")
        paths = [download(address, name) for address in DOWNLOADS[name]]
        texts = [partial(read_text, path, kind) for path in paths]
        prepare_text(arguments, DOWNLOADS[name][0], kind, texts[:1], *texts[1:])
    elif name == "pydocs":
        text, version = python_documentation(), platform.python_version()
        source = f"documentation of Python {version}"
        prepare_text(arguments, source, kind or "bpe", [lambda: iter([text])])
    elif kind:
        stop(f"{name} has tokens of its own: leave out --tokenizer and --tokens-of")
    elif name in WORLDS:
        prepare_world(name)
    else:
        prepare_shards(name, arguments.shards)


if __name__ == "__main__":
    main()
