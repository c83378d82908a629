"""Command lines: flags with ranges, and errors that take one line.

    UserError      something the user can repair; its text is one line: what is wrong, what to do
    Parser         argparse whose complaint is one line instead of the whole usage
    run_command    calls main(); a UserError ends the command with status 2 and no traceback
    printable      text of a model or a user, safe for a terminal

Plumbing, to be skipped on a first reading.
"""

import argparse
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """Something the user can repair. Its text is one line: what is wrong, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line instead of the whole usage."""

    def __init__(self, description):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message):
        for action in self._get_positional_actions():
            if message.endswith(f"required: {action.dest}"):
                values = ", ".join(action.choices) if action.choices else action.help
                message = f"{self.prog} needs a {action.dest}: {values}"
        raise UserError(f"{message} (see --help)")

    def add_boolean(self, flag, default, text):
        """--flag and --no-flag."""
        action = argparse.BooleanOptionalAction
        self.add_argument(flag, action=action, default=default, help=text)


def number(kind, lowest, highest):
    """The argparse type of a number in [lowest, highest]; kind is int or float. NaN is refused."""

    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if lowest <= value <= highest:
                return value
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text} is not a {name} from {lowest} to {highest}")

    return parse


def seed_number(text):
    """The argparse type of --seed: 0 to 2**32 - 1."""
    return number(int, 0, 2**32 - 1)(text)


def printable(text):
    """Control characters but line breaks and tabs, which a terminal might obey, as U+FFFD."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def place_of(error):
    """Which function of the project an error came from, for one that names no file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if ROOT in Path(frame.filename).parents]
    if not frames:
        return "(no file is named)"
    return f"(in {Path(frames[-1].filename).name}, {frames[-1].name})"


def explain(error):
    """The one line for an error that is expected now and then; None for one that is our bug."""
    if isinstance(error, UserError):  # a line break is that of a path
        return printable(str(error).replace("\n", "\\n"))
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OSError):
        reason = error.strerror or text
        return f"{reason}: {error.filename}" if error.filename else f"{reason} {place_of(error)}"
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if out_of_memory or "allocate memory" in text or "out of memory" in text:  # CPU; Apple GPU
        return (
            f"not enough memory ({text}): "
            "use a smaller batch, fewer or shorter texts, or a smaller network"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed, try --no-compile: {text}"
    lost = any(word in text for word in ("gloo", "NCCL", "peer", "TCPStore"))
    if "RANK" in os.environ and lost:
        rank = os.environ["RANK"]
        return (
            f"process {rank} has lost another process of this run ({text}): "
            "--resume goes on from the last checkpoint"
        )
    return None


def run_command(main):
    """Calls main(). An expected error becomes one line on stderr and exit status 2; Ctrl-C
    exits with 130."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # after common/early.py
    if sys.stdout is None:
        sys.exit("error: standard output is closed, so nothing can be shown")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for a terminal that lacks a character
    try:
        main()
    except BrokenPipeError:  # the reader has gone, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        tqdm.write(f"error: {line}", file=sys.stderr)  # not on the line of a progress bar
        sys.exit(2)
