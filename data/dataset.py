"""Prepared text, read where it lies: random blocks of tokens for training, blocks in order for measuring.

A split is one file of uint16 token ids or several ("shards"), with or without a header; meta.json says which. They are
memory-mapped, so a text may be larger than the memory. Nothing here is trusted: what is missing, cut short or not a token
of the vocabulary is said in one line.
"""

import json
from pathlib import Path

import numpy as np
import torch

from checkpoint import UserError
from data.tokenizer import Tokenizer

FOLDER = Path(__file__).parent
FORMAT = 2  # of meta.json and of what lies beside it


class Dataset:
    """What data/prepare.py wrote for `name`: .train and .val (lists of memory-mapped uint16 arrays), .tokenizer, .meta."""

    def __init__(self, name):
        if Path(name).name != name:
            raise UserError(f"--data takes the name of a folder in data/, not {name!r}")
        self.name, folder = name, FOLDER / name
        self.cure = f"python data/prepare.py {name}" + (" --text FILE" if not folder.exists() and name != "pydocs" else "")
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            if self.meta["format"] != FORMAT:
                raise UserError(f"data/{name}/meta.json is of another version of this project: delete data/{name} and run `{self.cure}`")
            self.tokenizer = Tokenizer(self.meta["tokenizer"])
            self.train, self.val = ([self.open(folder / file) for file in self.meta["files"][split]] for split in ("train", "val"))
            counts = {"train": sum(map(len, self.train)), "val": sum(map(len, self.val))}
            if counts != self.meta["tokens"]:
                raise ValueError(f"it has {counts} tokens where {self.meta['tokens']} were written")
        except FileNotFoundError as error:
            what = "no text is prepared in" if not (folder / "meta.json").exists() else f"{Path(error.filename).name} is missing from"
            raise UserError(f"{what} data/{name}: run `{self.cure}`") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(f"data/{name} is damaged ({error}): delete it and run `{self.cure}`") from error

    def open(self, path):
        """The tokens of one file, behind its header."""
        header = self.meta["header_bytes"]
        size = path.stat().st_size - header
        if size < 2 or size % 2:
            raise ValueError(f"{path.name} holds {size} bytes of tokens")
        return np.memmap(path, np.uint16, "r", offset=header)

    def checked(self, tokens):
        """The tokens as int64; UserError if one is not of the vocabulary."""
        tokens = torch.from_numpy(tokens.astype(np.int64))
        if tokens.max() >= self.tokenizer.vocab_size:
            raise UserError(f"data/{self.name} has the token {tokens.max()}, beyond its vocabulary of {self.tokenizer.vocab_size}: delete it and run `{self.cure}`")
        return tokens

    def must_fill(self, block_size):
        """UserError if the text is too short for one block."""
        for split, shards in (("train", self.train), ("val", self.val)):
            if (longest := max(map(len, shards))) < block_size:
                raise UserError(f"the text in data/{self.name} is too short: {longest} tokens of {split}, and one block takes {block_size}")

    def must_match(self, checkpoint, path):
        """UserError if the checkpoint was trained with other tokens."""
        if checkpoint["tokenizer"] != self.meta["tokenizer"]:
            raise UserError(f"{path} was trained with other tokens than those of data/{self.name}: train it again, or name its --data")

    def batch(self, split, batch_size, block_size, device="cpu"):
        """(B, L) int64: random contiguous blocks of a split, "train" or "val", any as likely as any other."""
        shards = self.train if split == "train" else self.val
        ends = np.cumsum([max(0, len(shard) - block_size + 1) for shard in shards])  # how many blocks begin in each, summed up
        picks = torch.randint(int(ends[-1]), (batch_size,)).numpy()
        rows = []
        for pick, shard in zip(picks, np.searchsorted(ends, picks, side="right")):
            start = pick - (ends[shard - 1] if shard else 0)
            rows.append(shards[shard][start : start + block_size])
        blocks = self.checked(np.stack(rows))
        if torch.device(device).type == "cuda":  # the copy goes on while the host prepares the next batch
            return blocks.pin_memory().to(device, non_blocking=True)
        return blocks

    def validation_blocks(self, block_size, most=1024):
        """(N, L) int64: the beginning of the held-out text in blocks, in order, `most` of them."""
        blocks = min(most, len(self.val[0]) // block_size)
        return self.checked(self.val[0][: blocks * block_size]).view(-1, block_size)
