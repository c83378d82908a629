"""Faults by the hundred, at random: python tests/soak.py. Prints how many were survived, and stops at the first that was not.

kill -9 at random moments of training (20 times: every stage in turn), 50 single bits flipped in checkpoints, 50 MB of text on one line, and 500 random
command lines over all scripts, all from fixed seeds. Two to ten minutes on 2 cores. test_faults.py runs a few of each.
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
    """Trains, and kills -9 `kills` times, somewhere between one tenth of what is left and all of it; then lets it finish. Returns at how many iterations
    the killed runs stood. An AssertionError if one cannot go on, or a checkpoint cannot be read."""
    iterations, killed_at = int(flags[flags.index("--iterations") + 1]), []

    def done():
        """The last iteration in the log. (One of ten is written.)"""
        lines = (out / f"{stage}.csv").read_text().splitlines() if (out / f"{stage}.csv").exists() else []
        return max([int(line.split(",")[0]) for line in lines if line[:1].isdigit()], default=0)

    while len(killed_at) < kills:
        target = dice.randrange(done() if len(killed_at) % 2 else 0, iterations - 10)
        command = Command(project, "train.py", stage, *flags, "--out", out, "--resume")
        command.wait_for(lambda: done() >= target)
        time.sleep(dice.uniform(0, 0.1))
        command.send(signal.SIGKILL)
        result = command.finish()
        assert "Traceback" not in result.stderr, result.stderr
        if result.returncode == -signal.SIGKILL:
            killed_at.append(done())
        else:  # it was faster: the next round starts again
            assert result.returncode == 0, result.stderr
            for path in [*out.glob(f"{stage}*")]:
                path.unlink()
        for path in out.glob("*.pt"):
            torch.load(path, weights_only=True)  # never an unreadable one
    run(project, "train.py", stage, *flags, "--out", out, "--resume")
    return killed_at


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


def flip_bits(project, flips, dice):
    """Flips one bit of a newest checkpoint, `flips` times: the one before it must be used every time, and the line must say so."""
    path = project / "out/fsdfm.pt"
    content = path.read_bytes()
    for _ in range(flips):
        damaged, place = bytearray(content), dice.randrange(len(content))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        result = run(project, "sample.py", "--steps", 1)
        # a seal whose first words are spoilt is no seal; what stands before it is then whole
        assert "fsdfm.previous.pt" in result.stderr or len(content) - 64 <= place < len(content) - 32, (place, result.stderr)
    path.write_bytes(content)
    return flips


def one_long_line(project):
    """50 MB without a line end, with words and without."""
    for name, piece in (("words", "a line that never ends, "), ("letters", "abcdefgh")):
        (project / "long").write_text(piece * (50_000_000 // len(piece)))
        run(project, "data/prepare.py", name, "--text", project / "long")
    return 2


def main():
    survived = {}
    with tempfile.TemporaryDirectory() as folder:
        project, dice = copy_project(Path(folder, "project")), random.Random(1)
        run(project, "data/prepare.py", "pydocs")
        flags = [*TINY, "--iterations", "200", "--validate-every", "10"]
        for stage, kills in (("judge", 6), ("dfm", 7), ("fsdfm", 7)):
            run(project, "train.py", stage, *flags)
            out = Path(folder, stage)
            out.mkdir()
            if stage == "fsdfm":
                shutil.copy(project / "out/dfm.pt", out)
            killed_at = kill_and_resume(project, out, stage, flags, kills, dice)
            whole, hurt = ([row["loss"] for row in csv.DictReader((where / f"{stage}.csv").open())] for where in (project / "out", out))
            assert whole == hurt, stage
            survived[f"kill -9 of {stage}"] = kills
            print(f"{stage}: killed at iterations {killed_at}, and the same {len(whole)} losses", flush=True)
        survived["flipped bits"] = flip_bits(project, 50, dice)
        survived["lines of 50 MB"] = one_long_line(project)
        survived["random command lines"] = fuzz(project, 500)
    print(", ".join(f"{name}: {count}" for name, count in survived.items()) + f"; together {sum(survived.values())} faults survived")


if __name__ == "__main__":
    main()
