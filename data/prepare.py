"""Text -> token files (uint16) and meta.json (what they are), in data/NAME/.

    python data/prepare.py stories                    the small stories of stories.py; no network
    python data/prepare.py pydocs                     documentation of Python itself; no network
    python data/prepare.py mine --text a.txt b.txt    your own UTF-8 text, of any size
    python data/prepare.py shakespeare                downloaded; also tinystories, wikitext103
                                                      and openwebtext
    python data/prepare.py fineweb-edu --shards 10    a billion of GPT-2's tokens, ready made

`pydocs` is the language reference of pydoc_data.topics, and the docstrings of the standard
library. `ast` reads them from the sources, so nothing is imported or run. Packages that some
systems leave out (tests, IDLE, Tk) are skipped, so the text depends on the Python version alone.
meta.json records the version and a hash of the text.

`stories` are drawn with a fixed seed. Each is a row of 128 tokens of its own: the story, then the
padding token. No held-out story is one of the training's.

A file is never in memory as a whole. It is read in pieces, and cut only where no token can cross
the cut. As many threads as there are cores encode the pieces. Documents are separated by GPT-2's
end-of-text token, or by a blank line in other tokens. Training and evaluation take blocks from
anywhere in the text, across documents.

Read next: tokenizer.py.
"""

import ast
import contextlib
import codecs
import gzip
import hashlib
import io
import json
import os
import platform
import random
import re
import sys
import sysconfig
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

# `python data/prepare.py` puts data/ on the path, and the imports below need the folder above it
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common.early  # first: Ctrl-C is quiet from here on

import numpy as np
from tqdm import tqdm

from common.command import Parser, UserError, number, printable, run_command
from common.files import lock, must_be_ordinary, read_json, replace, write_safely, write_text
from data.dataset import FORMAT, Dataset
from data.download import SHARDS, TEXTS, download
from data.stories import make_story, vocabulary
from data.tokenizer import END, Tokenizer, describe_words, learn_bpe, learn_char, learn_word

FOLDER = Path(__file__).parent

# Folders and files of the standard library that some systems leave out.
OFTEN_MISSING = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils"}
OFTEN_MISSING |= {"ensurepip", "site-packages", "dist-packages", "pydoc_data", "turtle.py"}

PIECE = 2**18  # characters encoded at a time; tiktoken fails on a million blanks in a row
LEARN_FROM = 64  # byte pairs are learned from this many pieces of the text

STORIES = {"train": 100_000, "val": 5_000}
STORY_ROW = 128  # tokens

SHARD_MAGIC = 20240520  # the first number of a shard's header
SHARD_HEADER = 1024  # bytes: 256 int32, of which three are used (magic, version, tokens)


# ------------------------------------------------------------------------------------------------
# reading text: iterators of str, the pieces of a text


def python_documents():
    """The documentation of Python: {name: text}, no text twice.

    One document for every help topic, and one for the docstrings of every file of the standard
    library.
    """
    from pydoc_data.topics import topics

    documents = {f"topic {name}": text.strip() for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    seen = set()
    paths = sorted(library.rglob("*.py"), key=lambda path: path.as_posix())
    for path in tqdm(paths, "reading", unit="file", leave=False):
        name = path.relative_to(library)
        if OFTEN_MISSING & set(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        new = [text for text in docstrings(path) if len(text) > 40 and text not in seen]
        seen.update(new)
        if new:
            documents[name.as_posix()] = "\n\n".join(new)
    return documents


def docstrings(path):
    """The distinct docstrings of a Python file; none if it cannot be parsed."""
    try:
        nodes = ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    return list(dict.fromkeys(text.strip() for text in texts))


def python_text():
    """The documentation of Python, one str.

    The documents are ordered by the hash of their names, so that the tail, which is held out, is
    a fair sample of all of them.
    """
    documents = python_documents()
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    return "\n\n".join(documents[name] for name in order)


def open_text(path):
    """Opens a file, compressed or not, to read bytes. FILE.zip#MEMBER is a member of an archive."""
    archive, _, member = str(path).partition(".zip#")
    must_be_ordinary(Path(archive + ".zip" if member else path))  # a text is read more than once
    if member:
        return zipfile.ZipFile(archive + ".zip").open(member)
    if str(path).endswith(".gz"):
        return gzip.open(path)
    return open(path, "rb")


def read_text(path):
    """Yields the text of a UTF-8 file in pieces, with line ends as in Unix.

    UserError if the file is missing, damaged or not UTF-8.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    position = 0
    try:
        with open_text(path) as file:
            while data := file.read(PIECE):
                yield decoder.decode(data)
                position += len(data)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (near byte {position + error.start}): "
            "convert it, for example with iconv"
        ) from error
    except (
        OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile,
        RuntimeError,  # a zip with a password
    ) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from error


def read_texts(paths, separator):
    """Yields the texts of several files in pieces, with `separator` between two files."""
    for index, path in enumerate(paths):
        if index:
            yield separator
        yield from read_text(path)


def read_articles(path):
    """Yields wikitext in pieces, with END before every article.

    A line like " = Title = " begins an article.
    """
    for piece in cut_safely(read_text(path)):
        yield re.sub(r"(^|\n) = ([^=\n]+) = \n", rf"\1{END} = \2 = \n", piece)


def without_end(pieces):
    """Yields the pieces without END, for tokenizers that have no such token."""
    for piece in pieces:
        yield piece.replace(END, "")


# ------------------------------------------------------------------------------------------------
# cutting and encoding text


def with_bar(pieces, what, length=None):
    """Yields the pieces, with a progress bar. length: their characters together, if known."""
    with tqdm(total=length, desc=what, unit="char", unit_scale=True, leave=False, delay=1) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def cut_safely(pieces, size=PIECE):
    """Yields the same text in pieces of about `size` characters, cut where no token can cross.

    Encoding the pieces one by one gives the tokens of the whole. Every cut is before a blank or a
    line end that something other than white space follows: the words of every tokenizer begin or
    end there. A text without such a place is cut anywhere.
    """
    boundary = re.compile(r"[ \n](?=\S)")
    text = ""
    for piece in pieces:
        text += piece
        while len(text) > 2 * size:
            found = boundary.search(text, size, 2 * size)
            cut = found.start() if found else size
            yield text[:cut]
            text = text[cut:]
    yield text


def part_of(pieces, start, stop):
    """Yields the characters from `start` to `stop` of a text in pieces."""
    with tqdm(total=start, desc="skipping", unit="char", unit_scale=True, leave=False,
              delay=1) as bar:
        for piece in pieces:
            if stop <= 0:
                return
            if start > 0:
                bar.update(len(piece))
            else:
                bar.close()
            yield piece[max(0, start) : stop]
            start -= len(piece)
            stop -= len(piece)


def encode(pieces, tokenizer, file):
    """Writes the tokens of a text in pieces to an open file as uint16; returns their number.

    Threads are enough to use every core: tiktoken releases Python's global lock (GIL).
    """
    threads = os.cpu_count() or 1
    count = 0
    with ThreadPoolExecutor(threads) as pool:
        while group := list(islice(pieces, 2 * threads)):
            for ids in pool.map(tokenizer.encode, group):
                file.write(ids.tobytes())
                count += len(ids)
    return count


def encode_to_file(text, length, tokenizer, path):
    """Writes the tokens of a text to the file `path`; returns their number. length: its
    characters, if known."""
    count = 0

    def write(temporary):
        nonlocal count
        pieces = with_bar(cut_safely(text()), "encoding", length)
        with temporary.open("wb") as file, contextlib.closing(pieces):  # the bar, too
            count = encode(pieces, tokenizer, file)

    write_safely(path, write)
    return count


# ------------------------------------------------------------------------------------------------
# writing data/NAME/


def prepare(name, train, source, held_out=None, kind="bpe", vocab_size=1024, validation=0.1,
            tokens_of=None, sizes=(None, None)):
    """Writes data/NAME/: train.bin, val.bin and meta.json.

    train, held_out: texts. A text is a function without arguments that returns an iterator of
                     str. It is called several times, and must give the same text every time.
    source:          where the text comes from, a str for meta.json.
    kind:            the tokenizer: "bpe", "word", "char" or "gpt2". It is learned on the training
                     text.
    vocab_size:      tokens of a "bpe" or "word" tokenizer, 257 to 65536.
    validation:      without `held_out`, the tail of `train` is held out: this part of its
                     characters, between 0 and 1.
    tokens_of:       the description (tokenizer.py) of a tokenizer to use instead.
    sizes:           about how many characters `train` and `held_out` have, if known, for progress
                     bars.
    UserError if the text is too short, cannot be read or cannot be written. An older text in
    data/NAME/ stays as it was until both token files are complete.
    """
    length, sha256 = measure(with_bar(train(), "reading", sizes[0]))
    cut = length if held_out else int(length * (1 - validation))
    if length < 1000 or cut == 0 or (cut == length and not held_out):
        raise UserError(
            f"the text is too short: {cut:,} characters to train on "
            f"and {length - cut:,} held out"
        )
    texts = {
        "train": lambda: part_of(train(), 0, cut),
        "val": held_out or (lambda: part_of(train(), cut, length)),
    }
    lengths = {"train": cut, "val": sizes[1] if held_out else length - cut}
    description = tokens_of or describe_tokens(kind, texts["train"](), cut, vocab_size)
    tokenizer = Tokenizer(description)

    def write_split(split, path):
        return encode_to_file(texts[split], lengths[split], tokenizer, path)

    counts = write_tokens(FOLDER / name, write_split)
    if description["kind"] == "char":
        print_replaced(FOLDER / name, tokenizer)
    write_meta(name, {
        "source": source,
        "tokenizer": description,
        "vocab_size": tokenizer.vocab_size,
        "tokens": counts,
        "files": {split: [f"{split}.bin"] for split in counts},
        "header_bytes": 0,
        "characters": length,
        "text_sha256": sha256,
    })
    print(f"{summary(name, counts, tokenizer.vocab_size)}, "
          f"{cut / counts['train']:.2f} characters a token")
    print(f"source: {source}, sha256 {sha256[:16]}")


def measure(pieces):
    """(number of characters, SHA-256 in hexadecimal) of a text in pieces."""
    digest = hashlib.sha256()
    length = 0
    for piece in pieces:
        digest.update(piece.encode())
        length += len(piece)
    return length, digest.hexdigest()


def describe_tokens(kind, pieces, length, vocab_size):
    """The description (tokenizer.py) of a tokenizer, learned if needed from the training text,
    which has `length` characters."""
    if kind == "gpt2":
        return {"kind": "gpt2"}
    pieces = cut_safely(pieces)
    if kind == "bpe":
        pieces = islice(pieces, LEARN_FROM)
        length = min(length, LEARN_FROM * (PIECE + 100))  # a piece ends with a word
    what = "counting characters" if kind == "char" else "counting words"
    pieces = with_bar(pieces, what, length)
    if kind == "word":
        return learn_word(pieces, vocab_size)
    if kind == "bpe":
        return learn_bpe(pieces, vocab_size)
    description = learn_char(pieces)
    count = len(description["characters"])
    if count > 2**16:
        raise UserError(
            f"{count} different characters do not fit in 16 bits: use --tokenizer bpe"
        )
    return description


def write_tokens(folder, write_split):
    """Writes train.bin and val.bin; returns {split: number of tokens}. write_split(split, path)
    writes one of them and returns its number.

    Both are complete before either replaces an older file. meta.json is deleted in between, so
    that an interruption cannot leave it beside files that it does not describe. A link stays one:
    what it leads to is replaced.
    """
    names = ("train.bin", "val.bin", "meta.json")
    *files, meta = (Path(os.path.realpath(folder / name)) for name in names)
    for path in (*files, meta):
        must_be_ordinary(path)
    files = dict(zip(("train", "val"), files))
    new = {split: path.with_name(path.name + ".new") for split, path in files.items()}
    for path in new.values():
        path.unlink(missing_ok=True)  # a link would be taken for the file
    try:
        counts = {split: write_split(split, new[split]) for split in new}
        if min(counts.values()) == 0:
            raise UserError("the text was empty when it was read again: give ordinary files")
        described = meta.read_bytes() if meta.exists() else None
        meta.unlink(missing_ok=True)
        try:
            replace(new["train"], files["train"])
        except OSError:  # on Windows, where a training reads it: all is as it was
            if described is not None:
                write_safely(meta, lambda temporary: temporary.write_bytes(described))
            raise
        replace(new["val"], files["val"])
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)
    return counts


def write_meta(name, meta):
    """Writes meta.json. It comes last: if it exists, the files that it describes are complete."""
    vocab_size = Tokenizer(meta["tokenizer"]).vocab_size
    meta = {"format": FORMAT, "name": name, "vocab_size": vocab_size} | meta
    write_text(FOLDER / name / "meta.json", json.dumps(meta, indent=1))


def print_replaced(folder, tokenizer):
    """Prints how many characters of the text a char tokenizer replaced by RARE, its last token."""
    rare = tokenizer.vocab_size - 1
    replaced = 0
    for split in ("train", "val"):
        tokens = np.memmap(folder / f"{split}.bin", np.uint16, "r")
        replaced += int((tokens == rare).sum())
    print(f"{tokenizer.vocab_size} characters; {replaced} rare ones in the text replaced")


def summary(name, counts, vocab_size):
    train = f"{counts['train']:,} tokens to train on"
    return f"data/{name}: {train}, {counts['val']:,} held out, V = {vocab_size}"


# ------------------------------------------------------------------------------------------------
# the kinds of text: stories, Python's documentation, files, downloads, downloaded tokens


def draw_stories():
    """{split: texts}: as many as STORIES says, none held out that is also in the training set."""
    rng = random.Random(0)
    train = [make_story(rng) for _ in tqdm(range(STORIES["train"]), "drawing stories", leave=False)]
    known, val = set(train), []
    while len(val) < STORIES["val"]:
        story = make_story(rng)
        if story not in known:
            val.append(story)
    return {"train": train, "val": val}


def prepare_stories(name):
    """Writes data/NAME/ from stories.py: a story in every row of STORY_ROW tokens."""
    tokenizer = Tokenizer(describe_words(vocabulary()))
    stories = draw_stories()
    digest = hashlib.sha256()

    def write_split(split, path):
        texts = tqdm(stories[split], "encoding", unit="story", leave=False, delay=1)
        rows = tokenizer.encode_rows(texts, STORY_ROW)
        for story in stories[split]:
            digest.update(story.encode())
        write_safely(path, rows.tofile)
        return rows.size

    counts = write_tokens(FOLDER / name, write_split)
    write_meta(name, {
        "source": "stories.py",
        "tokenizer": tokenizer.description,
        "vocab_size": tokenizer.vocab_size,
        "tokens": counts,
        "files": {split: [f"{split}.bin"] for split in counts},
        "header_bytes": 0,
        "row": STORY_ROW,
        "text_sha256": digest.hexdigest(),
    })
    print(f"{summary(name, counts, tokenizer.vocab_size)}, a story in every {STORY_ROW}")


def prepare_pydocs(name, **options):
    """Writes data/NAME/ from the documentation of this Python. Options: those of prepare()."""
    text = python_text()
    source = f"documentation of Python {platform.python_version()}"
    prepare(name, lambda: iter([text]), source, sizes=(len(text), None), **options)


def prepare_files(name, paths, **options):
    """Writes data/NAME/ from UTF-8 files. Options: those of prepare()."""
    separator = END if options["kind"] == "gpt2" else "\n\n"
    source = "files: " + ", ".join(Path(path).name for path in paths)
    sizes = sum(map(size_of_text, paths)), None
    prepare(name, lambda: read_texts(paths, separator), source, sizes=sizes, **options)


def size_of_text(path):
    """Bytes of the text in a file that open_text takes. What a .gz holds is not known before it is
    read: English becomes about 2.6 times as long."""
    archive, _, member = str(path).partition(".zip#")
    if member:
        return zipfile.ZipFile(archive + ".zip").getinfo(member).file_size
    size = Path(path).stat().st_size
    return int(2.6 * size) if str(path).endswith(".gz") else size


def prepare_download(name, **options):
    """Writes data/NAME/ from a text of TEXTS, which is downloaded. Options: those of prepare()."""
    read = read_articles if name == "wikitext103" else read_text

    def make_text(path):
        if options["kind"] == "gpt2":
            return lambda: read(path)
        return lambda: without_end(read(path))

    files = [file for file in TEXTS[name] if file]
    paths = [download_text(name, address, sha256) for address, sha256 in files]
    texts = [make_text(path) for path in paths]
    held_out = texts[1] if len(texts) > 1 else None
    source = files[0][0]
    check_files(paths)
    sizes = [size_of_text(path) for path in paths] + [None]
    prepare(name, texts[0], source, held_out, sizes=sizes, **options)


def download_text(name, address, sha256):
    """Downloads a file of TEXTS to data/NAME/; returns its path, as open_text() takes it."""
    address, mark, member = address.partition("#")
    path = FOLDER / name / file_name(address)
    download(address, path, sha256)
    return f"{path}{mark}{member}"


def file_name(address):
    """What follows the last slash."""
    return address.rpartition("/")[2]


def prepare_shards(name, shards):
    """Writes data/NAME/ from `shards` downloaded files of GPT-2's tokens, and one to hold out."""
    addresses = {
        "train": [SHARDS % ("train", i) for i in range(1, shards + 1)],
        "val": [SHARDS % ("val", 0)],
    }
    counts = {"train": 0, "val": 0}
    for split in addresses:
        for address in addresses[split]:
            path = FOLDER / name / file_name(address)
            download(address, path)
            counts[split] += count_shard_tokens(path)
    write_meta(name, {
        "source": f"kjj0/finewebedu10B-gpt2, {shards} shards",
        "tokenizer": {"kind": "gpt2"},
        "vocab_size": 50257,
        "tokens": counts,
        "files": {split: [file_name(a) for a in addresses[split]] for split in addresses},
        "header_bytes": SHARD_HEADER,
        "text_sha256": f"{shards} shards",
    })
    print(summary(name, counts, 50257))


def count_shard_tokens(path):
    """The number of tokens in a shard: its header, then uint16.

    UserError if the file is not a complete shard; it is then deleted.
    """
    size = path.stat().st_size
    if size > SHARD_HEADER:
        magic, version, tokens = np.fromfile(path, np.int32, 3).tolist()
        if (magic, version, size) == (SHARD_MAGIC, 1, SHARD_HEADER + 2 * tokens):
            return tokens
    path.unlink()
    raise UserError(f"{path} is no complete file of tokens, and is deleted: run this again")


# ------------------------------------------------------------------------------------------------
# the command


def main():
    arguments = parse_arguments()
    check_arguments(arguments)
    name = arguments.name
    options = prepare_options(arguments)
    check_files(arguments.text or [])
    with lock(FOLDER / f".{name}.lock"):
        must_be_free(name, arguments.overwrite)
        if arguments.text:
            prepare_files(name, arguments.text, **options)
        elif name == "stories":
            prepare_stories(name)
        elif name == "pydocs":
            prepare_pydocs(name, **options)
        elif name == "fineweb-edu":
            prepare_shards(name, arguments.shards)
        else:
            prepare_download(name, **options)


def must_be_free(name, overwrite):
    """UserError if a text of this name is there, and is not to be replaced: networks may have been
    trained on it."""
    path = FOLDER / name / "meta.json"
    if path.exists() and not overwrite:
        source = "a text that can be read no more"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            source = printable(read_json(path)["source"][:80])
        raise UserError(f"data/{name} is prepared already, from {source}: "
                        "choose another name, or replace it with --overwrite")


def known_names():
    return ["stories", "pydocs", *TEXTS, "fineweb-edu"]


def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    names = ", ".join(known_names())
    add("name", help=f"{names}, or a name of your own for --text; the folder in data/ to write")
    add("--text", nargs="+", metavar="FILE", help="UTF-8 files to use instead (default: none)")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--tokenizer", choices=("bpe", "word", "char", "gpt2"),
        help="byte pairs learned here, words, characters, or GPT-2's byte pairs (default: gpt2 for "
        "texts that are downloaded, but char for shakespeare; else bpe)")
    tokens.add_argument("--tokens-of", metavar="NAME",
        help="use the tokens of this prepared text, to try its models on another "
        "(default: learn new ones)")
    add("--overwrite", action="store_true", help="replace a text that has this name already")
    add("--vocab-size", type=number(int, 257, 65536), default=1024,
        help="tokens of bpe or word, 257 to 65536 (default: 1024)")
    add("--validation", type=float, default=0.1,
        help="part of the text, its tail, that is held out (default: 0.1)")
    add("--shards", type=number(int, 1, 99), default=1,
        help="files of fineweb-edu, 100 million tokens each, 1 to 99 (default: 1)")
    return parser.parse_args()


def check_arguments(arguments):
    """UserError if an argument is out of range, or does not go with another."""
    name = arguments.name
    if not 0 < arguments.validation < 1:
        raise UserError(f"--validation must be between 0 and 1, not {arguments.validation}")
    if not is_folder_name(name):
        raise UserError(f"{name!r} is not a folder name")
    if (FOLDER / name).exists() and not (FOLDER / name).is_dir():
        raise UserError(f"data/{name} is not a folder: choose another name")
    if arguments.text:
        return
    if name not in known_names():
        raise UserError(
            f"there is no text called {name}: use {', '.join(known_names())}, "
            "or give your own with --text FILE"
        )
    ready_made = {"fineweb-edu": "GPT-2's tokens", "stories": "words"}
    if name in ready_made and (arguments.tokenizer or arguments.tokens_of):
        raise UserError(
            f"{name} comes in {ready_made[name]}: leave out --tokenizer and --tokens-of"
        )


def is_folder_name(name):
    """Whether data/NAME can be a folder of tokens: not elsewhere, not hidden."""
    if Path(name).name != name or "\0" in name:
        return False
    return not name.startswith((".", "-")) and name not in ("", "__pycache__")


def check_files(paths):
    """UserError if a file cannot be read. This is checked before anything is written."""
    for path in paths:
        next(read_text(path))


def prepare_options(arguments):
    """The options of prepare() that the command line sets."""
    tokens_of = None
    kind = arguments.tokenizer or default_tokenizer(arguments)
    if arguments.tokens_of:
        tokens_of = Dataset(arguments.tokens_of).tokenizer.description
        kind = tokens_of["kind"]
    return {
        "kind": kind,
        "vocab_size": arguments.vocab_size,
        "validation": arguments.validation,
        "tokens_of": tokens_of,
    }


def default_tokenizer(arguments):
    if arguments.text or arguments.name == "pydocs":
        return "bpe"
    return "char" if arguments.name == "shakespeare" else "gpt2"


if __name__ == "__main__":
    run_command(main)
