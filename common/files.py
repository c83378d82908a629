"""Files that survive: written to a temporary name and renamed, locked, hashed.

A killed command leaves the old file or the new one, never half of one. Only the CSV logs are
written as they grow, a line at a time. Plumbing, to be skipped on a first reading.
"""

import atexit
import contextlib
import csv
import json
import math
import hashlib
import os
import time
from pathlib import Path

from common.command import ROOT, UserError, explain

# where networks are saved by default: in the project's folder, wherever a command is run
OUT = Path("out") if Path.cwd() == ROOT else ROOT / "out"
LOG_COLUMNS = ["iteration", "loss", "validation_loss", "seconds"]


def write_safely(path, write, keep=None):
    """Calls write(temporary_path), then renames the result to `path`.

    What was at `path` is renamed to `keep`, if given. UserError if the file cannot be written;
    `path` is then as it was, and nothing temporary is left.
    """
    path = Path(os.path.realpath(path))  # a link to another disk stays one
    must_be_ordinary(path)  # renamed to /dev/null, a file would take its place
    temporary = path.with_name(path.name + ".tmp")
    try:
        make_folder(path.parent)
        temporary.unlink(missing_ok=True)  # a link or a pipe would lead elsewhere
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may show only now
        if keep and path.exists():
            replace(path, keep)  # killed here, a run leaves `keep` alone: checkpoint.versions
        replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            if keep and keep.exists() and not path.exists():
                os.replace(keep, path)
            temporary.unlink()
        if isinstance(error, (OSError, RuntimeError)):
            raise UserError(f"cannot write {path}: {cause_of(error)}") from error
        raise


def replace(source, target):
    """os.replace. On Windows a virus scanner or a backup holds a new file for a moment: what is
    refused is tried again, for six seconds."""
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(seconds)
    os.replace(source, target)


def must_be_ordinary(path):
    """UserError if there is something at `path` that is not a file: a folder, or a pipe or device,
    which might be read for ever."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not an ordinary file")


def make_folder(path):
    """UserError if there is something else at `path`, or a link to nothing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{path} is not a folder: move it away, or name another folder") from error


def read_json(path):
    """What is in a JSON file. ValueError if it is damaged; FileNotFoundError if it is not there."""
    must_be_ordinary(path)
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def field(table, name, where, kind=(int, float), lowest=-math.inf, optional=False):
    """table[name], if it is of this kind and a number is not below `lowest`. ValueError, which
    names the field and `where` it should be, if it is not."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} is no table")
    value = table.get(name)
    if value is None and optional:
        return None
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, (int, float)) and not lowest <= value < math.inf):
        raise ValueError(f"{name} of {where} is {json.dumps(value)[:40]}")
    return value


def refuse_constant(name):
    """NaN and Infinity are no JSON, and no measurement of ours is either."""
    raise ValueError(f"it has a {name}")


def cause_of(error):
    """torch.save reports a full disk as a RuntimeError, behind the OSError that is its cause."""
    causes = (error, error.__context__)
    reason = next((cause for cause in causes if isinstance(cause, OSError)), error)
    return explain(reason) or reason


def write_text(path, text):
    """write_safely for a str."""
    write_safely(path, lambda temporary: temporary.write_text(text, "utf-8", newline="\n"))


def lock_open_file(file):
    """OSError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(path):
    """Holds the file `path` until this process ends, in whatever way.

    UserError if another process holds it. Closing the returned file gives the lock back.
    """
    must_be_ordinary(path)
    make_folder(path.parent)
    file = path.open("a")
    atexit.register(file.close)
    try:
        lock_open_file(file)
    except (BlockingIOError, PermissionError) as error:  # of Linux and macOS; of Windows
        raise UserError(
            f"another process is at work here (it holds {path}): "
            "wait for it, stop it, or use another folder"
        ) from error
    return file


def file_hash(path):
    """The SHA-256 of a file, in hexadecimal."""
    must_be_ordinary(Path(path))
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_log(path, start):
    """A csv.DictWriter that goes on with the log `path` after iteration `start`.

    Later rows, which a run that was cut short may have left, are dropped, and so is half a row.
    """
    must_be_ordinary(path)
    lines = [",".join(LOG_COLUMNS)]
    if start and path.exists():
        for line in path.read_text("utf-8", "replace").splitlines():
            row = line.split(",")
            if len(row) == len(LOG_COLUMNS) and row[0].isdecimal() and int(row[0]) <= start:
                lines.append(line)
    write_text(path, "\n".join(lines) + "\n")
    file = path.open("a", newline="", buffering=1)  # every row is on its way to the disk at once
    atexit.register(file.close)
    return csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
