"""train.py as a user runs it: killed and resumed, on several processes, and what it refuses.

The runs are those of config/tiny.py, made shorter, each in a process of its own with one thread.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
STAGES = ("judge", "dfm", "fsdfm")


def run(*command, status=0):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=ENV, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == status, (command, done.stderr)
    return done


def refusal(*command):
    """The one line on stderr with which a command ends."""
    (line,) = run(*command, status=2).stderr.strip().splitlines()
    return line


def train(stage, out, *settings, status=0):
    return run("train.py", stage, "config/tiny.py", f"--out={out}", "--iterations=24",
               "--validate_every=8", *settings, status=status)


def same(a, b):
    """Whether two checkpoints are equal bit for bit, in all that a training goes on with."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def trained(path):
    checkpoint = torch.load(path, weights_only=True)
    return {k: checkpoint[k] for k in ("model", "ema", "optimizers", "iteration")}


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A folder with the three networks, each of 24 iterations."""
    folder = tmp_path_factory.mktemp("out")
    for stage in STAGES:
        train(stage, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_resumes_to_the_same_weights(stage, out, tmp_path):
    """kill -9 at any moment leaves a checkpoint, and going on gives what an undisturbed run gives,
    bit for bit: weights, EMA, optimizers, and the losses in the log."""
    if stage == "fsdfm":
        (tmp_path / "dfm.pt").symlink_to(out / "dfm.pt")
    command = [sys.executable, "train.py", stage, "config/tiny.py", f"--out={tmp_path}",
               "--iterations=24", "--validate_every=8", "--resume"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)
    while not (tmp_path / f"{stage}.pt").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert trained(tmp_path / f"{stage}.pt")["iteration"] in (8, 16)
    train(stage, tmp_path, "--resume")
    assert same(trained(out / f"{stage}.pt"), trained(tmp_path / f"{stage}.pt"))
    logs = []
    for folder in (out, tmp_path):
        rows = csv.DictReader((folder / f"{stage}.csv").read_text().splitlines())
        logs.append([row | {"seconds": 0} for row in rows])
    assert logs[0] == logs[1]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "train.py", "dfm", "config/tiny.py", f"--out={tmp_path}",
               "--iterations=100000"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)
    while not (tmp_path / "dfm.csv").exists() or len((tmp_path / "dfm.csv").read_text()) < 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume goes on" in printed
    assert torch.load(tmp_path / "dfm.pt", weights_only=True)["iteration"] >= 10


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_two_processes_train_as_one(stage, out, tmp_path):
    """Three iterations of two forward passes, on one process and on two: the same weights but for
    the order in which gradients are added. One pass an iteration gives others."""
    weights = []
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29511"]
    for name, launcher, passes in (("one", [], 2), ("two", torchrun, 2), ("other", [], 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dfm.pt").symlink_to(out / "dfm.pt")
        run(*launcher, "train.py", stage, "config/tiny.py", f"--out={folder}", "--overwrite",
            f"--accumulation={passes}", "--iterations=3", "--learning_rate=1e-2", "--warmup=1")
        weights.append(torch.load(folder / f"{stage}.pt", weights_only=True)["model"])
    one, two, other = (torch.cat([w.flatten() for w in network.values()]) for network in weights)
    assert (one - two).norm() < 0.05 * (one - other).norm()


def test_training_learns(out):
    """The losses of 24 iterations fall by a fifth and more, the learning rate over the last half.
    The EMA moves with the student."""
    for stage in ("judge", "dfm"):
        rows = list(csv.DictReader((out / f"{stage}.csv").read_text().splitlines()))
        assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
        rates = [float(row["learning_rate"]) / 6e-3 for row in rows]
        assert rates == pytest.approx([1, 1, 18 / 24, 10 / 24, 2 / 24])
    name, dfm, student = "embedding.weight", trained(out / "dfm.pt"), trained(out / "fsdfm.pt")
    before, ema, after = (weights[name] for weights in (dfm["model"], student["ema"],
                                                        student["model"]))
    assert 0 < (ema - after).norm() and 0 < (ema - before).norm()


def test_what_train_refuses(out, tmp_path):
    """Each of these is one line on stderr, status 2, and changes no file."""
    before = (out / "dfm.pt").read_bytes()
    (tmp_path / "misspelt.py").write_text("itertions = 3\n")
    cases = [
        (["dfm", f"--out={out}"], "--resume goes on"),
        (["dfm", "--itertions=3"], "did you mean iterations?"),
        (["dfm", tmp_path / "misspelt.py"], "did you mean iterations?"),
        (["dfm", "config/nope.py"], "there is no file config/nope.py"),
        (["dfm", "--seed=one"], "--seed takes a value like 1"),
        (["dfm", "--out"], "--out needs a value"),
        (["dfn"], "judge, dfm, fsdfm"),
        (["dfm", "--data=nope"], "python data/prepare.py nope` (a text"),
        (["dfm", "--device=cuda"], "no cuda"),
        (["fsdfm", f"--out={tmp_path}"], "python train.py dfm"),
        (["dfm", "--block_size=4096", f"--out={tmp_path}"], "block_size 4096"),
        (["dfm", f"--init_from={out}/judge.pt", f"--out={tmp_path}"], "no dfm can start"),
    ]
    for arguments, message in cases:
        assert message in refusal("train.py", *arguments)
    assert (out / "dfm.pt").read_bytes() == before


def test_a_student_needs_a_finished_dfm(out, tmp_path):
    checkpoint = torch.load(out / "dfm.pt", weights_only=True)
    torch.save(checkpoint | {"iteration": 3}, tmp_path / "dfm.pt")
    assert "is not finished" in train("fsdfm", tmp_path, status=2).stderr
    torch.save(checkpoint | {"settings": {"data": "other"}}, tmp_path / "dfm.pt")
    assert "was not trained on data" in train("dfm", tmp_path, "--resume", status=2).stderr


def test_a_finished_run_says_so_and_others_start_from_it(out, tmp_path):
    assert "is finished" in train("dfm", out, "--resume").stdout
    train("dfm", tmp_path, f"--init_from={out}/dfm.pt", "--learning_rate=0.0", "--block_size=48")
    assert same(*(trained(folder / "dfm.pt")["model"] for folder in (out, tmp_path)))
