"""Prepared text, read where it lies: random blocks of tokens for training and evaluation."""

import json
from pathlib import Path

import numpy as np
import torch

from checkpoint import UserError
from data.tokenizer import Tokenizer

FOLDER = Path(__file__).parent


class Dataset:
    """What data/prepare.py wrote for `name`: .train and .val (memory-mapped uint16), .tokenizer, .meta."""

    def __init__(self, name):
        folder, command = FOLDER / name, f"python data/prepare.py {name}" + ("" if name == "pydocs" else " --text FILE")
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            self.train, self.val = (np.memmap(folder / f"{split}.bin", np.uint16, "r") for split in ("train", "val"))
            self.tokenizer = Tokenizer(self.meta["tokenizer"])
        except FileNotFoundError as error:
            raise UserError(f"no text is prepared in data/{name}: run `{command}`") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"data/{name} is damaged ({error}): delete it and run `{command}`") from error
        self.name = name

    def must_fill(self, block_size):
        """UserError if the text is too short for one block."""
        shortest = min(len(self.train), len(self.val))
        if shortest < block_size:
            raise UserError(f"the text in data/{self.name} is too short: {shortest} tokens held out, and one block takes {block_size}")

    def must_match(self, checkpoint, path):
        """UserError if the checkpoint was trained with other tokens."""
        if checkpoint["tokenizer"] != self.meta["tokenizer"]:
            raise UserError(f"{path} was trained with other tokens than those of data/{self.name}: train it again, or name its --data")

    def batch(self, split, batch_size, block_size, device="cpu"):
        """(B, L) int64: random contiguous blocks of a split, "train" or "val"."""
        tokens = self.train if split == "train" else self.val
        starts = torch.randint(len(tokens) - block_size + 1, (batch_size,)).numpy()
        blocks = torch.from_numpy(tokens[starts[:, None] + np.arange(block_size)].astype(np.int64))
        if torch.device(device).type == "cuda":
            return blocks.pin_memory().to(device, non_blocking=True)
        return blocks
