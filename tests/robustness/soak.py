"""Hundreds of random faults: python tests/robustness/soak.py. It prints how many were survived, and
stops at the first that was not.

    20 x kill -9 at random moments of training, every stage in turn
    50 x one bit flipped in a checkpoint
     2 x 50 MB of text on one line
   300 x one thing changed in a JSON file, in a checkpoint's header, or in the environment
   336 x a link, a pipe, a device, a folder, another user's file, ... in the place of a file, or a
         umask (kinds.py)
   500 x a random command line, over all scripts

Together 1,208, all from fixed seeds, in five to ten minutes on 2 cores. test_faults.py runs a few
of each.
"""

import copy
import csv
import hashlib
import io
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# `python tests/robustness/soak.py` puts its own folder on the path, and command.py is in tests/
TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import torch

from command import PYDOCS, TINY, Command, copy_project, run, run_python
from kinds import all_cases, make_pristine, try_kinds

SCRIPTS = ["train.py", "sample.py", "eval.py", "plot.py", "data/prepare.py"]
SCRIPTS += ["experiments/heldout.py", "experiments/ablate.py", "experiments/bench.py"]
VALUES = ["0", "1", "2", "3", "0.5", "-1", "nan", "inf", "-inf", "1e300", "999999999999999999999"]
VALUES += ["", " ", "x", "½", "../..", "/dev/null", "\x1b[2J", "--", "-", "1,2", "1/2"]
WORDS = ["judge", "dfm", "fsdfm", "tiny", "huge", "cpu", "cuda", "cuda:7", "bpe", "char", "gpt2"]
WORDS += ["mask", "uniform", "paper", "adamw", "pydocs", "mine", "shakespeare", "eval.py", "on"]
# what would rightly change a checkpoint, or take minutes
NEVER = {"--overwrite", "--help", "--preset", "--iterations", "--only"}
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}

# ------------------------------------------------------------------------------------------------
# kills


def last_logged(out, stage):
    """The last iteration in the log of a run, 0 if there is none. (One of ten is logged.)"""
    path = out / f"{stage}.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return max([int(line.split(",")[0]) for line in lines if line[:1].isdigit()], default=0)


def kill_and_resume(project, out, stage, flags, kills, dice):
    """Trains, and kills -9 `kills` times, at iterations anywhere from none to 10 before the last;
    then lets the run finish. Returns at which logged iterations it was killed.

    AssertionError if a killed run cannot go on, or leaves a checkpoint that cannot be read.
    """
    iterations = int(flags[flags.index("--iterations") + 1])
    killed_at = []
    while len(killed_at) < kills:
        first = last_logged(out, stage) if len(killed_at) % 2 else 0
        target = dice.randrange(first, iterations - 10)
        command = Command(project, "train.py", stage, *flags, "--out", out, "--resume")
        command.wait_for(lambda: last_logged(out, stage) >= target)
        time.sleep(dice.uniform(0, 0.1))
        command.send(signal.SIGKILL)
        result = command.finish()
        assert "Traceback" not in result.stderr, result.stderr
        if result.returncode == -signal.SIGKILL:
            killed_at.append(last_logged(out, stage))
        else:  # it was faster than the kill: the next round starts again
            assert result.returncode == 0, result.stderr
            for path in [*out.glob(f"{stage}*")]:
                path.unlink()
        for path in out.glob("*.pt"):
            torch.load(path, weights_only=True)  # never an unreadable one
    run(project, "train.py", stage, *flags, "--out", out, "--resume")
    return killed_at


def soak_kills(project, folder, stage, kills, dice):
    """Kills a run again and again: its losses must be those of an undisturbed one."""
    flags = [*TINY, "--iterations", "200", "--validate-every", "10"]
    run(project, "train.py", stage, *flags)
    out = folder / stage
    out.mkdir()
    if stage == "fsdfm":
        shutil.copy(project / "out/dfm.pt", out)
    killed_at = kill_and_resume(project, out, stage, flags, kills, dice)
    undisturbed, killed = logged_losses(project / "out", stage), logged_losses(out, stage)
    assert undisturbed == killed, stage
    same = f"the same {len(killed)} losses"
    print(f"{stage}: killed at iterations {killed_at}, and {same}", flush=True)
    return len(killed_at)


def logged_losses(out, stage):
    """[(iteration, loss)] of a run's log, as text."""
    with (out / f"{stage}.csv").open() as log:
        return [(row["iteration"], row["loss"]) for row in csv.DictReader(log)]


# ------------------------------------------------------------------------------------------------
# random command lines


def flags_of(project, script):
    """The flags that a script's --help names."""
    text = run(project, script, "--help").stdout
    return sorted(set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.M)))


def random_line(project, dice):
    """A script, and flags that its --help names, with values that may be anything."""
    script = dice.choice(SCRIPTS)
    flags = [flag for flag in flags_of(project, script) if flag not in NEVER]
    line = [script]
    if script == "train.py":
        line += [dice.choice(("judge", "dfm", "fsdfm", "x")), *TINY]
        line += ["--iterations", dice.choice(("2", "0", "-1"))]
    if script == "experiments/heldout.py":
        line.append(dice.choice(("likelihood", "infill", "longer", "x")))
    if script == "eval.py" or line[-1] in ("infill", "longer"):
        line += [*PYDOCS, "--steps", "1", "--num-samples", "2"]
    if script == "data/prepare.py":
        line += ["--overwrite"]
        line += [dice.choice(("mine", "", "..", "a/b", "shakespeare", "fineweb-edu"))]
    if script in ("experiments/bench.py", "experiments/ablate.py"):
        line += ["--only", dice.choice(("nothing", "", "0"))]  # the rest takes minutes
    for flag in dice.sample(flags, dice.randint(0, min(4, len(flags)))):
        line += [flag, *dice.choices(VALUES + WORDS, k=dice.choice((0, 1, 1, 1, 2)))]
    return line


def hashes_of_checkpoints(project):
    paths = (project / "out").glob("*.pt")
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}


def fuzz(project, lines):
    """Tries the first `lines` random command lines; returns how many.

    AssertionError names one that ended in a traceback, hung or changed a checkpoint.
    """
    dice = random.Random(2025)
    before = hashes_of_checkpoints(project)
    for _ in range(lines):
        line = random_line(project, dice)
        result = run_python(project, *line, seconds=60, **NO_NETWORK)
        assert result.returncode in (0, 2) and "Traceback" not in result.stderr, (line, result)
        if result.returncode:
            assert result.stderr.splitlines()[-1].startswith("error: "), (line, result)
        assert hashes_of_checkpoints(project) == before, line
    return lines


# ------------------------------------------------------------------------------------------------
# damaged files, and text on one line


def flip_bits(project, flips, dice):
    """Flips one bit of a newest checkpoint, `flips` times: the one before it must be used every
    time, and the line must say so."""
    path = project / "out/fsdfm.pt"
    content = path.read_bytes()
    for _ in range(flips):
        damaged, place = bytearray(content), dice.randrange(len(content))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        result = run(project, "sample.py", "--steps", 1)
        # a seal whose first words are damaged is no seal; what is before it is then whole
        no_seal = len(content) - 64 <= place < len(content) - 32
        assert "fsdfm.previous.pt" in result.stderr or no_seal, (place, result.stderr)
    path.write_bytes(content)
    return flips


# ------------------------------------------------------------------------------------------------
# mutations: files, and the environment, that are nearly right

READERS = {  # a file that the project reads, and a command that reads it
    "out/eval.json": ["plot.py"],
    "data/pydocs/meta.json": ["train.py", "judge", *TINY, "--out", "judge", "--overwrite",
                              "--iterations", "1"],
    "out/dfm.pt": ["sample.py", "--model", "dfm", "--steps", "1"],
    "out/fsdfm.pt": ["train.py", "fsdfm", *TINY, "--resume"],
}
HEADER = ("stage", "iteration", "seconds", "config", "settings", "tokenizer", "text", "passes",
          "format", "dfm", "ema", "optimizers")  # of a checkpoint, besides the weights
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "COLUMNS", "LINES", "TERM", "HOME", "TMPDIR",
               "TIKTOKEN_CACHE_DIR", "MPLCONFIGDIR", "PYTHONHASHSEED", "LANG", "LC_ALL")


def places(tree, path=()):
    """The paths of all that is in nested dicts and lists; of a long list, its first items."""
    items = tree.items() if isinstance(tree, dict) else []
    items = enumerate(tree[:8]) if isinstance(tree, list) else items
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(value, how, dice):
    """A value, retyped, negated, nested or truncated."""
    if how == "retype":
        return dice.choice(["8", "", None, [], {}, True, 1.5, -1, 10**12, [[]], {"a": 1}])
    if how == "negate":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return -value if number else not value
    if how == "nest":
        return dice.choice([[value], {"value": value}])
    return value[: len(value) // 2] if isinstance(value, (str, list)) else 0


def mutated(tree, dice):
    """(a copy of a nested dict in which one thing is another, what was done)."""
    tree = copy.deepcopy(tree)
    *path, last = dice.choice(list(places(tree)))
    parent = tree
    for key in path:
        parent = parent[key]
    how = dice.choice(("drop", "retype", "negate", "nest", "truncate"))
    if how == "drop":
        del parent[last]
    else:
        parent[last] = changed(parent[last], how, dice)
    return tree, (how, *path, last)


def mutate_file(path, content, dice):
    """Writes a mutation of a JSON file, or of a checkpoint's header, and returns what was done."""
    if path.suffix == ".json":
        tree, what = mutated(json.loads(content), dice)
        path.write_text(json.dumps(tree))
        return what
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    header = {name: checkpoint[name] for name in HEADER if name not in ("ema", "optimizers")}
    tree, what = mutated(header | {"ema": None, "optimizers": []}, dice)
    if what[1] not in ("ema", "optimizers"):
        for name in ("ema", "optimizers"):
            tree[name] = checkpoint[name]
    kept = {name: value for name, value in checkpoint.items() if name not in HEADER}
    with path.open("wb") as file:
        torch.save(kept | tree, file)  # without a seal, as another program would
    return what


def mutate_environment(dice):
    """A few variables that programs read, with values that may be anything."""
    return {name: dice.choice(VALUES) for name in dice.sample(ENVIRONMENT, dice.randint(1, 3))}


def must_survive(project, line, what, **environment):
    """AssertionError unless a command works, or ends in one line that says why not."""
    result = run_python(project, *line, seconds=60, **environment)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr, (what, line, result)
    if result.returncode:
        assert result.stderr.splitlines()[-1].startswith("error: "), (what, line, result)


def mutate(project, count, seed=7):
    """`count` mutations, in turn of each file of READERS and of the environment. Returns how
    many. AssertionError names one that ended in a traceback or hung."""
    dice, done = random.Random(seed), 0
    while done < count:
        for name, line in READERS.items():
            path = project / name
            content = path.read_bytes()
            earlier = path.with_name(f"{path.stem}.previous{path.suffix}")
            hidden = earlier.read_bytes() if earlier.exists() else None
            earlier.unlink(missing_ok=True)
            try:
                must_survive(project, line, mutate_file(path, content, dice))
            finally:
                path.write_bytes(content)
                if hidden:
                    earlier.write_bytes(hidden)
            done += 1
        environment = mutate_environment(dice)
        must_survive(project, ["sample.py", "--steps", "1"], environment, **environment)
        done += 1
    return done


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
        for stage, kills in (("judge", 6), ("dfm", 7), ("fsdfm", 7)):
            survived[f"kill -9 of {stage}"] = soak_kills(project, Path(folder), stage, kills, dice)
        survived["flipped bits"] = flip_bits(project, 50, dice)
        survived["lines of 50 MB"] = one_long_line(project)
        run(project, "eval.py", *PYDOCS, "--steps", 1, "--num-samples", 2)
        survived["mutations"] = mutate(project, 300)
        pristine = copy_project(Path(folder, "pristine"))
        make_pristine(pristine)
        tried, left_out = try_kinds(pristine, Path(folder, "tried"), all_cases())
        survived["kinds of files"] = tried
        survived["random command lines"] = fuzz(project, 500)
    counts = ", ".join(f"{name}: {count}" for name, count in survived.items())
    print(f"{counts}; together {sum(survived.values())} faults survived")
    if left_out:
        print(f"{left_out} kinds of files were not tried: they need root, without its rights")


if __name__ == "__main__":
    main()
