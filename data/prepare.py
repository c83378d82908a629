"""Text -> token files (uint16) and meta.json (what they are), in data/NAME/.

    python data/prepare.py pydocs                     the documentation that every Python carries; no network
    python data/prepare.py mine --text a.txt b.txt    your own UTF-8 text, of any size
    python data/prepare.py shakespeare                downloaded; also tinystories, wikitext103, openwebtext
    python data/prepare.py fineweb-edu --shards 10    a billion of GPT-2's tokens, ready made

`pydocs` is the language reference of pydoc_data.topics and the docstrings of the standard library, read with `ast`
from the sources, so nothing is imported or run. Packages that some systems leave out (tests, IDLE, Tk) are skipped,
so the text depends on the Python version alone; meta.json records the version and a hash of the text.

A file is never in the memory as a whole: it is read in pieces, which are cut where no token can reach across, encoded
in as many threads as there are cores, and written. Documents are separated by GPT-2's end-of-text token, or by a blank
line in other tokens; training and measuring take blocks of the whole, wherever they fall.
"""

import argparse
import ast
import codecs
import gzip
import hashlib
import io
import json
import os
import platform
import re
import sys
import sysconfig
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from tqdm import tqdm

from checkpoint import Parser, UserError, lock, number, run_command, write_safely
from data.dataset import FORMAT, Dataset
from data.download import SHARDS, TEXTS, download
from data.tokenizer import END, Tokenizer, learn_bpe, learn_char

FOLDER = Path(__file__).parent
OFTEN_MISSING = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"}
OFTEN_MISSING |= {"site-packages", "dist-packages", "pydoc_data", "turtle.py"}
PIECE = 2**18  # characters that are encoded at a time; tiktoken cannot take a million blanks in a row
LEARN_FROM = 64  # pieces of the text that byte pairs are learned from


# ---------------------------------------------------------------------------------------------------------------
# texts: functions without arguments whose answer yields the text in pieces of str


def python_documents():
    """{name: text}: every help topic, and the docstrings of every file of the standard library, no text twice."""
    from pydoc_data.topics import topics

    documents = {f"topic {name}": text.strip() for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    seen = set()
    for path in sorted(library.rglob("*.py"), key=lambda path: path.as_posix()):
        name = path.relative_to(library)
        if OFTEN_MISSING & set(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [(ast.get_docstring(node) or "").strip() for node in nodes if isinstance(node, kinds)]
        fresh = [text for text in dict.fromkeys(texts) if len(text) > 40 and text not in seen]
        seen.update(fresh)
        if fresh:
            documents[name.as_posix()] = "\n\n".join(fresh)
    return documents


def python_text():
    """One string. Documents stand in the order of their names' hashes, so that the tail is a fair sample of all."""
    documents = python_documents()
    order = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    return "\n\n".join(documents[name] for name in order)


def open_text(path):
    """A file, packed or not, to be read as bytes. FILE.zip#MEMBER is a member of an archive."""
    archive, _, member = str(path).partition(".zip#")
    if member:
        return zipfile.ZipFile(archive + ".zip").open(member)
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def read_text(path):
    """The text of a UTF-8 file in pieces, line ends as in Unix. UserError for a file that is missing, damaged or not UTF-8."""
    decoder, position = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True), 0
    try:
        with open_text(path) as file:
            while data := file.read(PIECE):
                yield decoder.decode(data)
                position += len(data)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (near byte {position + error.start}): convert it, for example with iconv") from error
    except (OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:  # the last for a zip with a password
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_texts(paths, separator):
    """The files' texts, one after the other."""
    for number, path in enumerate(paths):
        if number:
            yield separator
        yield from read_text(path)


def read_articles(path):
    """Wikitext's articles, separated by END: a line like " = Title = " begins one."""
    for piece in cut_safely(read_text(path)):
        yield re.sub(r"(^|\n) = ([^=\n]+) = \n", rf"\1{END} = \2 = \n", piece)


# ---------------------------------------------------------------------------------------------------------------
# pieces


def cut_safely(pieces, size=PIECE):
    """The same text in pieces of about `size` characters, so that encoding them one by one gives the tokens of the whole: they are cut before
    a blank or a line end that something other than white space follows, where every tokenizer's words begin or end. (A text without any is cut anywhere.)"""
    text = ""
    for piece in pieces:
        text += piece
        while len(text) > 2 * size:
            boundary = re.compile(r"[ \n](?=\S)").search(text, size, 2 * size)
            cut = boundary.start() if boundary else size
            yield text[:cut]
            text = text[cut:]
    yield text


def part_of(pieces, start, stop):
    """The characters from `start` to `stop` of a text in pieces."""
    for piece in pieces:
        if stop <= 0:
            return
        yield piece[max(0, start) : stop]
        start, stop = start - len(piece), stop - len(piece)


def encode(pieces, tokenizer, file):
    """Writes the tokens of a text to an open file, and returns how many. tiktoken encodes outside of Python's lock: threads are enough."""
    count, pieces, threads = 0, cut_safely(pieces), os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool, tqdm(desc="encoding", unit="char", unit_scale=True, leave=False, delay=1) as bar:
        while group := list(islice(pieces, 2 * threads)):
            for piece, ids in zip(group, pool.map(tokenizer.encode, group), strict=True):
                file.write(ids.tobytes())
                count += len(ids)
                bar.update(len(piece))
    return count


# ---------------------------------------------------------------------------------------------------------------
# preparing


def describe_tokens(kind, train, vocab_size):
    """The description (tokenizer.py) of the tokens of that kind, learned from the training text where they are learned."""
    if kind == "char":
        description = learn_char(train)
        if (count := len(description["characters"])) > 2**16:
            raise UserError(f"{count} different characters do not fit in 16 bits: use --tokenizer bpe")
        return description
    if kind == "gpt2":
        return {"kind": "gpt2"}
    return learn_bpe(islice(cut_safely(train), LEARN_FROM), vocab_size)


def write_meta(name, meta):
    """meta.json comes last: where it is, what it speaks of is complete."""
    write_safely(FOLDER / name / "meta.json", lambda path: path.write_text(json.dumps({"format": FORMAT, "name": name} | meta, indent=1)))


def prepare(name, train, source, held_out=None, kind="bpe", vocab_size=1024, validation=0.1, tokens_of=None):
    """Writes data/NAME/. `train` and `held_out` are texts, functions that yield pieces; without the latter, the contiguous tail of the former is held
    out, `validation` of its characters. The tokenizer is learned on the rest, or has the description `tokens_of`."""
    digest, length = hashlib.sha256(), 0
    for piece in tqdm(train(), desc="reading", unit="piece", leave=False, delay=1):
        digest.update(piece.encode())
        length += len(piece)
    cut = length if held_out else int(length * (1 - validation))
    if length < 1000 or cut == 0 or (cut == length and not held_out):
        raise UserError(f"the text is too short: {cut:,} characters to train on and {length - cut:,} held out")
    texts = {"train": lambda: part_of(train(), 0, cut), "val": held_out or (lambda: part_of(train(), cut, length))}
    tokens = Tokenizer(tokens_of or describe_tokens(kind, texts["train"](), vocab_size))

    folder, counts = FOLDER / name, {}
    try:
        for split, text in texts.items():

            def write(path, split=split, text=text):
                with path.open("wb") as file:
                    counts[split] = encode(text(), tokens, file)

            write_safely(folder / f"{split}.bin.new", write)
        if min(counts.values()) == 0:
            raise UserError("the text was gone when it was read for the second time: give ordinary files")
        (folder / "meta.json").unlink(missing_ok=True)  # from here on the old text is gone, and soon the new one is there
        for split in texts:
            os.replace(folder / f"{split}.bin.new", folder / f"{split}.bin")
    finally:
        for split in texts:
            (folder / f"{split}.bin.new").unlink(missing_ok=True)
    if tokens.description["kind"] == "char":
        rare = tokens.vocab_size - 1
        replaced = sum(int((np.memmap(folder / f"{split}.bin", np.uint16, "r") == rare).sum()) for split in counts)
        print(f"{tokens.vocab_size} characters; {replaced} rare ones in the text replaced")
    write_meta(name, {
        "source": source, "tokenizer": tokens.description, "vocab_size": tokens.vocab_size, "tokens": counts,
        "files": {split: [f"{split}.bin"] for split in counts}, "header_bytes": 0, "characters": length, "text_sha256": digest.hexdigest(),
    })  # fmt: skip
    print(f"data/{name}: {counts['train']:,} tokens to train on, {counts['val']:,} held out, V = {tokens.vocab_size}, "
          f"{cut / counts['train']:.2f} characters a token")  # fmt: skip
    print(f"source: {source}, sha256 {digest.hexdigest()[:16]}")


def prepare_shards(name, shards):
    """Writes data/NAME/ from files of GPT-2 tokens: 256 int32 of header (20240520, version 1, number of tokens), then uint16 tokens."""
    files = {"train": [SHARDS % ("train", i) for i in range(1, shards + 1)], "val": [SHARDS % ("val", 0)]}
    counts = {}
    for split, addresses in files.items():
        counts[split] = 0
        for address in addresses:
            path = FOLDER / name / address.rpartition("/")[2]
            download(address, path)
            magic, version, tokens = np.fromfile(path, np.int32, 3) if path.stat().st_size > 1024 else (0, 0, 0)
            if magic != 20240520 or version != 1 or path.stat().st_size != 1024 + 2 * tokens:
                path.unlink()
                raise UserError(f"{path} is no complete file of tokens, and is deleted: run this again")
            counts[split] += int(tokens)
    write_meta(name, {
        "source": f"kjj0/finewebedu10B-gpt2, {shards} shards", "tokenizer": {"kind": "gpt2"}, "vocab_size": 50257, "tokens": counts,
        "files": {split: [address.rpartition("/")[2] for address in files[split]] for split in files}, "header_bytes": 1024,
        "text_sha256": f"{shards} shards",
    })  # fmt: skip
    print(f"data/{name}: {counts['train']:,} tokens to train on, {counts['val']:,} held out, V = 50257")


def prepare_download(name, **options):
    """Writes data/NAME/ from a public text."""
    texts = []
    for address, sha256 in filter(None, TEXTS[name]):
        path = FOLDER / name / address.partition("#")[0].rpartition("/")[2]
        download(address.partition("#")[0], path, sha256)
        packed = f"{path}#{address.partition('#')[2]}" if "#" in address else str(path)
        texts.append(packed)
    read = read_articles if name == "wikitext103" else read_text
    gpt2 = options["kind"] == "gpt2"

    def text(path):
        return lambda: read(path) if gpt2 else (piece.replace(END, "") for piece in read(path))

    prepare(name, text(texts[0]), TEXTS[name][0][0], text(texts[1]) if len(texts) > 1 else None, **options)


def main():
    names = ["pydocs", *TEXTS, "fineweb-edu"]
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"{', '.join(names)}, or a name of your own for --text; the folder in data/ that is written")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 files to use instead (default: none)")
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--tokenizer", choices=("bpe", "char", "gpt2"), help="byte pairs learned here, characters, or GPT-2's byte pairs (default: "
                        "gpt2 for texts that are downloaded, but char for shakespeare; else bpe)")  # fmt: skip
    tokens.add_argument("--tokens-of", metavar="NAME", help="use the tokens of this prepared text, to try its models on another (default: learn new ones)")
    parser.add_argument("--vocab-size", type=number(int, 257, 65536), default=1024, help="tokens of bpe, 257 to 65536 (default: 1024)")
    parser.add_argument("--validation", type=float, default=0.1, help="part of the text, its tail, that is held out (default: 0.1)")
    parser.add_argument("--shards", type=number(int, 1, 99), default=1, help="files of fineweb-edu, 100 million tokens each, 1 to 99 (default: 1)")
    arguments = parser.parse_args()
    name = arguments.name
    if not 0 < arguments.validation < 1:
        raise UserError(f"--validation must be between 0 and 1, not {arguments.validation}")
    if Path(name).name != name or name.startswith((".", "-")) or name in ("", "__pycache__") or (FOLDER / name).is_file() or "\0" in name:
        raise UserError(f"{name!r} is not a folder name")
    if not arguments.text and name not in names:
        raise UserError(f"there is no text called {name}: use {', '.join(names)}, or give your own with --text FILE")
    default = "bpe" if arguments.text or name == "pydocs" else "char" if name == "shakespeare" else "gpt2"
    if name == "fineweb-edu" and not arguments.text and (arguments.tokenizer or arguments.tokens_of):
        raise UserError("fineweb-edu comes in GPT-2's tokens: leave out --tokenizer and --tokens-of")
    tokens_of = Dataset(arguments.tokens_of).tokenizer.description if arguments.tokens_of else None
    kind = tokens_of["kind"] if tokens_of else arguments.tokenizer or default
    options = {"kind": kind, "vocab_size": arguments.vocab_size, "validation": arguments.validation, "tokens_of": tokens_of}
    if arguments.text:
        for path in arguments.text:
            if Path(path).exists() and not Path(path).is_file():
                raise UserError(f"{path} is no file: a text is read more than once")
            next(read_text(path))  # a file that cannot be read is said before anything is done
        separator = END if options["kind"] == "gpt2" else "\n\n"
        held = lock(FOLDER / f".{name}.lock")
        prepare(name, lambda: read_texts(arguments.text, separator), "files: " + ", ".join(Path(path).name for path in arguments.text), **options)
    else:
        held = lock(FOLDER / f".{name}.lock")
        if name == "pydocs":
            prepare(name, lambda text=python_text(): iter([text]), f"documentation of Python {platform.python_version()}", **options)
        elif name == "fineweb-edu":
            prepare_shards(name, arguments.shards)
        else:
            prepare_download(name, **options)
    held.close()


if __name__ == "__main__":
    run_command(main)
