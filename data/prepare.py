"""Text -> train.bin, val.bin (uint16 token ids) and meta.json (what they are), in data/NAME/.

    python data/prepare.py pydocs                     the documentation that every Python carries; no network
    python data/prepare.py mine --text a.txt b.txt    your own UTF-8 text

`pydocs` is the language reference of pydoc_data.topics and the docstrings of the standard library, read with `ast`
from the sources, so nothing is imported or run. Packages that some systems leave out (tests, IDLE, Tk) are skipped,
so the text depends on the Python version alone; meta.json records the version and a hash of the text.
"""

import argparse
import ast
import hashlib
import json
import platform
import sys
import sysconfig
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from checkpoint import Parser, UserError, run_command, write_safely
from data.dataset import Dataset
from data.tokenizer import Tokenizer, learn_bpe, learn_char

FOLDER = Path(__file__).parent
OFTEN_MISSING = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"}
OFTEN_MISSING |= {"site-packages", "dist-packages", "pydoc_data", "turtle.py"}


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


def user_text(paths):
    """The files' text, one after the other. UserError for a file that is missing or not UTF-8."""
    texts = []
    for path in paths:
        try:
            texts.append(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}): convert it, for example with iconv") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    return "\n\n".join(texts)


def prepare(name, text, source, tokenizer="bpe", vocab_size=1024, validation=0.1, tokens_of=None):
    """Writes data/NAME/. Validation text is the contiguous tail; the tokenizer is learned on the rest, or is that of
    the prepared text `tokens_of`."""
    cut = int(len(text) * (1 - validation))
    train_text, val_text = text[:cut], text[cut:]
    replaced = 0
    if tokens_of:
        description = Dataset(tokens_of).tokenizer.description
    elif tokenizer == "char":
        description = learn_char(train_text)
    elif tokenizer == "gpt2":
        description = {"kind": "gpt2"}
    else:
        description = learn_bpe(train_text, vocab_size)
    if description["kind"] == "char":
        replaced = sum(n for c, n in Counter(text).items() if c not in description["characters"])
        print(f"{len(description['characters'])} characters; {replaced} rare ones in the text replaced")
    tokens = Tokenizer(description)
    if tokens.vocab_size > 2**16:
        raise UserError(f"--vocab-size {tokens.vocab_size} does not fit in 16 bits: use at most 65536")
    encoded = {split: np.array(tokens.encode(part), dtype=np.uint16) for split, part in (("train", train_text), ("val", val_text))}
    counts = {split: len(ids) for split, ids in encoded.items()}
    if min(counts.values()) == 0:
        raise UserError(f"the text is too short: {counts['train']} tokens to train on and {counts['val']} held out")
    (FOLDER / name / "meta.json").unlink(missing_ok=True)
    for split, ids in encoded.items():
        write_safely(FOLDER / name / f"{split}.bin", ids.tofile)
    meta = {
        "name": name,
        "source": source,
        "tokenizer": description,
        "vocab_size": tokens.vocab_size,
        "tokens": counts,
        "characters": len(text),
        "replaced_characters": replaced,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    # meta.json comes last: where it is, the two others are complete
    write_safely(FOLDER / name / "meta.json", lambda path: path.write_text(json.dumps(meta, indent=1)))
    print(f"data/{name}: {counts['train']:,} tokens to train on, {counts['val']:,} held out, V = {tokens.vocab_size}, "
          f"{len(text) / sum(counts.values()):.2f} characters a token")  # fmt: skip
    print(f"source: {source}, sha256 {meta['text_sha256'][:16]}")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="pydocs, or a name of your own for --text; the folder in data/ that is written")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="UTF-8 files to use instead of pydocs (default: none)")
    parser.add_argument("--tokenizer", choices=("bpe", "char", "gpt2"), default="bpe", help="byte pairs learned here, characters, or GPT-2's byte pairs (default: bpe)")
    parser.add_argument("--tokens-of", metavar="NAME", help="use the tokens of this prepared text, to try its models on another (default: learn new ones)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="tokens of bpe, 257 to 65536 (default: 1024)")
    parser.add_argument("--validation", type=float, default=0.1, help="part of the text, its tail, that is held out (default: 0.1)")
    arguments = parser.parse_args()
    if not 257 <= arguments.vocab_size <= 65536:
        raise UserError(f"--vocab-size must be from 257 to 65536, not {arguments.vocab_size}")
    if not 0 < arguments.validation < 1:
        raise UserError(f"--validation must be between 0 and 1, not {arguments.validation}")
    if Path(arguments.name).name != arguments.name or arguments.name in ("", ".", "..", "__pycache__") or (FOLDER / arguments.name).is_file():
        raise UserError(f"{arguments.name!r} is not a folder name")
    if arguments.text:
        text, source = user_text(arguments.text), "files: " + ", ".join(Path(path).name for path in arguments.text)
    elif arguments.name == "pydocs":
        text, source = python_text(), f"documentation of Python {platform.python_version()}"
    else:
        raise UserError(f"there is no text called {arguments.name}: use pydocs, or give your own with --text FILE")
    if len(text) < 1000:
        raise UserError(f"the text has {len(text)} characters: too short for one block of training and one held out")
    prepare(arguments.name, text, source, arguments.tokenizer, arguments.vocab_size, arguments.validation, arguments.tokens_of)


if __name__ == "__main__":
    run_command(main)
