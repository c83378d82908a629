"""Runs the project's commands for the tests: `python SCRIPT ARGUMENTS`, each in a process of its own.

Starting Python and importing PyTorch takes seconds, and the tests run a hundred commands. So one process imports PyTorch once and is forked for
each command (multiprocessing's forkserver); nothing of the project is imported before the fork. Read next: test_commands.py.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["command", "torch", "torch._dynamo", "numpy", "tqdm", "tiktoken", "matplotlib.pyplot"])


def be_the_command(folder, arguments, output):
    """What a shell and `python ARGUMENTS` do: folder, files 1 and 2, sys.argv and sys.path, then the script (or -c CODE)."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.path[:] = [str(path) for path in sys.path if not Path(path, "flow.py").exists()]  # not the tested copy's original
    if arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(folder, arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def run_python(folder, *arguments, seconds=300):
    """(returncode, stdout, stderr) of `python ARGUMENTS` in the folder; a TimeoutError if it takes longer than that."""
    with tempfile.TemporaryDirectory() as output:
        process = FORKSERVER.Process(target=be_the_command, args=(str(folder), [*map(str, arguments)], output))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments} took longer than {seconds} seconds")
        stdout, stderr = (Path(output, name).read_text() for name in ("stdout", "stderr"))
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)
