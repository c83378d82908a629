"""Faults by the hundred, at random: python tests/soak.py. Prints how many were survived, and stops at the first that was not.

kill -9 at random moments of training (20 times: every stage in turn), and 500 random command lines over all scripts, from a fixed seed. About
a quarter of an hour on 2 cores. test_faults.py runs a few of both.
"""

import csv
import hashlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(folder) for folder in (Path(__file__).parent.parent, Path(__file__).parent)]

import torch

from command import TINY, Command, copy_project, run, run_python

SCRIPTS = ("train.py", "sample.py", "eval.py", "plot.py", "ablate.py", "bench.py", "data/prepare.py")
VALUES = ["0", "1", "2", "3", "0.5", "-1", "nan", "inf", "-inf", "1e300", "999999999999999999999", "", " ", "x", "½", "../..", "/dev/null", "\x1b[2J", "--", "-", "1,2", "1/2"]
WORDS = ["judge", "dfm", "fsdfm", "tiny", "huge", "cpu", "cuda", "cuda:7", "bpe", "char", "gpt2", "mask", "uniform", "pydocs", "mine", "shakespeare", "eval.py", "on", "flat"]
NEVER = {"--overwrite", "--help", "--preset", "--iterations", "--only"}  # what would rightly change a checkpoint or take minutes


def kill_and_resume(project, out, stage, flags, kills, dice):
    """Starts a training `kills` times and kills it at a random moment, then lets it finish. An AssertionError if it cannot go on."""
    began = time.monotonic()
    longest = 3.0  # seconds; then the time that a whole run took
    for _ in range(kills):
        command = Command(project, "train.py", stage, *flags, "--out", out, "--resume")
        time.sleep(dice.uniform(0, longest))
        try:
            command.send(signal.SIGKILL)
        except ProcessLookupError:  # it was faster
            pass
        result = command.finish()
        assert result.returncode in (0, -signal.SIGKILL) and "Traceback" not in result.stderr, result.stderr
        if result.returncode == 0:
            longest = (time.monotonic() - began) / 2
        for path in out.glob("*.pt"):
            torch.load(path, weights_only=True)  # never an unreadable one
    run(project, "train.py", stage, *flags, "--out", out, "--resume")


def random_line(project, dice):
    """A script, and flags that its --help names, with values that may be anything."""
    script = dice.choice(SCRIPTS)
    flags = sorted(set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", run(project, script, "--help").stdout, re.M)) - NEVER)
    line = [script]
    if script == "train.py":
        line += [dice.choice(("judge", "dfm", "fsdfm", "x")), *TINY, "--iterations", dice.choice(("2", "0", "-1"))]
    if script == "eval.py":
        line += ["--steps", "1", "--num-samples", "2"]
    if script == "data/prepare.py":
        line.append(dice.choice(("mine", "", "..", "a/b", "shakespeare", "fineweb-edu")))
    if script in ("bench.py", "ablate.py"):
        line += ["--only", dice.choice(("nothing", "", "0"))]  # the rest takes minutes
    for flag in dice.sample(flags, dice.randint(0, min(4, len(flags)))):
        line += [flag, *dice.choices(VALUES + WORDS, k=dice.choice((0, 1, 1, 1, 2)))]
    return line


def fuzz(project, lines):
    """Tries the first `lines` random command lines; returns how many. An AssertionError names one that showed a traceback, hung or changed a checkpoint."""
    dice = random.Random(2025)

    def checkpoints():
        return {path: hashlib.sha256(path.read_bytes()).digest() for path in (project / "out").glob("*.pt")}

    before, offline = checkpoints(), {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for count in range(lines):
        line = random_line(project, dice)
        result = run_python(project, *line, seconds=60, **offline)
        assert result.returncode in (0, 2) and "Traceback" not in result.stderr, (line, result)
        assert result.returncode == 0 or result.stderr.splitlines()[-1].startswith("error: "), (line, result)
        assert checkpoints() == before, line
    return lines


def main():
    survived = {}
    with tempfile.TemporaryDirectory() as folder:
        project, dice = copy_project(Path(folder, "project")), random.Random(1)
        run(project, "data/prepare.py", "pydocs")
        flags = [*TINY, "--iterations", "60", "--validate-every", "5"]
        for stage, kills in (("judge", 6), ("dfm", 7), ("fsdfm", 7)):
            run(project, "train.py", stage, *flags)
            out = Path(folder, stage)
            out.mkdir()
            if stage == "fsdfm":
                shutil.copy(project / "out/dfm.pt", out)
            kill_and_resume(project, out, stage, flags, kills, dice)
            whole, hurt = ([row["loss"] for row in csv.DictReader((where / f"{stage}.csv").open())] for where in (project / "out", out))
            assert whole == hurt, stage
            survived[f"kill -9 of {stage}"] = kills
            print(f"{stage}: {kills} kills survived, the same {len(whole)} losses", flush=True)
        survived["random command lines"] = fuzz(project, 500)
    print(", ".join(f"{name}: {count}" for name, count in survived.items()) + f"; together {sum(survived.values())} faults survived")


if __name__ == "__main__":
    main()
