"""Runs the project's commands for the tests: `python SCRIPT ARGUMENTS`, each in its own process.

Starting Python and importing PyTorch takes seconds, and the tests run hundreds of commands. So one
process imports PyTorch once and is forked for each command (multiprocessing's forkserver). Nothing
of the project is imported before the fork. Read next: test_commands.py.
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

# of the commands: networks this small are faster so, and far faster on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
SOURCES = ("*.py", "common/*.py", "data/*.py", "experiments/*.py", "show/*")
PYDOCS = ["--data", "pydocs"]  # of most tests: real text, with characters of all kinds
TINY = ["--preset", "tiny", *PYDOCS]  # the networks of the tests are trained in seconds
LIBRARIES = ["torch", "torch._dynamo", "numpy", "tqdm", "tiktoken", "matplotlib.pyplot"]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["command", *LIBRARIES])


def copy_project(folder):
    """The project's sources in an empty folder, where nothing of the user's can be touched."""
    for pattern in SOURCES:
        for source in filter(Path.is_file, ROOT.glob(pattern)):
            target = folder / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


def be_the_command(folder, arguments, output, environment):
    """What a shell and `python ARGUMENTS` do: folder, files 1 and 2, sys.argv and sys.path, then
    the script (or -c CODE)."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update({"CUDA_VISIBLE_DEVICES": ""} | environment)
    # the server ignores Ctrl-C, and its children would, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # not the tested copy's original
    sys.path[:] = [str(path) for path in sys.path if not Path(path, "flow.py").exists()]
    if arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(folder, arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


# python -c ON_A_FULL_DISK SCRIPT ...: what is written before it is renamed goes to /dev/full, which
# refuses every byte
ON_A_FULL_DISK = """
import pathlib, runpy, sys
unlink = pathlib.Path.unlink
def full(path, **options):
    unlink(path, **options)
    if path.suffix == ".tmp" and options:  # common/files.py is about to write it
        path.symlink_to("/dev/full")
pathlib.Path.unlink = full
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).resolve().parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DIE_AT_THE_FIRST_CHECKPOINT = """
import os
import common.run
save_checkpoint = common.run.save_checkpoint
def save_and_die(*arguments, **options):
    save_checkpoint(*arguments, **options)
    os._exit(9)
common.run.save_checkpoint = save_and_die
import train
"""  # and then train.main()


class Command:
    """A command that is running."""

    def __init__(self, folder, *arguments, **environment):
        self.arguments = [str(argument) for argument in arguments]
        self.output = tempfile.TemporaryDirectory()
        self.process = FORKSERVER.Process(
            target=be_the_command,
            args=(str(folder), self.arguments, self.output.name, environment),
            daemon=True,
        )
        self.process.start()

    def printed(self, name):
        """What it has written so far to "stdout" or "stderr"."""
        path = Path(self.output.name, name)
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, condition, seconds=120):
        """Until condition() holds. AssertionError if the command ends before, or takes longer."""
        end = time.monotonic() + seconds
        while not condition():
            alive = self.process.is_alive()
            assert alive and time.monotonic() < end, self.printed("stderr")
            time.sleep(0.005)

    def send(self, number):
        """A signal, as from `kill`."""
        os.kill(self.process.pid, number)

    def finish(self, seconds=300):
        """Its returncode (negative if a signal ended it), stdout and stderr, once it has ended.
        TimeoutError if that takes longer."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.arguments} took longer than {seconds} seconds")
        stdout, stderr = self.printed("stdout"), self.printed("stderr")
        return SimpleNamespace(returncode=self.process.exitcode, stdout=stdout, stderr=stderr)


def run_python(folder, *arguments, seconds=300, **environment):
    """The result of a command, whatever it is."""
    return Command(folder, *arguments, **environment).finish(seconds)


def run(folder, *arguments, status=0):
    """The result of a command, with this exit status and no traceback."""
    result = run_python(folder, *arguments)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def error_line(folder, *arguments):
    """The one line that a command with bad input prints."""
    result = run(folder, *arguments, status=2)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def last_error_line(result):
    """The last line of a command that failed while a progress bar was on the screen."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.splitlines()[-1]
