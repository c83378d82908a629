"""Files of every kind, in the place of each file that the project reads or writes.

A link to the file elsewhere, a link to nothing, a pipe, a link to /dev/zero, a folder, an empty
file, one without rights, one of another user; a folder that is read-only; a umask that takes all
rights away. A command must then work, or say in one line why it does not. soak.py tries all of
them, test_faults.py a few.

Root may read everything, so those who run the tests as root run the commands without its rights.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from command import DIE_AT_THE_FIRST_CHECKPOINT, run, run_python

MINE = ["--preset", "tiny", "--data", "mine"]
SHORT = ["--validate-every", "2", "--iterations", "4"]
FEW = ["--data", "mine", "--steps", "1", "--num-samples", "2"]
ABLATE = ["experiments/ablate.py", *MINE, "--only", "no EMA", "--num-samples", "2"]
COMMANDS = {  # name: the command, and how the names of the files begin that it may write
    "resume": (["train.py", "fsdfm", *MINE, *SHORT, "--resume"], ["out/fsdfm.", "out/train.lock"]),
    "train": (["train.py", "judge", *MINE, "--overwrite", "--iterations", "2"],
              ["out/judge.", "out/train.lock"]),
    "sample": (["sample.py", "--steps", "1"], []),
    "eval": (["eval.py", *FEW], ["out/eval"]),
    "eval-again": (["eval.py", *FEW, "--seed", "2"], ["out/eval"]),
    "infill": (["experiments/heldout.py", "infill", *FEW], ["out/infill-mine.json", "out/eval."]),
    "plot": (["plot.py"], ["out/curve.", "out/headline.", "out/stories."]),
    "prepare": (["data/prepare.py", "mine", "--text", "text/mine.txt", "--overwrite"],
                ["data/mine/", "data/.mine.lock"]),
    "bench": (["experiments/bench.py", "--only", "start", "--preset", "tiny"], ["out/bench.json"]),
    "ablate": (ABLATE, ["ablation/"]),
}
SLOW = ("bench", "ablate")  # other processes are started
FEW_OF_EACH = 8  # of the slow ones
TARGETS = {  # a file or a folder, and the commands that read or write it
    "out/judge.pt": "train eval ablate",
    "out/judge.previous.pt": "train",
    "out/dfm.pt": "resume eval infill ablate",
    "out/fsdfm.pt": "resume sample eval bench",
    "out/fsdfm.previous.pt": "resume",
    "out/fsdfm.csv": "resume",
    "out/judge.csv": "train",
    "out/fsdfm.pt.tmp": "resume",
    "out/eval.json": "eval eval-again plot",
    "out/eval.json.tmp": "eval",
    "out/curve.png": "plot",
    "out/infill-mine.json": "infill",
    "out/bench.json": "bench",
    "out/train.lock": "resume train",
    "out/eval.lock": "eval infill",
    "data/.mine.lock": "prepare",
    "data/mine/meta.json": "resume prepare",
    "data/mine/train.bin": "train prepare",
    "data/mine/val.bin": "eval prepare",
    "data/mine/train.bin.new": "prepare",
    "text/mine.txt": "prepare",
    "ablation/table.md": "ablate",
    "ablation/DFM, seed 1/dfm.pt": "ablate",
    "out": "resume train sample eval plot",
    "data/mine": "train eval prepare",
    "ablation": "ablate",
}
FILE_KINDS = ("link", "link to nothing", "pipe", "device", "folder", "empty", "no rights",
              "another user's")
FOLDER_KINDS = ("link", "link to nothing", "pipe", "empty", "no rights", "read-only")
NEED_NO_ROOT = ("no rights", "another user's", "read-only")
UMASKS = ("077", "777")

# with the umask and without root's rights (capset; no new ones in the processes that it starts)
AS_A_USER = """
import ctypes, os, runpy, sys
umask, *sys.argv = sys.argv[1:]
os.umask(int(umask, 8))
if os.getuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.prctl(38, 1, 0, 0, 0) or libc.capset(header, none):
        sys.exit("root cannot give its rights away here")
sys.path.insert(0, os.path.abspath(os.path.dirname(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Case:
    """A command, with something of a kind at `target`, or a umask."""

    command: str
    target: str = ""
    kind: str = ""
    umask: str = "022"


def all_cases():
    """The Cases: every target by kind by command, and the umasks; of slow commands a few."""
    cases = []
    for target, names in TARGETS.items():
        kinds = FOLDER_KINDS if target in ("out", "data/mine", "ablation") else FILE_KINDS
        cases += [Case(name, target, kind) for kind in kinds for name in names.split()]
    cases += [Case(name, umask=umask) for name in COMMANDS for umask in UMASKS]
    chosen = [case for case in cases if case.command not in SLOW]
    for name in SLOW:
        slow = [case for case in cases if case.command == name]
        chosen += random.Random(3).sample(slow, FEW_OF_EACH)
    return chosen


def make_pristine(project):
    """Prepares, trains and measures once in a copy of the project: every target is there. FS-DFM is
    cut short, so that there is something to resume."""
    (project / "text").mkdir()
    # the sources are text that is there, and of some variety
    (project / "text/mine.txt").write_text(Path(__file__).read_text() * 4)
    run(project, *COMMANDS["prepare"][0], "--vocab-size", "300")
    for stage in ("judge", "dfm", "fsdfm"):
        run(project, "train.py", stage, *MINE, *SHORT)
    run(project, *COMMANDS["eval"][0])
    again = ["fsdfm", *MINE, *SHORT, "--overwrite"]
    run_python(project, "-c", f"{DIE_AT_THE_FIRST_CHECKPOINT}\ntrain.main()", *again)
    shutil.copy(project / "out/fsdfm.pt", project / "out/fsdfm.previous.pt")
    for name in ("plot", "infill"):
        run(project, *COMMANDS[name][0])


def root_can_be_left(project):
    """Whether commands here cannot read a file without rights."""
    path = project / "no rights.py"
    path.write_text("")
    path.chmod(0)
    result = run_python(project, "-c", AS_A_USER, "022", path)
    path.unlink()
    return result.returncode == 1 and "PermissionError" in result.stderr


def put(path, kind, elsewhere):
    """Puts something of a kind at `path`; what was there is in the folder `elsewhere`, or, without
    rights, where it was."""
    there = path.exists()
    if kind == "no rights" and there:
        return path.chmod(0)
    if kind == "read-only" and there:
        return path.chmod(0o555)
    if kind == "another user's" and there:
        path.chmod(0o600)
        return os.chown(path, 65534, 65534)
    moved = elsewhere / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if there:
        path.rename(moved)
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "link to nothing":
        path.symlink_to(elsewhere / "nothing")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch(0o600 if kind == "another user's" else 0o000 if kind == "no rights" else 0o644)
        if kind == "another user's":
            os.chown(path, 65534, 65534)


def contents(project):
    """{name: what is there}: bytes of a file, the target of a link, else its type. Folders behind
    links are looked into."""
    found = {}
    for folder, folders, files in os.walk(project, followlinks=True):
        for name in (*folders, *files):
            path = Path(folder, name)
            key = path.relative_to(project).as_posix()
            if "__pycache__" in key:
                continue
            if path.is_symlink():
                found[key] = f"link to {os.readlink(path)}"
            elif path.is_file() and os.access(path, os.R_OK):
                found[key] = path.read_bytes()
            else:
                found[key] = f"type {path.lstat().st_mode >> 12}"
    return found


def must_be_good(path):
    """AssertionError if a file, one that may have been written, is no whole one of its kind."""
    if path.suffix == ".pt":
        assert torch.load(path, weights_only=True)["iteration"] > 0
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix != ".lock":
        assert path.stat().st_size > 0, path


def must_be_untouched(case, project, before, after, failed):
    """AssertionError if something was lost, or another file written than the command's own."""
    own = [*COMMANDS[case.command][1], "elsewhere/nothing"]
    own += [f"elsewhere/{Path(name).name}" for name in own if not name.endswith("/")]
    if case.command == "prepare":
        own += [f"elsewhere/{name}" for name in ("train.bin", "val.bin", "meta.json", "mine/")]
    if case.target in ("out", "ablation"):
        own.append(f"elsewhere/{case.target}/")
    for name in before.keys() | after.keys():
        if before.get(name) == after.get(name):
            continue
        assert name.startswith(tuple(own)) or name in ("out", "ablation"), (case, name)
        is_link = isinstance(after.get(name), str) and after[name].startswith("link")
        assert not is_link, (case, name)  # no file became one
        if failed and name in before and name.endswith((".pt", ".json", ".bin")):
            assert before[name] in after.values(), (case, name)  # under another name, if at all
    assert Path("/dev/zero").is_char_device()
    stays = case.kind in ("link", "link to nothing", "device", "pipe", "folder")
    # names of the project's own, where only it puts something
    if stays and not case.target.endswith((".tmp", ".new", ".previous.pt")):
        assert before[case.target] == after.get(case.target), case


def try_case(case, pristine, folder):
    """Runs one Case in a copy of the project at `folder`, which is deleted. AssertionError, or
    TimeoutError, says what was not survived."""
    project = shutil.copytree(pristine, folder, symlinks=True)
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    target = project / case.target
    try:
        if case.kind:
            put(target, case.kind, elsewhere)
        before = contents(project)
        command, _ = COMMANDS[case.command]
        seconds = 200 if case.command in SLOW else 40
        result = run_python(project, "-c", AS_A_USER, case.umask, *command, seconds=seconds)
        after = contents(project)
        assert result.returncode in (0, 2), (case, result)
        assert "Traceback" not in result.stderr, (case, result)
        if result.returncode:
            assert result.stderr.splitlines()[-1].startswith("error: "), (case, result)
        must_be_untouched(case, project, before, after, result.returncode)
        if case.kind == "link" and target.exists() and not target.is_dir():
            must_be_good(target)
    finally:
        for path in (project / "out", project / "data/mine", project / "ablation"):
            if path.exists() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(project)
    return result


def try_kinds(pristine, folder, cases, seed=11):
    """Tries `cases` in an order of its own. Returns (how many were tried, how many could not be:
    those that need a user who is not root)."""
    cases = random.Random(seed).sample(cases, len(cases))
    plain = root_can_be_left(pristine)
    left_out = 0
    for case in cases:
        unowned = case.kind == "another user's" and os.getuid() != 0
        if unowned or (case.kind in NEED_NO_ROOT and not plain):
            left_out += 1
            continue
        try_case(case, pristine, folder)
    return len(cases) - left_out, left_out
