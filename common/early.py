"""Imported before everything else by every command: Ctrl-C while PyTorch is imported, which takes
seconds, ends it quietly with status 130. Plumbing, to be skipped on a first reading.

common.command.run_command puts Python's own handling back. In a notebook, or in a program that
imports a file of the project, nothing is changed.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = getattr(sys.modules["__main__"], "__file__", None)

if SCRIPT and ROOT in Path(SCRIPT).resolve().parents and "tests" not in Path(SCRIPT).parts:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
