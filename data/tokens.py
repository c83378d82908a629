"""Prepared text: two files of token ids, and what they are.

    load_tokens(name)    data/NAME/, as prepare.py writes it

train.bin and val.bin are uint16, memory-mapped, so that a text may be larger than the memory.
meta.json describes them.
"""

import json
from pathlib import Path

import numpy as np

from config.command import stop

FOLDER = Path(__file__).resolve().parent


def load_tokens(name):
    """(meta, tokens): the dict of meta.json, and {"train", "val"} -> (number of tokens,) uint16.

    meta["tokenizer"] is what data.tokenizer.Tokenizer takes, meta["vocab_size"] is V, and
    meta["row"] the number of tokens of a text where each has a row of its own (stories), else 1:
    texts may begin at its multiples. stop() if no such text is prepared.
    """
    folder = FOLDER / name
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tokens = {s: np.memmap(folder / f"{s}.bin", np.uint16, "r") for s in ("train", "val")}
    except FileNotFoundError as error:
        stop(f"there is no {Path(error.filename).name} in data/{name}: run `python data/prepare.py "
             f"{name}` (a text of your own: with --text FILE)")
    return meta, tokens


def held_out(meta, tokens, length, most=1024):
    """The first texts of the held-out part, in order: (N, length) int64 array, N at most `most`."""
    row = meta["row"] if meta["row"] > 1 else length
    n = min(most, len(tokens["val"]) // row)
    return tokens["val"][: n * row].reshape(n, row)[:, :length].astype(np.int64)
