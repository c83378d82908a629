"""Proves that nothing is lost: kills, full disks, broken files and bad input, done to the real commands.

What kills a run at random is in soak.py, which does far more of it in an hour; here are a few rounds of it. Ordinary bad flags are in
test_commands.py, downloads in test_download.py.
"""

import csv
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

from command import TINY, Command, copy_project, error_line, run, run_python
from soak import fuzz, kill_and_resume

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


def losses(folder, stage):
    return {int(row["iteration"]): row["loss"] for row in csv.DictReader((folder / f"{stage}.csv").open())}


def same_weights(one, two):
    one, two = (torch.load(path, weights_only=True) for path in (one, two))
    return all(
        torch.equal(one[part][name], two[part][name]) for part in ("model", "ema") if one[part] for name in one[part]
    )


# kills and signals


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random(trained, tmp_path, stage):
    """kill -9, three times, and --resume: the losses and the weights are those of the undisturbed run, bit for bit."""
    (tmp_path / "out").mkdir()
    if stage == "fsdfm":
        shutil.copy(trained / "out/dfm.pt", tmp_path / "out")
    killed_at = kill_and_resume(trained, tmp_path / "out", stage, SHORT, kills=3, dice=random.Random(1))
    assert max(killed_at) >= 10  # there was something to go on with
    assert losses(tmp_path / "out", stage) == losses(trained / "out", stage)
    assert same_weights(tmp_path / f"out/{stage}.pt", trained / f"out/{stage}.pt")


DIE_WHEN_RENAMING = """
import os, sys, checkpoint, train
replace, names = os.replace, []
def replace_or_die(old, new):
    if os.fspath(new).endswith(".pt"):
        names.append(new)
        if len(names) == {}:
            os._exit(9)
    replace(old, new)
checkpoint.os.replace = replace_or_die
train.main()
"""


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_killed_between_writing_and_renaming(trained, tmp_path, renames):
    """The first checkpoint is one rename, the second two: the old one is put aside, then the new one in its place."""
    flags = ["dfm", *SHORT, "--out", tmp_path]
    assert run_python(trained, "-c", DIE_WHEN_RENAMING.format(renames), *flags).returncode == 9
    assert (tmp_path / "dfm.pt.tmp").exists()
    resumed = run(trained, "train.py", *flags, "--resume")
    assert ("dfm.pt is missing: using" in resumed.stderr) == (renames == 3)
    assert same_weights(tmp_path / "dfm.pt", trained / "out/dfm.pt") and not (tmp_path / "dfm.pt.tmp").exists()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(trained, tmp_path, number, status):
    """The step is finished and saved, at whatever iteration it is; the log shows the same losses as if nothing had been."""
    command = Command(trained, "train.py", "dfm", *SHORT, "--out", tmp_path)
    command.wait_for(lambda: (tmp_path / "dfm.csv").exists() and losses(tmp_path, "dfm"))
    command.send(number)
    result = command.finish()
    assert result.returncode == status and "--resume" in result.stderr and "Traceback" not in result.stderr
    assert 10 <= torch.load(tmp_path / "dfm.pt", weights_only=True)["iteration"] < 40
    run(trained, "train.py", "dfm", *SHORT, "--out", tmp_path, "--resume")
    assert losses(tmp_path, "dfm") == losses(trained / "out", "dfm") and same_weights(tmp_path / "dfm.pt", trained / "out/dfm.pt")


def test_a_process_of_torchrun_dies(trained, tmp_path):
    """One of two is killed: the other ends within a minute and says so, and --resume reaches the weights of an undisturbed run."""
    flags = [*TINY, "--iterations", "120", "--validate-every", "10"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", "dfm", *flags]
    options = {"cwd": trained, "env": os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, "text": True}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    hurt, whole = tmp_path / "hurt", tmp_path / "whole"
    job = subprocess.Popen([*torchrun, "--out", str(hurt)], **options)
    while not (hurt / "dfm.pt").exists():
        assert job.poll() is None
        time.sleep(0.02)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    second = next(pid for pid in workers if b"LOCAL_RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGKILL)
    killed = time.monotonic()
    _, shown = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - killed < 60
    assert "--resume goes on" in shown, shown
    subprocess.run([*torchrun, "--out", str(hurt), "--resume"], timeout=120, check=True, **options)
    subprocess.run([*torchrun, "--out", str(whole)], timeout=120, check=True, **options)
    assert losses(hurt, "dfm") == losses(whole, "dfm") and same_weights(hurt / "dfm.pt", whole / "dfm.pt")


# files


@pytest.mark.parametrize("damage", ["half of it", "one bit", "nothing in it", "its hash"])
def test_the_checkpoint_before_is_used(trained, out, damage):
    """A damaged newest checkpoint is named in one line, and the one before it resumes to the same weights."""
    content = bytearray((out / "dfm.pt").read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 4
    elif damage == "its hash":
        content[-1] ^= 1
    (out / "dfm.pt").write_bytes({"half of it": content[: len(content) // 2], "nothing in it": b""}.get(damage, content))
    sampled = run(trained, "sample.py", "--model", "dfm", "--steps", 1, "--out", out).stderr.splitlines()
    assert len(sampled) == 2 and f"{out}/dfm.pt is" in sampled[0] and f"using {out}/dfm.previous.pt" in sampled[0]
    run(trained, "train.py", "dfm", "--resume", "--out", out)
    assert same_weights(out / "dfm.pt", trained / "out/dfm.pt")
    for name in ("dfm.pt", "dfm.previous.pt"):
        (out / name).write_bytes(bytes(content[:1000]))
    assert "make or download it again" in error_line(trained, "sample.py", "--model", "dfm", "--out", out)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_file_that_cannot_grow(trained, out):
    """The same as a full disk: one clear line, the checkpoint that was there intact, no temporary file."""
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    larger = [*TINY, "--iterations", 80, "--out", out]
    line = error_line_of(run_python(trained, "-c", LIMITED.format(200_000), "train.py", "judge", "--overwrite", *larger))
    assert f"cannot write {out}/judge.pt: File too large" in line
    assert {path.name: path.read_bytes() for path in out.glob("*.pt*")} == before
    for name, command in (("eval.json", ["eval.py", "--steps", "1", "--num-samples", "2"]), ("likelihood-pydocs.json", ["eval.py", "--likelihood"])):
        (out / f"{name}.tmp").symlink_to("/dev/full")
        assert f"cannot write {out}/{name}: No space left" in error_line_of(run_python(trained, *command, "--out", out))
        assert not list(out.glob("*.tmp"))
    assert "cannot write" in error_line_of(run_python(trained, "-c", LIMITED.format(10_000), "data/prepare.py", "pydocs"))
    assert (trained / "data/pydocs/meta.json").exists() and not list((trained / "data/pydocs").glob("*.new*"))
    run(trained, "eval.py", "--steps", 1, "--num-samples", 2, "--out", out)  # what was there can still be used


def error_line_of(result):
    """The last line of a command that failed while a progress bar was shown."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.splitlines()[-1]


def test_a_full_disk_in_earnest(trained, tmp_path):
    """A file system of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        line = error_line_of(run_python(trained, "train.py", "dfm", *SHORT, "--out", disk))
        assert "cannot write" in line and "No space left on device" in line
        assert not list(disk.glob("*.tmp")) and not list(disk.glob("*.pt"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "Read-only file system" in error_line_of(run_python(trained, "train.py", "judge", *SHORT, "--out", disk))
    finally:
        subprocess.run(["umount", "-l", str(disk)])


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_a_loss_that_is_no_number(trained, tmp_path, stage):
    """The run stops, says at which iteration, and leaves the last good checkpoint. (The spoilt student's teacher is asked before the loss is looked at.)"""
    if stage == "fsdfm":
        shutil.copy(trained / "out/dfm.pt", tmp_path)
    spoil = "import sys, train\nmake = train.make_loss\ncount = [0]\n" + (
        "def make_bad(*arguments):\n    good = make(*arguments)\n    def loss(*batch):\n        count[0] += 1\n"
        "        return good(*batch) * (float('nan') if count[0] > 30 else 1)\n    return loss\ntrain.make_loss = make_bad\n"
        "import checkpoint\ncheckpoint.run_command(train.main)\n"
    )
    line = error_line_of(run_python(trained, "-c", spoil, stage, *SHORT, "--out", tmp_path))
    assert "not finite at iteration" in line and f"{stage}.pt is of iteration" in line and "--learning-rate" in line
    checkpoint = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
    assert checkpoint["iteration"] in (10, 20) and all(value.isfinite().all() for value in checkpoint["model"].values())


def test_two_runs_in_one_folder(trained, tmp_path):
    """The second refuses while the first is alive, and not when it has died without a word."""
    first = Command(trained, "train.py", "dfm", *TINY, "--iterations", "100000", "--out", tmp_path)
    first.wait_for((tmp_path / "dfm.csv").exists)
    assert "another process is at work here" in error_line(trained, "train.py", "judge", *SHORT, "--out", tmp_path)
    first.send(signal.SIGKILL)
    assert first.finish().returncode == -signal.SIGKILL
    run(trained, "train.py", "judge", *SHORT, "--out", tmp_path)


def test_data_files(trained, tmp_path):
    """Empty, odd, cut short, tokens beyond the vocabulary, no meta.json, one of another version: one line that names file and cure."""
    folder = trained / "data/hurt"

    def line_after(damage):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained / "data/pydocs", folder)
        damage(folder / "train.bin")
        line = error_line_of(run_python(trained, "train.py", "judge", *SHORT, "--data", "hurt", "--out", tmp_path))
        assert "data/hurt" in line and "python data/prepare.py hurt" in line
        return line

    assert "train.bin holds 0 bytes" in line_after(lambda path: path.write_bytes(b""))
    assert "train.bin holds 10001 bytes" in line_after(lambda path: path.write_bytes(b"\0" * 10001))
    assert "'train': 500" in line_after(lambda path: path.write_bytes(path.read_bytes()[:1000]))
    assert "beyond its vocabulary of 1024" in line_after(lambda path: np.full(625_100, 1024, np.uint16).tofile(path))
    assert "train.bin is missing" in line_after(lambda path: path.unlink())
    assert "no text is prepared" in line_after(lambda path: (folder / "meta.json").unlink())
    assert "damaged" in line_after(lambda path: (folder / "meta.json").write_text("[]"))
    meta = json.loads((trained / "data/pydocs/meta.json").read_text())
    assert "another version" in line_after(lambda path: (folder / "meta.json").write_text(json.dumps(meta | {"format": 1})))


def test_checkpoints_of_another_kind(trained, out):
    """A newer format, a network whose weights do not fit its config, another vocabulary: one line each."""
    checkpoint = torch.load(out / "fsdfm.pt", weights_only=True)

    def line_with(**changes):
        torch.save(checkpoint | changes, out / "fsdfm.pt")
        return error_line(trained, "sample.py", "--out", out)

    assert "newer version" in line_with(format=99)
    assert "does not fit together" in line_with(config=checkpoint["config"] | {"dim": 32})
    assert "does not fit together" in line_with(config=checkpoint["config"] | {"source": "mask"})
    assert "does not fit together" in line_with(config=checkpoint["config"] | {"depth": 3})
    assert "does not fit together" in line_with(config=None)


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


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_texts(trained, tmp_path, name, tokenizer):
    """Either one clear line, and nothing is written; or it is prepared, and the tokens are the text."""
    (tmp_path / "text").write_bytes(TEXTS[name])
    result = run_python(trained, "data/prepare.py", "odd", "--text", tmp_path / "text", "--tokenizer", tokenizer)
    assert "Traceback" not in result.stderr
    if name in ("empty", "one character", "a hundred", "invalid UTF-8", "cut in a character"):
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and ("too short" in result.stderr or "not UTF-8" in result.stderr)
        assert not (trained / "data/odd").exists()
        return
    assert result.returncode == 0, result.stderr
    read = "import sys; sys.argv = []\nfrom data.dataset import Dataset\nd = Dataset('odd')\nprint(ascii(''.join(d.tokenizer.decode(part[0].tolist()) for part in (d.train, d.val))))"
    assert eval(run(trained, "-c", read).stdout) == TEXTS[name].decode().replace("\r\n", "\n")
    shutil.rmtree(trained / "data/odd")


PROMPTS = ["", "word " * 300, "\x1b[2J\x07", "\u202eevil", "\U0001f600", "naïve", "\ud800", "\x01", "\n\n\n", "_" * 40]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts(trained, prompt):
    """Whatever is given, no control character reaches the terminal."""
    result = run_python(trained, "sample.py", "--steps", 1, "--prompt", prompt)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr
    assert (result.returncode == 2) == (prompt in ("word " * 300, "\ud800"))
    assert all(c in "\n\t" or c.isprintable() for c in result.stdout)


# under load, and at random


def test_four_at_once(trained, out):
    """Four commands read one checkpoint, and all finish; the file is not touched."""
    before = (out / "fsdfm.pt").read_bytes()
    commands = [Command(trained, "sample.py", "--steps", 8, "--num-samples", 4, "--seed", seed, "--out", out) for seed in (1, 1, 2, 3)]
    results = [command.finish() for command in commands]
    assert all(result.returncode == 0 for result in results), results
    assert results[0].stdout == results[1].stdout != results[2].stdout and (out / "fsdfm.pt").read_bytes() == before


def test_random_command_lines(trained):
    """The first 60 of the 500 that soak.py tries."""
    assert fuzz(trained, 60) == 60
