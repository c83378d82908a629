"""What survives, and errors in one line.

    write_safely       to a temporary name, onto the disk, then renamed: a killed run leaves the old file or the new one, never half of one
    save_checkpoint    the same, with the hash of its bytes at its end; the checkpoint before it is kept as NAME.previous.pt
    load_checkpoint    the newest of the two that is whole; only numbers and plain values are read, no code in it is ever run
    lock               one process at a time writes in one place
    StopRequest        Ctrl-C and SIGTERM let the step under way finish, so that it can be saved
    run_command        what is expected to go wrong raises UserError, and becomes one line and exit status 2

Only the CSV logs are written as they grow, a line at a time. Read this when you wonder what happens if something fails.
"""

import argparse
import contextlib
import csv
import fcntl
import hashlib
import os
import signal
import sys
from pathlib import Path

import torch

from model import ModelConfig, Transformer

FORMAT = 1  # of a checkpoint; raise it when an older program could not use a newer file
SEAL = b"nanoDFM: SHA-256 of all before: "  # stands before the hash at the end of a checkpoint


# ---------------------------------------------------------------------------------------------------------------
# commands, and their errors


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line instead of the whole usage."""

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def number(kind, lowest, highest):
    """The argparse type of a number from lowest to highest: kind is int or float. (NaN is in no range.)"""

    def parse(text):
        with contextlib.suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' if kind is int else ''}number from {lowest} to {highest}")

    return parse


def seed_number(text):
    """The type of --seed: 0 to 2**32 - 1."""
    return number(int, 0, 2**32 - 1)(text)


def explain(error):
    """The one line for an error that is expected to happen now and then; None for one that is a bug of ours."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):
        return f"{error.strerror or text}" + (f": {error.filename}" if error.filename else "")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return f"not enough memory ({text}): use a smaller batch, fewer samples or a smaller network"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed, try --no-compile: {text}"
    if "RANK" in os.environ and any(word in text for word in ("gloo", "NCCL", "peer", "TCPStore")):
        return f"process {os.environ['RANK']} has lost another process of this run ({text}): --resume goes on from the last checkpoint"
    return None


def run_command(main):
    """Calls main(); an expected error becomes one line on stderr and exit status 2, Ctrl-C exits with 130."""
    try:
        main()
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


class StopRequest:
    """Remembers a Ctrl-C or SIGTERM in .signal, so that the loop can finish its step and save. A second one ends the program at once.
    With `ignore` neither is heeded: of several processes the first alone saves, and torchrun ends the others after it."""

    def __init__(self, ignore=False):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if ignore else self.receive)

    def receive(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def pick_device(name=None):
    """The torch.device of that name, by default a CUDA GPU if there is one, else the CPU. UserError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"there is no device called {name}: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"this machine has no {name} that PyTorch can use here: try --device cpu")
    return device


# ---------------------------------------------------------------------------------------------------------------
# files


def write_safely(path, write, keep=None):
    """Calls write(temporary_path), then renames the result to `path`; what was there is renamed to `keep`, if given. UserError if it cannot
    be written; `path` is then as it was, and nothing temporary is left."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may show only now
        if keep and path.exists():
            os.replace(path, keep)  # killed between these two lines, a run leaves `keep` alone: see versions()
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            if keep and keep.exists() and not path.exists():
                os.replace(keep, path)
            temporary.unlink()
        # torch.save reports a full disk as a RuntimeError, behind the OSError that is its cause
        if isinstance(error, (OSError, RuntimeError)):
            reason = next((e for e in (error, error.__context__) if isinstance(e, OSError)), error)
            raise UserError(f"cannot write {path}: {explain(reason) or reason}") from error
        raise


def lock(path):
    """Holds the file `path` until this process ends, in whatever way. UserError if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is at work here (it holds {path}): wait for it, stop it, or use another folder") from error
    return file  # closing it gives the lock back


def file_hash(path):
    """The SHA-256 of a file, in hexadecimal: is it still the one that it was?"""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_log(path, start):
    """The CSV log, to be gone on with. Rows after iteration `start` go, which a run that was cut short may have left, and so does half a row."""
    columns, lines = ["iteration", "loss", "validation_loss", "seconds"], []
    if start and path.exists():
        cells = (line.split(",") for line in path.read_text(errors="replace").splitlines())
        lines = [",".join(row) for row in cells if len(row) == len(columns) and row[0].isdecimal() and int(row[0]) <= start]
    write_safely(path, lambda temporary: temporary.write_text("\n".join([",".join(columns), *lines, ""])))
    return csv.DictWriter(path.open("a", newline="", buffering=1), columns, lineterminator="\n")  # a row is on its way to the disk at once


# ---------------------------------------------------------------------------------------------------------------
# checkpoints


def previous_name(path):
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def versions(path):
    """The files that hold a checkpoint, the newest first: `path`, and the one before it. Either may be missing."""
    return [p for p in (path, previous_name(path)) if p.exists()]


def save_checkpoint(path, checkpoint, first):
    """Writes the dict. What was in `path` becomes the one before it, or goes if this is the first of its run."""

    def write(temporary):
        with temporary.open("wb") as file:
            torch.save(checkpoint | {"format": FORMAT}, file)
        seal = SEAL + bytes.fromhex(file_hash(temporary))
        with temporary.open("ab") as file:
            file.write(seal)

    write_safely(path, write, keep=None if first else previous_name(path))
    if first:
        previous_name(path).unlink(missing_ok=True)


def read_checkpoint(path):
    """What is in one file, memory-mapped on the CPU; UserError if it is damaged."""
    with path.open("rb") as file:
        size, end = file.seek(0, os.SEEK_END), len(SEAL) + 32
        file.seek(max(0, size - end))
        seal = file.read()
        if seal.startswith(SEAL):  # published files have none
            file.seek(0)
            digest = hashlib.sha256()
            for start in range(0, size - end, 2**20):
                digest.update(file.read(min(2**20, size - end - start)))
            if digest.digest() != seal[len(SEAL) :]:
                raise UserError(f"{path} is damaged: its bytes are not those that were written")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error


def load_checkpoint(path, mend=False):
    """The dict in a checkpoint, with the name of its "file"; where that is damaged, of the one before it, and a line on stderr says so. UserError if
    neither can be had. With `mend` (who will write there) the good file takes the place of the damaged one."""
    path, problem = Path(path), None
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder, and no checkpoint")
    for candidate in versions(path):
        try:
            checkpoint = read_checkpoint(candidate)
        except UserError as error:
            problem = problem or error
            continue
        if candidate != path:
            print(f"{problem or f'{path} is missing'}: using {candidate}, the one before it", file=sys.stderr)
            if mend:
                os.replace(candidate, path)
                candidate = path
        return checkpoint | {"file": str(candidate)} if isinstance(checkpoint, dict) else checkpoint
    if problem:
        raise UserError(f"{problem}: make or download it again") from problem
    cure = f": make it with `python train.py {path.stem}`" if path.stem in ("judge", "dfm", "fsdfm") else ""
    raise UserError(f"there is no {path}{cure}")


def must_be_ours(checkpoint, path, stage=None):
    """UserError unless the dict is one that this version of train.py saved, for that stage if one is given."""
    if isinstance(checkpoint, dict) and isinstance(version := checkpoint.get("format"), int) and version > FORMAT:
        raise UserError(f"{path} was written by a newer version of this project (format {version}, here {FORMAT}): update")
    if not isinstance(checkpoint, dict) or not {"stage", "iteration", "seconds", "config", "settings", "tokenizer", "model", "ema", "dfm", "passes", "format"} <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of this project, or one of another version of it")
    if stage and checkpoint["stage"] != stage:
        raise UserError(f"{path} is a {checkpoint['stage']}, and no {stage}")


def network_of(checkpoint, path, weights="model"):
    """The Transformer of a checkpoint of ours, with its "model" or "ema" weights. UserError if they do not fit together."""
    try:
        network = Transformer(ModelConfig(**checkpoint["config"]))
        network.load_state_dict(checkpoint[weights])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} does not fit together ({str(error).splitlines()[0]}): train it again") from error
    return network
