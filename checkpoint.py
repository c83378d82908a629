"""Files that survive, and errors in one line.

Checkpoints, data, reports and pictures go to a temporary name beside the final one and are renamed when complete, so a
killed run leaves the old file or the new one, never half of one (the CSV logs, a line at a time, are the exception). Everything it reads may be missing, cut short or
from another model; what is expected to go wrong raises `UserError`, which a command turns into one line and exit 2.
"""

import argparse
import contextlib
import csv
import hashlib
import os
import sys
from pathlib import Path

import torch


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line instead of the whole usage."""

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def seed_number(text):
    """The type of --seed: 0 to 2**32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def run_command(main):
    """Calls main(); an expected error becomes one line on stderr and exit status 2, Ctrl-C exits with 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        print(f"error: torch.compile failed, try --no-compile: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def write_safely(path, write):
    """Calls write(temporary_path), then renames the result to `path`."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def save_checkpoint(path, checkpoint):
    write_safely(path, lambda temporary: torch.save(checkpoint, temporary))


def load_checkpoint(path):
    """The dict in a checkpoint, memory-mapped on the CPU. Tensors and plain values only: no code in it is ever run."""
    path = Path(path)
    if not path.exists():
        cure = f": make it with `python train.py {path.stem}`" if path.stem in ("judge", "dfm", "fsdfm") else ""
        raise UserError(f"there is no {path}{cure}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}): make or download it again") from error


def file_hash(path):
    """The SHA-256 of a file, in hexadecimal: is it still the one that it was?"""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def must_be_ours(checkpoint, path):
    """UserError unless the dict is one that train.py saved."""
    if not isinstance(checkpoint, dict) or not {"stage", "iteration", "seconds", "config", "settings", "tokenizer", "model", "ema", "dfm"} <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of this project, or one of another version of it")


def open_log(path, start):
    """The CSV log, without the rows after iteration `start` that a run which was cut short may have left."""
    columns = ["iteration", "loss", "validation_loss", "seconds"]
    rows = [row for row in csv.DictReader(path.open()) if int(row["iteration"]) <= start] if start and path.exists() else []
    writer = csv.DictWriter(path.open("w", newline="", buffering=1), columns)  # a row is on the disk at once
    writer.writeheader()
    writer.writerows(rows)
    return writer


def pick_device(name=None):
    """The torch.device of that name, by default a CUDA GPU if there is one, else the CPU. UserError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"there is no device called {name}: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"this machine has no {name} that PyTorch can use here: try --device cpu")
    return device
