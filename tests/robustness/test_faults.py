"""Checks that nothing is lost: kills, full disks, damaged files and bad input, with the real
commands.

soak.py does far more at random, for minutes; a few rounds of it are here. Ordinary bad flags are in
test_commands.py, downloads in test_download.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from command import ON_A_FULL_DISK, PYDOCS, TINY, Command, copy_project, error_line
from command import last_error_line, run, run_python
from kinds import Case, make_pristine, root_can_be_left, try_case
from soak import READERS, fuzz, kill_and_resume, logged_losses, mutate

STAGES = ("judge", "dfm", "fsdfm")
SHORT = [*TINY, "--iterations", "40", "--validate-every", "10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project whose three networks have been trained, with two checkpoints each."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    run(folder, "data/prepare.py", "pydocs")
    for stage in STAGES:
        run(folder, "train.py", stage, *SHORT)
    return folder


@pytest.fixture
def out(trained, tmp_path):
    """A copy of its networks, to be damaged."""
    return shutil.copytree(trained / "out", tmp_path / "out")


def same_weights(one, two):
    """Whether the "model" and "ema" weights of two checkpoints are the same, bit for bit."""
    one, two = (torch.load(path, weights_only=True) for path in (one, two))
    parts = [part for part in ("model", "ema") if one[part]]
    return all(torch.equal(one[p][name], two[p][name]) for p in parts for name in one[p])


def same_run(one, two, stage):
    """Whether two folders have the same losses, as often, and the same weights of a stage."""
    same_losses = logged_losses(one, stage) == logged_losses(two, stage)
    return same_losses and same_weights(one / f"{stage}.pt", two / f"{stage}.pt")


# ------------------------------------------------------------------------------------------------
# kills and signals


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random(trained, tmp_path, stage):
    """kill -9, three times, and --resume: the losses and the weights are those of the undisturbed
    run, bit for bit."""
    out = tmp_path / "out"
    out.mkdir()
    if stage == "fsdfm":
        shutil.copy(trained / "out/dfm.pt", out)
    killed_at = kill_and_resume(trained, out, stage, SHORT, kills=3, dice=random.Random(1))
    assert max(killed_at) >= 10  # there was something to go on with
    assert same_run(out, trained / "out", stage)


DIE_WHEN_RENAMING = """
import os
import common.files
import train
replace, names = os.replace, []
def replace_or_die(old, new):
    if os.fspath(new).endswith(".pt"):
        names.append(new)
        if len(names) == {}:
            os._exit(9)
    replace(old, new)
common.files.os.replace = replace_or_die
train.main()
"""


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_killed_between_writing_and_renaming(trained, tmp_path, renames):
    """The first checkpoint is one rename, the second two: the old one becomes the previous one,
    then the new one takes its place."""
    flags = ["dfm", *SHORT, "--out", tmp_path]
    code = DIE_WHEN_RENAMING.format(renames)
    assert run_python(trained, "-c", code, *flags).returncode == 9
    assert (tmp_path / "dfm.pt.tmp").exists()
    resumed = run(trained, "train.py", *flags, "--resume")
    assert ("dfm.pt is missing: using" in resumed.stderr) == (renames == 3)
    assert same_weights(tmp_path / "dfm.pt", trained / "out/dfm.pt")
    assert not (tmp_path / "dfm.pt.tmp").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(trained, tmp_path, number, status):
    """The iteration under way is finished and saved, whichever it is. The log has the same losses
    as if nothing had happened."""
    command = Command(trained, "train.py", "dfm", *SHORT, "--out", tmp_path)
    log = tmp_path / "dfm.csv"
    command.wait_for(lambda: log.exists() and logged_losses(tmp_path, "dfm"))
    command.send(number)
    result = command.finish()
    assert result.returncode == status and "Traceback" not in result.stderr
    assert "--resume" in result.stderr
    assert 10 <= torch.load(tmp_path / "dfm.pt", weights_only=True)["iteration"] < 40
    run(trained, "train.py", "dfm", *SHORT, "--out", tmp_path, "--resume")
    assert same_run(tmp_path, trained / "out", "dfm")


def second_process(job):
    """The id of the process with LOCAL_RANK 1 that torchrun has started."""
    for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        if b"LOCAL_RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError("torchrun has no second process")


def test_a_process_of_torchrun_dies(trained, tmp_path):
    """One of two is killed: the other ends within a minute and says so, and --resume reaches the
    weights of an undisturbed run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "train.py", "dfm", *TINY]
    torchrun += ["--iterations", "120", "--validate-every", "10"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = {"cwd": trained, "env": environment, "text": True}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    job = subprocess.Popen([*torchrun, "--out", str(killed)], **options)
    while not (killed / "dfm.pt").exists():
        assert job.poll() is None
        time.sleep(0.02)
    os.kill(second_process(job), signal.SIGKILL)
    began = time.monotonic()
    _, stderr = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - began < 60
    assert "--resume goes on" in stderr, stderr
    for flags in (["--out", str(killed), "--resume"], ["--out", str(whole)]):
        subprocess.run([*torchrun, *flags], timeout=120, check=True, **options)
    assert same_run(killed, whole, "dfm")


# ------------------------------------------------------------------------------------------------
# files


@pytest.mark.parametrize("damage", ["half of it", "one bit", "nothing in it", "its hash"])
def test_the_checkpoint_before_is_used(trained, out, damage):
    """A damaged newest checkpoint is named in one line, and the one before it resumes to the same
    weights."""
    content = bytearray((out / "dfm.pt").read_bytes())
    half, middle = bytes(content[: len(content) // 2]), len(content) // 2
    if damage == "one bit":
        content[middle] ^= 4
    elif damage == "its hash":
        content[-1] ^= 1
    damaged = {"half of it": half, "nothing in it": b""}.get(damage, bytes(content))
    (out / "dfm.pt").write_bytes(damaged)
    sampled = run(trained, "sample.py", "--model", "dfm", "--steps", 1, "--out", out)
    lines = sampled.stderr.splitlines()
    assert len(lines) == 2 and f"{out}/dfm.pt is" in lines[0]
    assert f"using {out}/dfm.previous.pt" in lines[0]
    run(trained, "train.py", "dfm", *PYDOCS, "--resume", "--out", out)
    assert same_weights(out / "dfm.pt", trained / "out/dfm.pt")
    for name in ("dfm.pt", "dfm.previous.pt"):
        (out / name).write_bytes(bytes(content[:1000]))
    line = error_line(trained, "sample.py", "--model", "dfm", "--out", out)
    assert "make or download it again" in line


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_file_that_cannot_grow(trained, out):
    """The same as a full disk: one clear line, the checkpoint that was there intact, no temporary
    file."""
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    command = ["train.py", "judge", "--overwrite", *TINY, "--iterations", 80, "--out", out]
    line = last_error_line(run_python(trained, "-c", LIMITED.format(200_000), *command))
    assert f"cannot write {out}/judge.pt: File too large" in line
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before
    few = ["--steps", 1, "--num-samples", 2, "--out", out]
    for name, command in (
        ("eval.json", ["eval.py", *PYDOCS]),
        ("infill-pydocs.json", ["experiments/heldout.py", "infill", *PYDOCS]),
    ):
        line = last_error_line(run_python(trained, "-c", ON_A_FULL_DISK, *command, *few))
        assert f"cannot write {out}/{name}: No space left" in line
        assert not list(out.glob("*.tmp"))
    command = ["data/prepare.py", "pydocs", "--overwrite"]
    line = last_error_line(run_python(trained, "-c", LIMITED.format(10_000), *command))
    assert "cannot write" in line
    assert (trained / "data/pydocs/meta.json").exists()
    assert not list((trained / "data/pydocs").glob("*.new*"))
    # what was there can still be used
    run(trained, "eval.py", *PYDOCS, *few)


def test_a_full_disk(trained, tmp_path):
    """A file system of half a megabyte, then one that is read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        line = last_error_line(run_python(trained, "train.py", "dfm", *SHORT, "--out", disk))
        assert "cannot write" in line and "No space left on device" in line
        assert not list(disk.glob("*.tmp")) and not list(disk.glob("*.pt"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = last_error_line(run_python(trained, "train.py", "judge", *SHORT, "--out", disk))
        assert "Read-only file system" in line
    finally:
        subprocess.run(["umount", "-l", str(disk)])


NON_FINITE_AFTER_30_LOSSES = """
import train
from common.command import run_command
good, count = train.loss_of, [0]
def bad_loss_of(*arguments):
    count[0] += 1
    return good(*arguments) * (float("nan") if count[0] > 30 else 1)
train.loss_of = bad_loss_of
run_command(train.main)
"""


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_a_non_finite_loss(trained, tmp_path, stage):
    """The run stops, says at which iteration, and leaves the last good checkpoint. (The student's
    teacher samples from a non-finite network before the loss is checked.)"""
    if stage == "fsdfm":
        shutil.copy(trained / "out/dfm.pt", tmp_path)
    command = ["-c", NON_FINITE_AFTER_30_LOSSES, stage, *SHORT, "--out", tmp_path]
    line = last_error_line(run_python(trained, *command))
    assert "not finite at iteration" in line and "--learning-rate" in line
    assert f"{stage}.pt is of iteration" in line
    checkpoint = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
    assert checkpoint["iteration"] in (10, 20)
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_two_runs_in_one_folder(trained, tmp_path):
    """The second is refused while the first is alive, and not when it was killed."""
    flags = [*TINY, "--iterations", "100000", "--out", tmp_path]
    first = Command(trained, "train.py", "dfm", *flags)
    first.wait_for((tmp_path / "dfm.csv").exists)
    line = error_line(trained, "train.py", "judge", *SHORT, "--out", tmp_path)
    assert "another process is at work here" in line
    first.send(signal.SIGKILL)
    assert first.finish().returncode == -signal.SIGKILL
    run(trained, "train.py", "judge", *SHORT, "--out", tmp_path)


def cut_to_1000_bytes(path):
    path.write_bytes(path.read_bytes()[:1000])


def write_tokens_beyond_the_vocabulary(path):
    tokens = json.loads(path.with_name("meta.json").read_text())["tokens"]["train"]
    np.full(tokens, 1024, np.uint16).tofile(path)


def write_an_older_format(path):
    path = path.with_name("meta.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(b""), "train.bin holds 0 bytes"),
        (lambda path: path.write_bytes(b"\0" * 10001), "train.bin holds 10001 bytes"),
        (cut_to_1000_bytes, "'train': 500"),
        (write_tokens_beyond_the_vocabulary, "beyond its vocabulary of 1024"),
        (lambda path: path.unlink(), "train.bin is missing"),
        (lambda path: path.with_name("meta.json").unlink(), "no text is prepared"),
        (lambda path: path.with_name("meta.json").write_text("[]"), "damaged"),
        (write_an_older_format, "another version"),
    ],
)
def test_data_files(trained, tmp_path, damage, words):
    """Empty, of odd length, cut short, tokens beyond the vocabulary, no meta.json, one of another
    version: one line that names the folder and the command that repairs it."""
    folder = trained / "data/hurt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained / "data/pydocs", folder)
    damage(folder / "train.bin")
    command = ["train.py", "judge", *SHORT, "--data", "hurt", "--out", tmp_path]
    line = last_error_line(run_python(trained, *command))
    assert "data/hurt" in line and "python data/prepare.py hurt" in line
    assert words in line


def test_checkpoints_of_another_kind(trained, out):
    """A newer format, an older one, a network whose weights do not fit its config, another
    vocabulary: one line each."""
    checkpoint = torch.load(out / "fsdfm.pt", weights_only=True)
    config = checkpoint["config"]

    def line_with(**changes):
        torch.save(checkpoint | changes, out / "fsdfm.pt")
        return error_line(trained, "sample.py", "--out", out)

    assert "newer version" in line_with(format=99)
    assert "older version" in line_with(format=1)
    assert "does not fit together" in line_with(config=config | {"dim": 32})
    assert "does not fit together" in line_with(config=config | {"source": "mask"})
    assert "does not fit together" in line_with(config=config | {"depth": 3})
    assert "is damaged (config of the file" in line_with(config=None)


def test_checkpoints_of_format_1(trained, out):
    """Every command that reads a checkpoint of the older format refuses it in one line. Its keys
    are the same, but its settings had other names."""
    for stage in STAGES:
        checkpoint = torch.load(out / f"{stage}.pt", weights_only=True)
        settings = {"largest_rate": 2.0, "easing": 2.0, "iterations": 40}
        older = checkpoint | {"format": 1, "settings": settings}
        torch.save(older, out / f"{stage}.pt")
    for command, stage in (
        (["sample.py"], "fsdfm"),
        (["eval.py"], "judge"),
        (["train.py", "judge", *PYDOCS, "--resume"], "judge"),
        (["train.py", "dfm", *PYDOCS, "--resume"], "dfm"),
        (["train.py", "fsdfm", *TINY, "--overwrite"], "dfm"),
    ):
        line = error_line(trained, *command, "--out", out)
        assert f"{out}/{stage}.pt was written by an older version" in line


# ------------------------------------------------------------------------------------------------
# text


TEXTS = {
    "empty": b"",
    "one character": b"a",
    "a hundred": b"x" * 100,
    "NUL bytes": b"ab\0c " * 2000,
    "invalid UTF-8": b"good " * 1000 + b"\xff\xfe" + b"bad " * 1000,
    "cut in a character": "é".encode() * 3000 + b"\xc3",
    "emoji": "\U0001f600\U0001f601".encode() * 2000,
    "right to left": "שלום עולם ".encode() * 1000,
    "CRLF": b"one line\r\nand another\r\n" * 500,
    "blanks": b" " * 3_000_000,
}
REFUSED = ("empty", "one character", "a hundred", "invalid UTF-8", "cut in a character")
PRINT_TEXT = """
from data.dataset import Dataset
dataset = Dataset("odd")
tokens = [part[0].tolist() for part in (dataset.train, dataset.val)]
print(ascii("".join(dataset.tokenizer.decode(ids) for ids in tokens)))
"""


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_texts(trained, tmp_path, name, tokenizer):
    """Either one clear line, and nothing is written; or it is prepared, and the tokens are the
    text."""
    (tmp_path / "text").write_bytes(TEXTS[name])
    command = ["data/prepare.py", "odd", "--text", tmp_path / "text", "--tokenizer", tokenizer]
    result = run_python(trained, *command)
    assert "Traceback" not in result.stderr
    if name in REFUSED:
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert "too short" in result.stderr or "not UTF-8" in result.stderr
        assert not (trained / "data/odd").exists()
        return
    assert result.returncode == 0, result.stderr
    text = eval(run(trained, "-c", PRINT_TEXT).stdout)
    assert text == TEXTS[name].decode().replace("\r\n", "\n")
    shutil.rmtree(trained / "data/odd")


PROMPTS = ["", "word " * 300, "\x1b[2J\x07", "\u202eevil", "\U0001f600", "naïve", "\ud800"]
PROMPTS += ["\x01", "\n\n\n", "_" * 40]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts(trained, prompt):
    """Whatever is given, no control character reaches the terminal."""
    result = run_python(trained, "sample.py", "--steps", 1, "--prompt", prompt)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr
    assert (result.returncode == 2) == (prompt in ("word " * 300, "\ud800"))
    assert all(c in "\n\t" or c.isprintable() for c in result.stdout)


# ------------------------------------------------------------------------------------------------
# under load, and at random


def test_four_at_once(trained, out):
    """Four commands read one checkpoint, and all finish. The file is not touched."""
    before = (out / "fsdfm.pt").read_bytes()
    flags = ["--steps", 8, "--num-samples", 4, "--out", out, "--seed"]
    commands = [Command(trained, "sample.py", *flags, seed) for seed in (1, 1, 2, 3)]
    results = [command.finish() for command in commands]
    assert all(result.returncode == 0 for result in results), results
    assert results[0].stdout == results[1].stdout != results[2].stdout
    assert (out / "fsdfm.pt").read_bytes() == before


def test_random_command_lines(trained):
    """The first 60 of the 500 that soak.py tries."""
    assert fuzz(trained, 60) == 60


# ------------------------------------------------------------------------------------------------
# mutations


def test_files_and_an_environment_that_are_nearly_right(trained):
    """One thing in them is another; soak.py tries 300."""
    run(trained, "eval.py", *PYDOCS, "--steps", 1, "--num-samples", 2)
    run(trained, *READERS["data/pydocs/meta.json"])
    assert mutate(trained, 15) == 15


# ------------------------------------------------------------------------------------------------
# files of every kind


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("pristine"))
    make_pristine(folder)
    return folder


@pytest.mark.parametrize("command, target, kind, words", [
    ("resume", "out/train.lock", "pipe", "not an ordinary file"),
    ("resume", "out/fsdfm.csv", "pipe", "not an ordinary file"),
    ("resume", "out/dfm.pt", "device", "not an ordinary file"),
    ("train", "out/judge.previous.pt", "folder", "not an ordinary file"),
    ("resume", "out/fsdfm.pt", "link", ""),
    ("eval-again", "out/eval.json", "link", ""),
    ("plot", "out/curve.png", "device", "not an ordinary file"),
    ("eval", "out/eval.json.tmp", "pipe", ""),
    ("train", "out", "link to nothing", "is not a folder"),
    ("prepare", "data/mine/val.bin", "folder", "not an ordinary file"),
    ("prepare", "data/mine/train.bin", "link", ""),
    ("prepare", "data/mine/train.bin.new", "link", ""),
    ("ablate", "out/dfm.pt", "device", "not an ordinary file"),
])
def test_kinds_of_files(pristine, tmp_path, command, target, kind, words):
    """It works, or one line says why not; a link stays one, and nothing is lost. soak.py tries them
    all."""
    result = try_case(Case(command, target, kind), pristine, tmp_path / "case")
    assert result.returncode == (2 if words else 0) and words in result.stderr, result


@pytest.mark.parametrize("case, words", [
    (Case("train", "data/mine/train.bin", "no rights"), "error: Permission denied"),
    (Case("eval", "out", "read-only"), "error: cannot write"),
    (Case("train", umask="777"), "error: cannot write"),
])
def test_without_rights(pristine, tmp_path, case, words):
    if not root_can_be_left(pristine):
        pytest.skip("root cannot give its rights away here")
    result = try_case(case, pristine, tmp_path / "case")
    assert result.returncode == 2 and words in result.stderr, result
