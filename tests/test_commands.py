"""Checks the commands a user types: the whole path once on the embedded text, and one clear line
for every bad input.

The commands run as processes of their own (command.py), in a copy of the project, so nothing of the
user's is touched.
"""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data.dataset
from command import DIE_AT_THE_FIRST_CHECKPOINT, ON_A_FULL_DISK, PYDOCS, ROOT, TINY, copy_project
from command import error_line, run, run_python
from common.checkpoint import STUDENTS
from common.command import UserError
from common.device import autocast
from data.prepare import python_text
from data.tokenizer import Tokenizer, gpt2_encoding
from flow import kappa
from model import ModelConfig
from plot import label
from train import NETWORK, RECIPES, Config, loss_of, make_config

STAGES = ("judge", "dfm", "fsdfm", "dmd")
FEW_SAMPLES = [*PYDOCS, "--steps", 1, 4, 512, "--num-samples", 6, "--slow-samples", 2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project):
    """The whole path, at a size of seconds, as a user types it. What train.py prints is in
    STAGE.stdout."""
    run(project, "data/prepare.py", "pydocs")
    for stage in STAGES:
        result = run(project, "train.py", stage, *TINY)
        (project / f"{stage}.stdout").write_text(result.stdout)
    run(project, "eval.py", *FEW_SAMPLES)
    run(project, "plot.py")
    return project


def load(path):
    return torch.load(path, weights_only=True)


def log_of(path):
    """The rows of a run's log, dicts of str."""
    with path.open() as log:
        return list(csv.DictReader(log))


def report_rows(path):
    return json.loads(path.read_text())["rows"]


def token_counts(project, name, split):
    """How often each token occurs in a split of a prepared text, (V,)."""
    meta = json.loads((project / f"data/{name}/meta.json").read_text())
    tokens = np.fromfile(project / f"data/{name}/{split}.bin", np.uint16)
    return np.bincount(tokens, minlength=meta["vocab_size"])


def text_of(project):
    """All of pydocs, from its tokens."""
    folder = project / "data/pydocs"
    tokenizer = Tokenizer(json.loads((folder / "meta.json").read_text())["tokenizer"])
    parts = [np.fromfile(folder / f"{split}.bin", np.uint16) for split in ("train", "val")]
    return "".join(tokenizer.decode(part.tolist()) for part in parts)


# ------------------------------------------------------------------------------------------------
# text and training


def test_the_text(trained):
    folder = trained / "data/pydocs"
    meta = json.loads((folder / "meta.json").read_text())
    tokens = {s: np.fromfile(folder / f"{s}.bin", np.uint16) for s in ("train", "val")}
    assert {split: len(ids) for split, ids in tokens.items()} == meta["tokens"]
    assert max(ids.max() for ids in tokens.values()) < meta["vocab_size"] == 1024
    assert 1_000_000 < meta["characters"] < 4_000_000
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in meta["source"]
    text = text_of(trained)
    assert "yield" in text and "context manager" in text
    # another process made the same text
    assert meta["text_sha256"] == hashlib.sha256(python_text().encode()).hexdigest()


def unigram_entropy(project, name):
    """Nats a token of the best prediction that ignores all other tokens."""
    counts = token_counts(project, name, "train")
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log(p)).sum()


def test_the_networks(trained):
    for stage, iterations in (("judge", 60), ("dfm", 60), ("fsdfm", 30), ("dmd", 30)):
        checkpoint = load(trained / f"out/{stage}.pt")
        assert checkpoint["iteration"] == iterations and checkpoint["config"]["block_size"] == 32
        assert checkpoint["settings"] == asdict(make_config(stage, "tiny"))
        rows = log_of(trained / f"out/{stage}.csv")
        assert [int(row["iteration"]) for row in rows] == list(range(10, iterations + 1, 10))
        assert rows[-1]["validation_loss"]
        if stage == "judge":
            entropy = unigram_entropy(trained, "pydocs")
            assert float(rows[-1]["validation_loss"]) < entropy - 0.5


@pytest.mark.parametrize(
    "stage, validations", [("judge", 2), ("dfm", 2), ("fsdfm", 1), ("dmd", 1)]
)
def test_every_validation_prints_the_loss_and_a_text(trained, stage, validations):
    """A line for iteration 30, and one for 60, with the loss of the log and what the network
    writes by then."""
    printed = (trained / f"{stage}.stdout").read_text()
    lines = re.findall(r"^ +(\d+)  (\d+\.\d{3}) nats  (\S.*)$", printed, re.M)
    rows = [row for row in log_of(trained / f"out/{stage}.csv") if row["validation_loss"]]
    logged = [(row["iteration"], f"{float(row['validation_loss']):.3f}") for row in rows]
    assert [line[:2] for line in lines] == logged and len(lines) == validations
    assert [line[0] for line in lines] == ["30", "60"][:validations]
    texts = [line[2] for line in lines]
    assert all(10 < len(text) <= 140 for text in texts)
    assert len(set(texts)) == validations  # not the same network's


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_two_processes_train_as_one(trained, stage):
    """Two processes of torchrun see what one sees with twice the accumulation: the same losses,
    and the same weights."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    # one thread each: more of them add up in another order
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    losses, weights = [], []
    for out, command in (("out-one", ["train.py", "--accumulation", "2"]), ("out-two", torchrun)):
        (trained / out).mkdir(exist_ok=True)
        if stage == "fsdfm":
            shutil.copy(trained / "out/dfm.pt", trained / out)
        flags = [stage, *TINY, "--iterations", "20", "--out", out, "--overwrite"]
        command = [sys.executable, *command, *flags]
        options = {"cwd": trained, "env": environment, "capture_output": True, "text": True}
        result = subprocess.run(command, timeout=300, **options)
        assert result.returncode == 0, result.stderr
        losses.append([float(row["loss"]) for row in log_of(trained / out / f"{stage}.csv")])
        weights.append(load(trained / out / f"{stage}.pt")["model"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, two in zip(*(model.values() for model in weights), strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm()


def test_the_students_network_is_the_dfms(trained, tmp_path):
    """Whatever the preset says: the same shape, source and schedule, in the network and in the
    settings of the checkpoint. A run with the same flags can be resumed."""
    shape = ["--block-size", 16, "--n-layer", 1, "--source", "mask", "--exponent", 2]
    flags = [*TINY, "--iterations", 10, "--out", tmp_path]
    run(trained, "train.py", "dfm", *flags, *shape, "--given-share", 0.5)
    run(trained, "train.py", "fsdfm", *flags)
    dfm, fsdfm = (load(tmp_path / f"{stage}.pt") for stage in ("dfm", "fsdfm"))
    assert fsdfm["config"] == dfm["config"] | {"step_aware": True}
    for name in NETWORK:
        assert fsdfm["settings"][name] == dfm["settings"][name] == dfm["config"][name]
    assert "finished" in run(trained, "train.py", "fsdfm", *flags, "--resume").stdout


def test_what_distribution_matching_refuses(trained, tmp_path):
    """A DFM without noise in x_0, and several processes."""
    flags = [*TINY, "--iterations", 10, "--out", tmp_path]
    run(trained, "train.py", "dfm", *flags, "--source", "mask")
    assert "has the mask source" in error_line(trained, "train.py", "dmd", *flags)
    three = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    result = run_python(trained, "train.py", "dmd", *flags, **three)
    assert result.returncode == 2 and "run it without torchrun" in result.stderr


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_the_recipe_of_the_paper(trained, tmp_path, stage):
    """`--recipe paper` trains through, with AdamW alone; its checkpoint has the recipe's settings,
    and can be resumed and sampled."""
    flags = [stage, *TINY, "--recipe", "paper", "--out", tmp_path]
    if stage == "fsdfm":
        run(trained, "train.py", "dfm", *flags[1:])
    run(trained, "train.py", *flags)
    checkpoint = load(tmp_path / f"{stage}.pt")
    config, settings = checkpoint["config"], checkpoint["settings"]
    assert RECIPES["paper"].items() <= settings.items()
    assert settings == asdict(make_config(stage, "tiny", "paper"))
    assert checkpoint["iteration"] == settings["iterations"] and len(checkpoint["optimizers"]) == 1
    assert config["time_scale"] == 1 and config["step_aware"] == (stage == "fsdfm")
    assert all(math.isfinite(float(row["loss"])) for row in log_of(tmp_path / f"{stage}.csv"))
    assert "finished" in run(trained, "train.py", *flags, "--resume").stdout
    line = error_line(trained, "train.py", *flags, "--recipe", "ours", "--resume")
    assert "was begun with" in line and "not" in line
    command = ["sample.py", "--model", stage, "--grid-power", 1, "--out", tmp_path]
    assert run(trained, *command).stdout.strip()


# ------------------------------------------------------------------------------------------------
# learning


class ContextFree:
    """The best network that ignores all other tokens: it knows t, the token x_t itself, and how
    frequent each token of the text is.

        p(x_1 = y | x_t) is proportional to frequency(y) * P(x_t | x_1 = y)
    """

    def __init__(self, config, counts):
        self.config = config
        self.frequency = torch.from_numpy(counts / counts.sum()).float()  # (V,)

    def __call__(self, x_t, t):
        p = self.frequency.expand(*x_t.shape, -1)  # (B, L, V)
        if self.config.source == "uniform":
            V = self.config.vocab_size
            is_text = kappa(t, self.config.exponent)[:, None, None]  # (B, 1, 1)
            p = p * (is_text * F.one_hot(x_t, V) + (1 - is_text) / V)
            p = p / p.sum(-1, keepdim=True)
        return p.clamp(min=1e-30).log()


def context_free_loss(project, name, checkpoint, monkeypatch):
    """What train.py's validation would report for ContextFree: the same loss, with its weight
    clipped as in training, on the same batches with the same noise.

    The frequencies are those of the held-out text, so that no network without context has a lower
    expected loss there.
    """
    monkeypatch.setattr(data.dataset, "FOLDER", project / "data")
    dataset = data.dataset.Dataset(name)
    settings = Config(**checkpoint["settings"])
    counts = token_counts(project, name, "val")
    network = ContextFree(ModelConfig(**checkpoint["config"]), counts)
    torch.manual_seed(0)
    losses = []
    with autocast(torch.device("cpu")):
        for _ in range(4):
            x_1 = dataset.batch("val", settings.batch_size, settings.block_size)
            losses.append(loss_of("dfm", network, None, x_1, settings))
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(
    "source, tokens, flags",
    [
        # the default path, but with few byte pairs: 1024 would take minutes
        ("uniform", ["bpe", "--vocab-size", 300], ["--batch-size", 64, "--learning-rate", 1e-2]),
        ("mask", ["char"], []),
    ],
)
def test_the_dfm_learns_from_context(trained, tmp_path, monkeypatch, source, tokens, flags):
    """Within seconds, on the real text, the DFM's loss is below that of any network that ignores
    the other tokens."""
    (tmp_path / "text").write_text(text_of(trained))
    name = f"for-{source}"
    command = ["data/prepare.py", name, "--text", tmp_path / "text", "--tokenizer", *tokens]
    run(trained, *command)
    flags = [*flags, "--iterations", 400, "--validate-every", 400, "--source", source]
    run(trained, "train.py", "dfm", *TINY, *flags, "--data", name, "--out", tmp_path)
    loss = float(log_of(tmp_path / "dfm.csv")[-1]["validation_loss"])
    checkpoint = load(tmp_path / "dfm.pt")
    assert loss < context_free_loss(trained, name, checkpoint, monkeypatch) - 0.1


# ------------------------------------------------------------------------------------------------
# measuring


def test_the_report(trained):
    report = json.loads((trained / "out/eval.json").read_text())
    rows = report["rows"]
    assert [(row["model"], row["steps"], row["samples"]) for row in rows] == [
        (model, steps, samples)
        for model in ("dfm", "dmd", "fsdfm")
        for steps, samples in ((1, 6), (4, 6), (512, 2))
    ]
    assert 1 < report["real"]["perplexity"] < min(row["perplexity"] for row in rows)
    for row in rows:
        assert 0 < row["entropy"] <= 5 and 0 < row["distinct_4grams"] <= 1
        assert row["seconds_per_sample"] > 0
        assert row["update"] == ("renoise" if row["model"] == "dmd" else "cumulative")
    assert label("dmd", rows[3:6]) == "distribution matching (renoise)"
    assert label("dfm", rows[:3]) == "DFM"
    assert (trained / "out/curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_frontier(trained, tmp_path):
    """A lower temperature lowers entropy. The report keeps the rows of temperature 1, and the
    picture is drawn."""
    for stage in STAGES:
        shutil.copy(trained / f"out/{stage}.pt", tmp_path)
    flags = [*PYDOCS, "--steps", 2, 4, "--num-samples", 8, "--out", tmp_path]
    for temperatures in ([1], [0.5, 1]):
        run(trained, "eval.py", *flags, "--temperatures", *temperatures)
    rows = report_rows(tmp_path / "eval.json")
    entropy = {(row["model"], row["steps"], row["temperature"]): row["entropy"] for row in rows}
    assert len(rows) == len(entropy) == 12
    for model in ("dfm", "dmd", "fsdfm"):
        for steps in (2, 4):
            assert entropy[model, steps, 0.5] < entropy[model, steps, 1]
    run(trained, "plot.py", "--out", tmp_path)
    assert (tmp_path / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_likelihood(trained, tmp_path):
    """Of the text of the training, and of another."""
    printed = run(trained, "experiments/heldout.py", "likelihood", *PYDOCS).stdout
    rows = report_rows(trained / "out/likelihood-pydocs.json")
    assert [row["model"] for row in rows] == ["judge", "dfm", "fsdfm"]
    assert all(f"{row['nats']:.3f}" in printed for row in rows)
    assert 3 < rows[0]["nats"] < rows[1]["nats"]  # the judge learns more in as many iterations
    text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 200
    (tmp_path / "other.txt").write_text(text)
    flags = ["--text", tmp_path / "other.txt", "--tokens-of", "pydocs"]
    run(trained, "data/prepare.py", "other", *flags)
    run(trained, "experiments/heldout.py", "likelihood", "--data", "other")
    elsewhere = report_rows(trained / "out/likelihood-other.json")
    assert elsewhere[0]["nats"] > rows[0]["nats"]


def test_infilling(trained):
    flags = ["--steps", 2, "--num-samples", 16]
    run(trained, "experiments/heldout.py", "infill", *PYDOCS, *flags)
    rows = report_rows(trained / "out/infill-pydocs.json")
    assert [(row["given"], row["model"]) for row in rows] == [
        (given, model)
        for given in ("random half", "first half")
        for model in ("real", "dfm", "fsdfm")
    ]
    for row in rows:
        assert row["accuracy"] == 1 if row["model"] == "real" else row["accuracy"] < 0.5


def test_longer_texts(trained):
    command = ["experiments/heldout.py", "longer", *PYDOCS]
    run(trained, *command, "--steps", 2, "--num-samples", 4)
    rows = report_rows(trained / "out/longer-pydocs.json")
    assert [row["length"] for row in rows] == [32] * 3 + [64] * 3 + [128] * 3
    assert all(len(row["quarters"]) == 4 for row in rows)


def test_one_ablation(trained, tmp_path):
    folder = tmp_path / "ablation"
    command = ["experiments/ablate.py", *TINY, "--only", "Heun teacher"]
    command += ["--num-samples", 2, "--ablation", folder]
    first = run(trained, *command).stdout
    lines = (folder / "table.md").read_text().splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert names == ["DFM", "DFM, uniform grid", "DFM, library Euler", "Heun teacher"]
    settings = load(folder / "Heun teacher, seed 1/fsdfm.pt")["settings"]
    assert settings == asdict(make_config("fsdfm", "tiny", teacher="heun"))
    assert (folder / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    again = run(trained, *command).stdout  # nothing is trained or measured twice
    assert "finished" in again and again.splitlines()[-3:] == first.splitlines()[-3:]


def test_the_comparison_of_students(trained, tmp_path):
    """Only the compute-matched DFM is trained, as long as DFM and dmd together; the table has a
    line for every network and temperature."""
    folder = tmp_path / "pydocs, seed 1"
    folder.mkdir()
    for stage in STAGES:
        shutil.copy(trained / f"out/{stage}.pt", folder)
    command = ["experiments/beyond.py", *TINY, "--num-samples", 2, "--out", tmp_path]
    printed = run(trained, *command).stdout
    assert printed.count("is finished") == 4
    dfm, dmd, longer = (load(folder / f"{name}.pt") for name in ("dfm", "dmd", "longer/dfm"))
    per_iteration = dfm["seconds"] / dfm["iteration"]
    added = (longer["iteration"] - dfm["iteration"]) * per_iteration
    assert added == pytest.approx(dmd["seconds"], abs=per_iteration)
    lines = (tmp_path / "pydocs.md").read_text().splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    each = ["DFM", "compute-matched DFM", "FS-DFM", "distribution matching"]
    assert names == [name for name in each for _ in range(5)]
    assert (tmp_path / "pydocs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_is_measured_is_not_measured_again(trained):
    before = (trained / "out/eval.json").read_text()
    printed = run(trained, "eval.py", *FEW_SAMPLES).stdout
    assert (trained / "out/eval.json").read_text() == before
    assert "fsdfm" in printed and "real" in printed and "512 steps:" in printed
    # has been measured with more
    fewer = [*PYDOCS, "--models", "fsdfm", "--steps", 1, "--num-samples", 3]
    run(trained, "eval.py", *fewer)
    assert (trained / "out/eval.json").read_text() == before


# ------------------------------------------------------------------------------------------------
# sampling


def test_samples(trained):
    command = ["sample.py", "--steps", 3, "--num-samples", 2, "--seed"]
    first = run(trained, *command, 5).stdout
    assert first == run(trained, *command, 5).stdout
    assert first != run(trained, *command, 6).stdout
    prompt = "Return the number of\n  items"
    command = ["sample.py", "--prompt", prompt, "--model"]
    assert run(trained, *command, "dfm").stdout.startswith(prompt)
    judged = run(trained, *command, "judge", "--watch").stdout
    assert judged.splitlines()[-1] != prompt and judged.count("--- step") > 10
    watched = run(trained, "sample.py", "--steps", 4, "--watch").stdout
    assert watched.count("--- step") == 4
    assert "\033" not in watched  # no escape sequences where there is no terminal


def sample(project, *flags):
    return run(project, "sample.py", "--seed", 3, *flags).stdout


def test_step_sizes(trained):
    """Step sizes may be named one by one; --grid-power is the same as naming them."""
    sizes = run(trained, "sample.py", "--seed", 3, "--steps", "1/2", "0.25", "1/4")
    assert "3 steps" in sizes.stderr
    assert sizes.stdout == sample(trained, "--steps", "0.5", "1/4", "0.25")
    shrinking = sample(trained, "--steps", 2, "--grid-power", 2)  # the times 0, 3/4 and 1
    assert shrinking == sample(trained, "--steps", "3/4", "1/4")
    assert shrinking == sample(trained, "--steps", 2)  # the uniform source's default
    assert shrinking != sample(trained, "--steps", 2, "--grid-power", 1)


def test_other_ways_to_write(trained):
    """Lengths, blanks, JSON lines: what is given is kept, and as much is written as is wanted."""
    flags = ["--json", "--num-samples", 70, "--length", 100, "--prompt", "Return "]
    samples = [json.loads(line) for line in sample(trained, *flags).splitlines()]
    assert [one["number"] for one in samples] == list(range(70))
    texts = [one["text"] for one in samples]
    assert len(set(texts)) == 70
    assert all(text.startswith("Return ") and len(text) > 120 for text in texts)
    filled = sample(trained, "--infill", "Return the ___ of the _12_ list.")
    longer = run(trained, "sample.py", "--infill", "Return the _40_ list.").stderr
    assert "the model was trained on 32" in longer
    assert re.fullmatch(r"Return the .+ of the .+ list\.\n", filled, re.S)


def test_the_lines_of_python_in_the_readme():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 5
    assert run(ROOT, "-c", code).stdout.count("Mia had a") == 3


# ------------------------------------------------------------------------------------------------
# resuming

@pytest.mark.parametrize("stage", ["dfm", "fsdfm", "dmd"])
def test_a_run_cut_short_goes_on_to_the_same_weights(trained, tmp_path, stage):
    """Killed after its first checkpoint, at iteration 20, and resumed: as if nothing had
    happened."""
    out = tmp_path / "out"
    out.mkdir()
    if stage in STUDENTS:
        shutil.copy(trained / "out/dfm.pt", out)
    flags = [stage, *TINY, "--out", out, "--validate-every", 20]
    run(trained, "-c", DIE_AT_THE_FIRST_CHECKPOINT + "train.main()", *flags, status=9)
    assert load(out / f"{stage}.pt")["iteration"] == 20
    assert "exists" in error_line(trained, "train.py", *flags)
    line = error_line(trained, "train.py", *flags, "--batch-size", 8, "--resume")
    assert "batch_size = 16, not 8" in line
    assert "seed = 1, not 2" in error_line(trained, "train.py", *flags, "--seed", 2, "--resume")
    run(trained, "train.py", *flags, "--resume")
    resumed, undisturbed = (load(folder / f"{stage}.pt") for folder in (out, trained / "out"))
    parts = {"dfm": ["model"], "fsdfm": ["model", "ema"], "dmd": ["model", "ema", "auxiliary"]}
    for weights in parts[stage]:
        for name, value in undisturbed[weights].items():
            assert torch.equal(resumed[weights][name], value)
    rows = [log_of(folder / f"{stage}.csv") for folder in (out, trained / "out")]
    losses = [[(row["iteration"], row["loss"]) for row in log] for log in rows]
    assert losses[0] == losses[1]
    seconds = [float(row["seconds"]) for row in rows[0]]
    assert seconds == sorted(seconds)  # the clock goes on, too
    again = ["train.py", stage, *PYDOCS, "--resume", "--out", out]
    assert "finished" in run(trained, *again).stdout
    if stage in STUDENTS:
        (out / "dfm.pt").write_bytes(b"trained anew")
        assert "began as another" in error_line(trained, *again)


# ------------------------------------------------------------------------------------------------
# --help

SCRIPTS = ["data/prepare.py", "train.py", "sample.py", "eval.py", "plot.py"]
SCRIPTS += [f"experiments/{name}.py" for name in (
    "heldout", "ablate", "bench", "agreement", "beyond", "one_step"
)]

# prints what a script's parser knows of each argument, instead of parsing
PRINT_ARGUMENTS = """
import json
import runpy
import sys
import common.command
def print_arguments(parser):
    for action in parser._actions:
        name = (action.option_strings or [action.dest])[-1]
        choices = [str(choice) for choice in action.choices or []]
        print(json.dumps([name, action.help, action.default, choices], default=str))
    sys.exit()
common.command.Parser.parse_args = print_arguments
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def help_entries(project, script):
    """{flag, or name of a positional argument: its part of --help, on one line}."""
    result = run_python(project, script, "--help", COLUMNS="1000")  # no line is broken
    assert result.returncode == 0 and not result.stderr
    arguments = re.split(r"^(?:positional arguments|options):$", result.stdout, flags=re.M)[1:]
    entries = {}
    for entry in re.split(r"^  (?=\S)", "\n".join(arguments), flags=re.M)[1:]:
        names = entry.partition("  ")[0].partition("\n")[0]
        for name in re.findall(r"--?[a-z][a-z-]*", names) or [names]:
            entries[name] = " ".join(entry.split())
    return entries


def as_in_a_help_text(default):
    values = default if isinstance(default, list) else [default]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_argument_its_default_and_its_choices(project, script):
    """Every argument has a help text. If it has a default, the text says which; if it takes one of
    a few values, they are named."""
    entries = help_entries(project, script)
    lines = run(project, "-c", PRINT_ARGUMENTS, script).stdout.splitlines()
    assert len(lines) >= 2  # --help itself is one
    for name, text, default, choices in map(json.loads, lines):
        positional = "{" + ",".join(choices) + "}" if choices else name
        entry = entries[name if name.startswith("-") else positional]
        assert text and " ".join(text.split()) in entry
        assert all(choice in entry for choice in choices), f"choices are missing: {entry}"
        if default not in (None, "", False, "==SUPPRESS==", choices):
            assert f"(default: {as_in_a_help_text(default)})" in entry


def test_help_of_train_names_every_setting_and_its_default(project):
    entries = help_entries(project, "train.py")
    for item in fields(Config):
        flag = "--" + item.name.replace("_", "-")
        assert f"(dfm, cpu, ours: {item.default})" in entries[flag]


# ------------------------------------------------------------------------------------------------
# bad input


def test_missing_things_name_the_command_that_makes_them(project, tmp_path):
    for arguments, command in (
        (["train.py", "dfm", *TINY, "--data", "nothing"], "python data/prepare.py nothing"),
        (["sample.py", "--out", tmp_path], "python train.py fsdfm"),
        (["eval.py", "--out", tmp_path], "python train.py judge"),
        (["experiments/heldout.py", "infill", "--out", tmp_path], "python train.py judge"),
        (["plot.py", "--out", tmp_path], "python eval.py"),
        (["train.py"], "train.py needs a stage: judge, dfm, fsdfm, dmd"),
        (["data/prepare.py"], "prepare.py needs a name: stories, pydocs, "),
    ):
        assert command in error_line(project, *arguments)


def test_the_measures_of_networks_that_are_not_finished(trained, tmp_path):
    """A DFM is measured, and it is said; a judge that knows little yet is no measure."""
    for stage in ("judge", "dfm"):
        shutil.copy(trained / f"out/{stage}.pt", tmp_path)
    checkpoints = {stage: load(tmp_path / f"{stage}.pt") for stage in ("judge", "dfm")}
    command = ["eval.py", *PYDOCS, "--models", "dfm", "--steps", 1, "--num-samples", 2]
    command += ["--out", tmp_path]
    torch.save(checkpoints["dfm"] | {"iteration": 59}, tmp_path / "dfm.pt")
    assert "dfm.pt is not finished (59 of 60 iterations)" in run(trained, *command).stderr
    torch.save(checkpoints["judge"] | {"iteration": 59}, tmp_path / "judge.pt")
    assert "judge.pt is not finished (59 of 60 iterations)" in error_line(trained, *command)


def test_what_to_do_about_a_missing_network(trained, tmp_path):
    """The line that makes it where it is wanted, or the networks that come with the project."""
    line = error_line(trained, "sample.py", "--out", tmp_path / "mine")
    assert f"`python train.py fsdfm --data NAME --out {tmp_path}/mine`" in line
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    copy_project(tmp_path)
    (tmp_path / "out").mkdir()
    shutil.copy(trained / "out/judge.pt", tmp_path / "out")  # a training has begun
    assert "`python sample.py --out weights`" in error_line(tmp_path, "sample.py")
    run(tmp_path, "sample.py", "--out", "weights", "--steps", 1)


@pytest.mark.parametrize("stage", STUDENTS)
def test_a_student_needs_a_finished_dfm(trained, tmp_path, stage):
    """Not none, not one that is still training, and not a judge."""
    command = ["train.py", stage, *TINY, "--out", tmp_path]
    assert "python train.py dfm" in error_line(trained, *command)
    path = tmp_path / "dfm.pt"
    checkpoint = load(trained / "out/dfm.pt")
    torch.save(checkpoint | {"iteration": 59}, path)
    assert f"{path} is not finished" in error_line(trained, *command)
    shutil.copy(trained / "out/judge.pt", path)
    assert f"{path} is a judge, not a dfm" in error_line(trained, *command)
    command = ["train.py", "dfm", *TINY, "--out", tmp_path, "--resume"]
    assert f"{path} is a judge, not a dfm" in error_line(trained, *command)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train.py", "dfm", "--preset", "huge"], "huge"),
        (["train.py", "dfm", "--recipe", "theirs"], "theirs"),
        (["train.py", "gan"], "gan"),
        (["train.py", "dfm", "--batch-size", "0"],
         "--batch-size: 0 is not a whole number from 1 to 65536"),
        (["train.py", "dfm", "--resume", "--overwrite"], "not allowed with"),
        (["train.py", "dfm", "--exponent", "0.5"], "--exponent: 0.5 is not a number from 1 to 10"),
        (["train.py", "dfm", "--loss-weight-max", "0"], "0 is not a number from 0.1"),
        (["train.py", "dfm", "--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["train.py", "dfm", "--grid-power", "2"], "unrecognized arguments: --grid-power"),
        (["train.py", "dfm", "--seed", "99999999999999999999"],
         "--seed: 99999999999999999999 is not"),
        (["train.py", "dfm", "--learning-rate", "nan"], "--learning-rate: nan is not a number"),
        (["train.py", "judge", "--dropout", "1.5"], "1.5 is not a number from 0 to 0.99"),
        (["train.py", "fsdfm", "--dim", "32", "--out", "fresh"],
         "the student's network is the DFM's: leave out --dim"),
        (["train.py", "fsdfm", "--data-steps", "2000"], "2000 is not a whole number from 0 to"),
        (["train.py", "dfm", "--device", "abacus"], "abacus"),
        (["train.py", "dfm", "--device", "cuda"], "cuda"),
        (["train.py", "dfm", "--dim", "50", "--n-head", "4", "--out", "fresh"], "--dim"),
        (["sample.py", "--seed", "-1"], "-1 is not a whole number"),
        (["sample.py", "--model", "judge"], "--prompt"),
        (["sample.py", "--steps", "0"], "--steps must be a number from 1 to 65536, not 0"),
        (["sample.py", "--steps", "many"], "many"),
        (["sample.py", "--steps", "0.5", "0.6"], "sum to 1"),
        (["sample.py", "--steps", "1/0"], "sum to 1"),
        (["sample.py", "--grid-power", "0.5"], "--grid-power: 0.5 is not a number from 1 to 10"),
        (["sample.py", "--update", "newton"], "invalid choice: 'newton'"),
        (["sample.py", "--temperature", "0"], "0 is not a number from 0.001 to 1000"),
        (["sample.py", "--temperature", "nan"], "nan is not a number"),
        (["sample.py", "--top-p", "0"], "--top-p"),
        (["sample.py", "--num-samples", "0"], "0 is not a whole number from 1"),
        (["sample.py", "--prompt", "word " * 100], "the text is to have 32"),
        (["sample.py", "--prompt", "a", "--infill", "b___"], "not allowed with"),
        (["sample.py", "--infill", "no blank"], "has no blank"),
        (["sample.py", "--infill", "a ___", "--model", "judge"], "leave out --model judge"),
        (["sample.py", "--length", "513"], "writes up to 512"),
        (["sample.py", "--watch", "--json"], "not allowed with"),
        (["eval.py", "--steps", "4", "0"], "--steps: 0 is not a whole number from 1"),
        (["eval.py", "--length", "4"], "4 is not a whole number from 5"),
        (["eval.py", "--temperatures", "1", "0"],
         "--temperatures: 0 is not a number from 0.001 to 1000"),
        (["eval.py", "--dfm", "absent.pt"], "there is no absent.pt"),
        (["eval.py", "--dfm", "out/judge.pt"], "out/judge.pt is a judge"),
        (["experiments/heldout.py", "perplexity"], "invalid choice: 'perplexity'"),
        (["experiments/heldout.py", "likelihood", "--steps", "4"], "--steps has no meaning"),
        (["experiments/heldout.py", "likelihood", "--models", "dmd"], "dmd has no likelihood"),
        (["experiments/heldout.py", "infill", "--temperatures", "0.5"],
         "unrecognized arguments: --temperatures"),
        (["experiments/ablate.py", "--out", "nowhere"], "speedrun.sh"),
        (["data/prepare.py", "mine", "--text", "eval.py", "--tokens-of", "nothing"],
         "no text is prepared in data/nothing"),
    ],
)
def test_bad_flags(trained, arguments, words):
    assert words in error_line(trained, *arguments)


def test_compiling_where_there_is_no_compiler(trained, tmp_path):
    environment = {"PATH": "", "CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | environment | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    options = {"cwd": trained, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "sample.py", "--compile"], **options)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: torch.compile failed, try --no-compile: ")


def test_bad_texts(project, tmp_path):
    (tmp_path / "latin").write_bytes("déjà vu ".encode("latin-1") * 500)
    (tmp_path / "short").write_text("too short")
    (tmp_path / "long").write_text("long enough " * 200)
    long = ["--text", tmp_path / "long"]
    for arguments, words in (
        (["mine", "--text", tmp_path / "latin"], "is not UTF-8"),
        (["mine", "--text", tmp_path / "short"], "too short"),
        (["mine", "--text", tmp_path / "absent"], "cannot read"),
        (["mine"], "--text"),
        (["mine", *long, "--validation", "0.9999999"], "0 characters to train on"),
        (["dataset.py", *long], "data/dataset.py is not a folder"),
    ):
        assert words in error_line(project, "data/prepare.py", *arguments)
    assert not (project / "data/mine").exists()


def test_characters(trained, tmp_path):
    """A char tokenizer: rare characters are replaced, and how many is printed. Refused are a
    prompt with an unknown one, a text too short for one block, and a judge of other tokens."""
    (tmp_path / "abc.txt").write_text("the cat sat on the mat. " * 60 + "\u00e9")
    flags = ["--text", tmp_path / "abc.txt", "--tokenizer", "char"]
    assert "1 rare" in run(trained, "data/prepare.py", "cats", *flags).stdout
    out = ["--data", "cats", "--out", tmp_path / "out"]
    line = error_line(trained, "train.py", "dfm", *TINY, "--block-size", 500, *out)
    assert "too short" in line
    for stage in ("dfm", "fsdfm"):
        run(trained, "train.py", stage, *TINY, "--iterations", 4, *out)
    command = ["sample.py", "--prompt", "the X", "--out", tmp_path / "out"]
    assert "'X'" in error_line(trained, *command)
    shutil.copy(trained / "out/judge.pt", tmp_path / "out/judge.pt")
    assert "other tokens" in error_line(trained, "eval.py", *out)
    command = ["train.py", "fsdfm", *PYDOCS, "--resume", "--out", tmp_path / "out"]
    assert "other tokens" in error_line(trained, *command)


# ------------------------------------------------------------------------------------------------
# files


def test_a_damaged_checkpoint(trained, tmp_path):
    (tmp_path / "fsdfm.pt").write_bytes((trained / "out/fsdfm.pt").read_bytes()[:5000])
    assert "not a readable checkpoint" in error_line(trained, "sample.py", "--out", tmp_path)


def published_sizes(rows, d=8, c=4):
    """{name: shape} of a published step-aware network of width d and conditioning width c, with
    one block and `rows` tokens."""
    sizes = {"vocab_embed.weight": (rows, d)}
    sizes |= {"time_condition_fuser.weight": (2 * c, 2 * c), "time_condition_fuser.bias": (2 * c,)}
    for name in ("time_embedding", "dt_embedding"):
        sizes |= {f"{name}.mlp.0.weight": (c, 256), f"{name}.mlp.0.bias": (c,)}
        sizes |= {f"{name}.mlp.2.weight": (c, c), f"{name}.mlp.2.bias": (c,)}
    block = {f"{name}.weight": (d, d) for name in ("qw", "kw", "vw", "attn_out")}
    block |= {"norm1.weight": (d,), "norm2.weight": (d,)}
    block |= {"mlp.0.weight": (4 * d, d), "mlp.0.bias": (4 * d,)}
    block |= {"mlp.2.weight": (d, 4 * d), "mlp.2.bias": (d,)}
    block |= {"adaLN_modulation.weight": (6 * d, c), "adaLN_modulation.bias": (6 * d,)}
    block |= {"condition_fuser.weight": (c, 2 * c), "condition_fuser.bias": (c,)}
    head = {"norm_final.weight": (d,), "linear.weight": (rows, d), "linear.bias": (rows,)}
    head |= {"adaLN_modulation.weight": (2 * d, c), "adaLN_modulation.bias": (2 * d,)}
    head |= {"condition_fuser.weight": (c, 2 * c), "condition_fuser.bias": (c,)}
    sizes |= {f"blocks.0.{name}": size for name, size in block.items()}
    return sizes | {f"output_layer.{name}": size for name, size in head.items()}


def write_published(path, rows):
    """A file of the published format: random weights, `rows` tokens."""
    sizes = published_sizes(rows)
    student = {f"module.{name}": torch.randn(size) for name, size in sizes.items()}
    new = ("fuser", "dt_embedding")  # what the student has and its teacher has not
    teacher = {name: w for name, w in student.items() if not any(part in name for part in new)}
    torch.save({"student_ema_model": student, "teacher_model": teacher, "step": 1}, path)


def test_a_published_checkpoint(project, tmp_path):
    """From the published format to text. The number of heads, which this file does not store,
    comes from a flag."""
    try:
        gpt2_encoding()
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    path, heads = tmp_path / "published.pth", ["--n-head", 2]
    command = ["sample.py", "--checkpoint", path, "--steps", 2]
    for rows in (50257, 50258):  # uniform and mask source
        write_published(path, rows)
        written = run(project, *command, *heads, "--prompt", "Once upon").stdout
        assert len(written) > 1000 and written.startswith("Once upon")
        assert "give --n-head" in error_line(project, *command)
        assert "3 heads do not fit" in error_line(project, *command, "--n-head", 3)
        assert len(run(project, *command, *heads, "--model", "dfm").stdout) > 1000
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a text of some length. " * 100)
    run(project, "data/prepare.py", "story", "--text", text, "--tokenizer", "gpt2")
    data_and_out = ["--data", "story", "--out", tmp_path]
    run(project, "train.py", "judge", *TINY, "--iterations", 2, *data_and_out)
    networks = ["--dfm", path, "--fsdfm", path, *heads]
    flags = ["--length", 8, "--steps", 1, 2, "--num-samples", 3]
    printed = run(project, "eval.py", *networks, *data_and_out, *flags).stdout
    assert printed.count("fsdfm ") >= 2 and len(report_rows(tmp_path / "eval.json")) == 4
    write_published(path, 300)
    assert "300 tokens" in error_line(project, *command, *heads)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a readable checkpoint" in error_line(project, *command, *heads)


def test_a_checkpoint_is_data(project, tmp_path):
    """A pickle that would run code when loaded is refused, and runs nothing."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    line = error_line(project, "sample.py", "--checkpoint", tmp_path / "trap.pt")
    assert "not a readable checkpoint" in line
    assert not (tmp_path / "sprung").exists()
    torch.save({"something": 1}, tmp_path / "else.pt")
    line = error_line(project, "sample.py", "--checkpoint", tmp_path / "else.pt")
    assert "no checkpoint of this project" in line


def test_a_full_disk_loses_nothing(trained, tmp_path):
    """/dev/full refuses every byte: what was there stays, and nothing half-written is left."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "eval.json").write_bytes((trained / "out/eval.json").read_bytes())
    (tmp_path / "curve.png").write_bytes(b"the old one")
    line = error_line(trained, "-c", ON_A_FULL_DISK, "plot.py", "--out", tmp_path)
    assert "cannot write" in line and "No space left" in line
    assert (tmp_path / "curve.png").read_bytes() == b"the old one"
    assert not (tmp_path / "curve.png.tmp").is_symlink()
