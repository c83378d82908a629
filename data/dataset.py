"""Prepared text: random blocks of tokens for training, blocks in order for evaluation.

A split, "train" or "val", is one file of uint16 token ids, or several files ("shards"). meta.json
names the files, and the length of the header that each of them may begin with.
The files are memory-mapped, so a text may be larger than the memory.

The files are not trusted. A missing or truncated file, or a token outside the vocabulary, raises
a UserError that names the command to run. Read next: ../train.py.
"""

import json
from pathlib import Path

import numpy as np
import torch

from common.command import UserError
from common.files import field, read_json
from data.tokenizer import Tokenizer, check_description

FOLDER = Path(__file__).parent
FORMAT = 2  # of meta.json and of the files beside it


def check_meta(meta):
    """ValueError, with the key, if something in meta.json is not what prepare.py writes."""
    field(meta, "source", "meta.json", str)
    field(meta, "text_sha256", "meta.json", str)
    field(meta, "header_bytes", "meta.json", int, 0)
    for split in ("train", "val"):
        names = field(field(meta, "files", "meta.json", dict), split, "files", list)
        if not names or not all(isinstance(name, str) and Path(name).name == name and name
                                for name in names):
            raise ValueError(f"files of meta.json has {json.dumps(names)[:40]} for {split}")
        field(field(meta, "tokens", "meta.json", dict), split, "tokens", int, 1)
    for name in ("row", "vocab_size"):
        field(meta, name, "meta.json", int, 1, optional=True)
    check_description(meta.get("tokenizer"))


class Dataset:
    """A text that data/prepare.py wrote to data/NAME/.

    .train, .val    lists of memory-mapped arrays, (tokens of the shard,) uint16
    .tokenizer      the Tokenizer that made them
    .meta           the content of meta.json, a dict
    .name           NAME
    .row            tokens of a text, if every text is a row of its own (stories); else None
    UserError if `name` is not a folder name, or if files are missing, damaged or of another
    version.
    """

    def __init__(self, name):
        if Path(name).name != name:
            raise UserError(f"--data takes the name of a folder in data/, not {name!r}")
        self.name = name
        folder = FOLDER / name
        self.how_to_make = f"python data/prepare.py {name}"
        if not folder.exists() and name not in ("pydocs", "stories"):
            self.how_to_make += " --text FILE"
        try:
            self.load(folder)
        except FileNotFoundError as error:
            problem = "no text is prepared in"
            if (folder / "meta.json").exists():
                problem = f"{Path(error.filename).name} is missing from"
            raise UserError(f"{problem} data/{name}: run `{self.how_to_make}`") from error
        except PermissionError:  # nothing is damaged
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"data/{name} is damaged ({error}): delete it and run `{self.how_to_make}`"
            ) from error

    def load(self, folder):
        """Reads meta.json and opens the files that it names."""
        self.meta = read_json(folder / "meta.json")
        if field(self.meta, "format", "meta.json", int) != FORMAT:
            raise UserError(
                f"data/{self.name}/meta.json is of another version of this project: "
                f"delete data/{self.name} and run `{self.how_to_make}`"
            )
        check_meta(self.meta)
        self.tokenizer = Tokenizer(self.meta["tokenizer"])
        if self.tokenizer.vocab_size != self.meta.get("vocab_size", self.tokenizer.vocab_size):
            raise ValueError(f"its tokenizer has {self.tokenizer.vocab_size} tokens")
        self.row = self.meta.get("row")
        files = self.meta["files"]
        self.train = [self.open_shard(folder / file) for file in files["train"]]
        self.val = [self.open_shard(folder / file) for file in files["val"]]
        counts = {"train": sum(map(len, self.train)), "val": sum(map(len, self.val))}
        if counts != self.meta["tokens"]:
            raise ValueError(f"it has {counts} tokens where {self.meta['tokens']} were written")

    def open_shard(self, path):
        """The tokens of one file, after its header: a memory-mapped (tokens,) uint16 array."""
        header = self.meta["header_bytes"]
        size = path.stat().st_size - header
        if size < 2 or size % 2:
            raise ValueError(f"{path.name} holds {size} bytes of tokens")
        return np.memmap(path, np.uint16, "r", offset=header)

    def must_fill(self, block_size):
        """UserError if no shard of a split is as long as one block of `block_size` tokens."""
        if self.row and block_size > self.row:
            raise UserError(
                f"the texts in data/{self.name} have {self.row} tokens each, and one block takes "
                f"{block_size}: use at most {self.row}"
            )
        for split, shards in (("train", self.train), ("val", self.val)):
            longest = max(map(len, shards))
            if longest < block_size:
                raise UserError(
                    f"the text in data/{self.name} is too short: "
                    f"{longest} tokens of {split}, and one block takes {block_size}"
                )

    def must_match(self, checkpoint, path):
        """UserError if the checkpoint, a dict that was read from `path`, has other tokens, or is of
        a text of this name that is not there any more."""
        self.must_be_unchanged(checkpoint.get("text"), path)
        if checkpoint["tokenizer"] != self.meta["tokenizer"]:
            raise UserError(
                f"{path} was trained with other tokens than those of data/{self.name}: "
                "train it again, or name its --data"
            )

    def must_be_unchanged(self, text, path):
        """UserError if the network at `path` was trained on a text of this name, and there is
        another in its place. text: what its checkpoint says, or None."""
        if text and text["name"] == self.name and text["sha256"] != self.meta["text_sha256"]:
            raise UserError(
                f"data/{self.name} has been replaced since {path} was trained on it: "
                "train it again, or prepare the earlier text again"
            )

    def batch(self, split, batch_size, block_size, device="cpu"):
        """Random contiguous blocks of a split, "train" or "val": (B, L) int64 on `device`.

        Every block that lies inside one shard is equally likely. Where every text has a row of its
        own, the blocks are rows, or their first tokens. must_fill(block_size) must hold.
        UserError if a token is outside the vocabulary.
        """
        shards = self.train if split == "train" else self.val
        stride = self.row or 1  # from one start to the next
        lengths = [len(shard) - block_size for shard in shards]
        ends = np.cumsum([max(0, length // stride + 1) for length in lengths])
        # Blocks are numbered through all shards: shard i has the numbers ends[i-1] to ends[i] - 1.
        picks = torch.randint(int(ends[-1]), (batch_size,)).numpy()
        shard_indices = np.searchsorted(ends, picks, side="right")
        rows = []
        for pick, index in zip(picks, shard_indices):
            start = (pick - (ends[index - 1] if index else 0)) * stride
            rows.append(shards[index][start : start + block_size])
        blocks = self.to_tensor(np.stack(rows))
        if torch.device(device).type == "cuda":
            # pinned, the copy runs while the CPU prepares the next batch
            return blocks.pin_memory().to(device, non_blocking=True)
        return blocks.to(device)

    def validation_blocks(self, block_size, most=1024):
        """The first blocks of the held-out text, in order, at most `most`: (N, L) int64.

        UserError if a token is outside the vocabulary.
        """
        row = self.row or block_size
        blocks = min(most, len(self.val[0]) // row)
        return self.to_tensor(self.val[0][: blocks * row]).view(-1, row)[:, :block_size]

    def known_rows(self, length):
        """The first `length` tokens of every row of the training set, as bytes, a set: to tell a
        new text from a copied one."""
        return {row.tobytes() for row in self.train[0].reshape(-1, self.row)[:, :length]}

    def to_tensor(self, tokens):
        """uint16 array -> int64 tensor. UserError if a token is outside the vocabulary."""
        tokens = torch.from_numpy(tokens.astype(np.int64))
        largest = tokens.max()
        if largest >= self.tokenizer.vocab_size:
            raise UserError(
                f"data/{self.name} has the token {largest}, beyond its vocabulary of "
                f"{self.tokenizer.vocab_size}: delete it and run `{self.how_to_make}`"
            )
        return tokens
