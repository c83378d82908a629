"""Runs the project's commands for the tests: `python SCRIPT ARGUMENTS`, each in a process of its own.

Starting Python and importing PyTorch takes seconds, and the tests run hundreds of commands. So one process imports PyTorch once and is forked for
each command (multiprocessing's forkserver); nothing of the project is imported before the fork. Read next: test_commands.py.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # of the commands: networks this small are faster so, and far faster on a busy machine
ROOT = Path(__file__).parent.parent
TINY = ["--preset", "tiny"]  # the networks of the tests are trained in seconds
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["command", "torch", "torch._dynamo", "numpy", "tqdm", "tiktoken", "matplotlib.pyplot"])


def copy_project(folder):
    """The project's sources in an empty folder, where nothing of the user's can be touched."""
    for source in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]:
        target = folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return folder


def be_the_command(folder, arguments, output, environment):
    """What a shell and `python ARGUMENTS` do: folder, files 1 and 2, sys.argv and sys.path, then the script (or -c CODE)."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | environment)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ignores Ctrl-C, and its children would, too
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.path[:] = [str(path) for path in sys.path if not Path(path, "flow.py").exists()]  # not the tested copy's original
    if arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(folder, arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


class Command:
    """A command that is under way."""

    def __init__(self, folder, *arguments, **environment):
        self.arguments, self.output = [*map(str, arguments)], tempfile.TemporaryDirectory()
        arguments = (str(folder), self.arguments, self.output.name, environment)
        self.process = FORKSERVER.Process(target=be_the_command, args=arguments, daemon=True)
        self.process.start()

    def shown(self, name):
        path = Path(self.output.name, name)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, condition, seconds=120):
        """Until condition() holds; an AssertionError if the command ends before, or takes longer than that."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.shown("stderr")
            time.sleep(0.005)

    def send(self, number):
        """A signal, as from `kill`."""
        os.kill(self.process.pid, number)

    def finish(self, seconds=300):
        """(returncode, stdout, stderr), the first negative if a signal ended it; a TimeoutError if it takes longer than that."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.arguments} took longer than {seconds} seconds")
        return SimpleNamespace(returncode=self.process.exitcode, stdout=self.shown("stdout"), stderr=self.shown("stderr"))


def run_python(folder, *arguments, seconds=300, **environment):
    return Command(folder, *arguments, **environment).finish(seconds)


def run(folder, *arguments, status=0):
    """Runs a command; its result, after checking the exit status and that no traceback was shown."""
    result = run_python(folder, *arguments)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def error_line(folder, *arguments):
    """The one line that a command with bad input prints."""
    result = run(folder, *arguments, status=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr
