"""Proves the commands a user types: the whole path once on the embedded text, and one clear line for every bad input.

The commands run as processes of their own (command.py), in a copy of the project, so nothing of the user's is touched.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint import UserError
from command import ROOT, TINY, copy_project, error_line, run
from data.prepare import python_text
from data.tokenizer import Tokenizer, gpt2_encoding

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project):
    """The whole path, at a size of seconds, as a user types it."""
    run(project, "data/prepare.py", "pydocs")
    for stage in ("judge", "dfm", "fsdfm"):
        run(project, "train.py", stage, *TINY)
    run(project, "eval.py", "--steps", 1, 4, 512, "--num-samples", 6, "--slow-samples", 2)
    run(project, "plot.py")
    return project


# the whole path


def test_the_text(trained):
    meta = json.loads((trained / "data/pydocs/meta.json").read_text())
    tokens = {split: np.fromfile(trained / f"data/pydocs/{split}.bin", np.uint16) for split in ("train", "val")}
    assert {split: len(ids) for split, ids in tokens.items()} == meta["tokens"]
    assert max(ids.max() for ids in tokens.values()) < meta["vocab_size"] == 1024
    assert 1_000_000 < meta["characters"] < 4_000_000
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in meta["source"]
    text = text_of(trained)
    assert "yield" in text and "context manager" in text
    assert meta["text_sha256"] == hashlib.sha256(python_text().encode()).hexdigest()  # another process made the same text


def text_of(project):
    """All of pydocs, from its tokens."""
    tokenizer = Tokenizer(json.loads((project / "data/pydocs/meta.json").read_text())["tokenizer"])
    return "".join(tokenizer.decode(np.fromfile(project / f"data/pydocs/{split}.bin", np.uint16).tolist()) for split in ("train", "val"))


def test_the_networks(trained):
    for stage, iterations in (("judge", 60), ("dfm", 60), ("fsdfm", 30)):
        checkpoint = torch.load(trained / f"out/{stage}.pt", weights_only=True)
        assert checkpoint["iteration"] == iterations and checkpoint["config"]["block_size"] == 32
        rows = list(csv.DictReader((trained / f"out/{stage}.csv").open()))
        assert [int(row["iteration"]) for row in rows] == list(range(10, iterations + 1, 10))
        assert rows[-1]["validation_loss"]
        if stage == "judge":
            assert float(rows[-1]["validation_loss"]) < unigram_entropy(trained / "data/pydocs") - 0.5


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_two_processes_train_as_one(trained, stage):
    """Two processes of torchrun see what one sees with twice the accumulation: the same losses, and the same weights."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # one thread each: more of them add up in another order
    losses, weights = [], []
    for out, command in (("out-one", [sys.executable, "train.py", "--accumulation", "2"]), ("out-two", [*torchrun, "train.py"])):
        (trained / out).mkdir(exist_ok=True)
        if stage == "fsdfm":
            shutil.copy(trained / "out/dfm.pt", trained / out)
        flags = [stage, *map(str, TINY), "--iterations", "20", "--out", out, "--overwrite"]
        result = subprocess.run([*command, *flags], cwd=trained, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        losses.append([float(row["loss"]) for row in csv.DictReader((trained / out / f"{stage}.csv").open())])
        weights.append(torch.load(trained / out / f"{stage}.pt", weights_only=True)["model"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all((one - two).norm() <= 1e-5 * one.norm() for one, two in zip(*(model.values() for model in weights), strict=True))


def unigram_entropy(folder):
    """Nats a token of the best guess that takes no notice of its neighbours."""
    counts = np.bincount(np.fromfile(folder / "train.bin", np.uint16))
    p = counts[counts > 0] / counts.sum()
    return -(p * np.log(p)).sum()


def test_the_diffusion_model_learns_from_neighbours(trained, tmp_path):
    """Within seconds, on the characters of the real text, its bound on the likelihood is below the unigram entropy."""
    (tmp_path / "text").write_text(text_of(trained))
    run(trained, "data/prepare.py", "letters", "--text", tmp_path / "text", "--tokenizer", "char")
    run(trained, "train.py", "dfm", *TINY, "--data", "letters", "--source", "mask", "--iterations", 400, "--out", "out-letters")
    last = list(csv.DictReader((trained / "out-letters/dfm.csv").open()))[-1]
    assert float(last["validation_loss"]) < unigram_entropy(trained / "data/letters") - 0.1


def test_the_report(trained):
    report = json.loads((trained / "out/eval.json").read_text())
    assert [(row["model"], row["steps"], row["samples"]) for row in report["rows"]] == [
        (model, steps, samples) for model in ("dfm", "fsdfm") for steps, samples in ((1, 6), (4, 6), (512, 2))
    ]
    perplexity = {(row["model"], row["steps"]): row["perplexity"] for row in report["rows"]}
    assert 1 < report["real"]["perplexity"] < min(perplexity.values())
    assert all(0 < row["entropy"] <= 5 and 0 < row["distinct_4grams"] <= 1 and row["seconds_per_sample"] > 0 for row in report["rows"])
    assert (trained / "out/curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_frontier(trained, tmp_path):
    """A lower temperature lowers entropy; the report keeps the rows of temperature 1, and the picture is drawn."""
    for name in ("judge.pt", "dfm.pt", "fsdfm.pt"):
        shutil.copy(trained / "out" / name, tmp_path)
    for temperatures in ([1], [0.5, 1]):
        run(trained, "eval.py", "--steps", 2, 4, "--num-samples", 8, "--out", tmp_path, "--temperatures", *temperatures)
    rows = {(row["model"], row["steps"], row["temperature"]): row for row in json.loads((tmp_path / "eval.json").read_text())["rows"]}
    assert len(rows) == 8
    assert all(rows[model, n, 0.5]["entropy"] < rows[model, n, 1]["entropy"] for model in ("dfm", "fsdfm") for n in (2, 4))
    run(trained, "plot.py", "--out", tmp_path)
    assert (tmp_path / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_likelihood_infilling_and_length(trained, tmp_path):
    """The parts that stand beside the curve, on the text of the training and on another."""
    shown = run(trained, "eval.py", "--likelihood").stdout
    rows = json.loads((trained / "out/likelihood-pydocs.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["judge", "dfm", "fsdfm"] and f"{rows[1]['nats']:.3f}" in shown
    assert 3 < rows[0]["nats"] < rows[1]["nats"]  # the judge has learned more in as many iterations
    (tmp_path / "other.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 200)
    run(trained, "data/prepare.py", "other", "--text", tmp_path / "other.txt", "--tokens-of", "pydocs")
    run(trained, "eval.py", "--likelihood", "--data", "other")
    elsewhere = json.loads((trained / "out/likelihood-other.json").read_text())["rows"]
    assert elsewhere[0]["nats"] > rows[0]["nats"]
    run(trained, "eval.py", "--infill", "--steps", 2, "--num-samples", 16)
    rows = json.loads((trained / "out/infill-pydocs.json").read_text())["rows"]
    assert [(row["kept"], row["model"]) for row in rows] == [(kept, model) for kept in ("random half", "first half") for model in ("real", "dfm", "fsdfm")]
    assert all(row["accuracy"] == 1 if row["model"] == "real" else row["accuracy"] < 0.5 for row in rows)
    run(trained, "eval.py", "--longer", "--steps", 2, "--num-samples", 4)
    rows = json.loads((trained / "out/longer-pydocs.json").read_text())["rows"]
    assert [row["length"] for row in rows] == [32] * 3 + [64] * 3 + [128] * 3 and all(len(row["quarters"]) == 4 for row in rows)


def test_one_ablation(trained, tmp_path):
    command = ["ablate.py", *TINY, "--only", "Heun's teacher", "--num-samples", 2, "--ablation", tmp_path / "ablation"]
    first = run(trained, *command).stdout
    lines = (tmp_path / "ablation/table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| DFM", "| DFM, uniform steps", "| DFM, Euler", "| Heun's teacher"]
    assert torch.load(tmp_path / "ablation/Heun's teacher, seed 1/fsdfm.pt", weights_only=True)["settings"]["teacher"] == "heun"
    assert (tmp_path / "ablation/picture.png").exists()
    again = run(trained, *command).stdout  # nothing is trained or measured twice
    assert "finished" in again and again.splitlines()[-3:] == first.splitlines()[-3:]


def test_what_is_measured_is_not_measured_again(trained):
    before = (trained / "out/eval.json").read_text()
    shown = run(trained, "eval.py", "--steps", 1, 4, 512, "--num-samples", 6, "--slow-samples", 2).stdout
    assert (trained / "out/eval.json").read_text() == before
    assert "fsdfm" in shown and "real" in shown and "512 steps:" in shown
    run(trained, "eval.py", "--models", "fsdfm", "--steps", 1, "--num-samples", 3)  # has been measured with more
    assert (trained / "out/eval.json").read_text() == before


def test_samples(trained):
    first = run(trained, "sample.py", "--steps", 3, "--num-samples", 2, "--seed", 5).stdout
    assert first == run(trained, "sample.py", "--steps", 3, "--num-samples", 2, "--seed", 5).stdout
    assert first != run(trained, "sample.py", "--steps", 3, "--num-samples", 2, "--seed", 6).stdout
    prompt = "Return the number of\n  items"
    assert run(trained, "sample.py", "--model", "dfm", "--prompt", prompt).stdout.startswith(prompt)
    judged = run(trained, "sample.py", "--model", "judge", "--prompt", prompt, "--watch").stdout
    assert judged.splitlines()[-1] != prompt and judged.count("--- step") > 10
    watched = run(trained, "sample.py", "--steps", 4, "--watch").stdout
    assert watched.count("--- step") == 4 and "\033" not in watched  # plain where it is no terminal


def test_other_ways_to_write(trained):
    """Step sizes, lengths, blanks, JSON lines: what is given is kept, what is asked for is done."""
    sizes = run(trained, "sample.py", "--steps", "1/2", "0.25", "1/4", "--seed", 3)
    assert "3 steps" in sizes.stderr and sizes.stdout == run(trained, "sample.py", "--steps", "0.5", "1/4", "0.25", "--seed", 3).stdout
    easing = run(trained, "sample.py", "--steps", 2, "--easing", 2, "--seed", 3).stdout  # between the times 0, 3/4 and 1
    assert easing == run(trained, "sample.py", "--steps", "3/4", "1/4", "--seed", 3).stdout
    assert easing != run(trained, "sample.py", "--steps", 2, "--easing", 1, "--seed", 3).stdout
    lines = run(trained, "sample.py", "--json", "--num-samples", 70, "--length", 100, "--prompt", "Return ").stdout.splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["number"] for sample in samples] == list(range(70)) and len({sample["text"] for sample in samples}) == 70
    assert all(sample["text"].startswith("Return ") and len(sample["text"]) > 120 for sample in samples)
    filled = run(trained, "sample.py", "--infill", "Return the ___ of the _12_ list.").stdout
    assert re.fullmatch(r"Return the .+ of the .+ list\.\n", filled, re.S)
    for arguments, line in (
        (["--infill", "no blank"], "has no blank"),
        (["--infill", "a ___", "--model", "judge"], "leave out --model judge"),
        (["--length", "513"], "writes up to 512"),
        (["--steps", "0.5", "0.6"], "sum to 1"),
        (["--steps", "1/0"], "sum to 1"),
        (["--prompt", "a", "--infill", "b___"], "not allowed with"),
        (["--watch", "--json"], "not allowed with"),
        (["--top-p", "0"], "--top-p"),
    ):
        assert line in error_line(trained, "sample.py", *arguments)


def test_the_lines_of_python_in_the_readme(trained):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 5
    assert "Return the " in run(trained, "-c", code).stdout


@pytest.mark.parametrize("stage", ["dfm", "fsdfm"])
def test_a_run_cut_short_goes_on_to_the_same_weights(trained, tmp_path, stage):
    """Killed after its first checkpoint, at iteration 20, and resumed: as if nothing had happened."""
    out = tmp_path / "out"
    out.mkdir()
    if stage == "fsdfm":
        shutil.copy(trained / "out/dfm.pt", out)
    often = [*TINY, "--out", out, "--validate-every", 20]
    die_at_the_first_checkpoint = (
        "import sys, os, checkpoint, train\n"
        "kept = train.save_checkpoint\n"
        "def save_and_die(*arguments, **options):\n    kept(*arguments, **options)\n    os._exit(9)\n"
        "train.save_checkpoint = save_and_die\n"
        "train.main()\n"
    )
    run(trained, "-c", die_at_the_first_checkpoint, stage, *often, status=9)
    assert torch.load(out / f"{stage}.pt", weights_only=True)["iteration"] == 20
    assert "exists" in error_line(trained, "train.py", stage, *often)
    assert "batch_size = 16, not 8" in error_line(trained, "train.py", stage, *often, "--batch-size", 8, "--resume")
    assert "seed = 1, not 2" in error_line(trained, "train.py", stage, *often, "--seed", 2, "--resume")
    run(trained, "train.py", stage, *often, "--resume")
    resumed, undisturbed = (torch.load(folder / f"{stage}.pt", weights_only=True) for folder in (out, trained / "out"))
    for weights in ("model", "ema") if stage == "fsdfm" else ("model",):
        assert all(torch.equal(resumed[weights][name], value) for name, value in undisturbed[weights].items())
    losses = [[(row["iteration"], row["loss"]) for row in csv.DictReader((folder / f"{stage}.csv").open())] for folder in (out, trained / "out")]
    assert losses[0] == losses[1]
    seconds = [float(row["seconds"]) for row in csv.DictReader((out / f"{stage}.csv").open())]
    assert seconds == sorted(seconds)  # the clock goes on, too
    assert "finished" in run(trained, "train.py", stage, "--resume", "--out", out).stdout
    if stage == "fsdfm":
        (out / "dfm.pt").write_bytes(b"trained anew")
        assert "began as another" in error_line(trained, "train.py", stage, "--resume", "--out", out)


def test_help_shows_every_flag_and_default(project):
    for script in ("data/prepare.py", "train.py", "sample.py", "eval.py", "plot.py", "ablate.py"):
        shown = run(project, script, "--help").stdout
        flags = [part for part in shown.split("options:")[1].split("\n  -") if part.strip()]
        undocumented = [flag for flag in flags[1:] if "default" not in flag and "(" not in flag]
        assert not undocumented


# bad input


def test_missing_things_name_the_command_that_makes_them(project, tmp_path):
    assert "python data/prepare.py nothing" in error_line(project, "train.py", "dfm", *TINY, "--data", "nothing")
    assert "python train.py fsdfm" in error_line(project, "sample.py", "--out", tmp_path)
    assert "python train.py judge" in error_line(project, "eval.py", "--out", tmp_path)
    assert "python eval.py" in error_line(project, "plot.py", "--out", tmp_path)


def test_a_student_needs_a_finished_teacher(trained, tmp_path):
    assert "python train.py dfm" in error_line(trained, "train.py", "fsdfm", *TINY, "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["train.py", "dfm", "--preset", "huge"], "huge"),
        (["train.py", "gan"], "gan"),
        (["train.py", "dfm", "--batch-size", "0"], "--batch-size: 0 is not a whole number from 1 to 65536"),
        (["train.py", "dfm", "--resume", "--overwrite"], "not allowed with"),
        (["train.py", "dfm", "--exponent", "0.5"], "--exponent: 0.5 is not a number from 1 to 10"),
        (["train.py", "dfm", "--seed", "99999999999999999999"], "--seed: 99999999999999999999 is not"),
        (["sample.py", "--seed", "-1"], "-1 is not a whole number"),
        (["sample.py", "--model", "judge"], "--prompt"),
        (["eval.py", "--length", "4"], "4 is not a whole number from 5"),
        (["eval.py", "--temperatures", "1", "0"], "--temperatures: 0 is not a number from 0.001 to 1000"),
        (["eval.py", "--likelihood", "--infill"], "not allowed with"),
        (["ablate.py", "--out", "nowhere"], "speedrun.sh"),
        (["data/prepare.py", "mine", "--text", "eval.py", "--tokens-of", "nothing"], "no text is prepared in data/nothing"),
        (["eval.py", "--dfm", "absent.pt"], "there is no absent.pt"),
        (["eval.py", "--dfm", "out/judge.pt"], "out/judge.pt is a judge"),
        (["eval.py", "--infill", "--temperatures", "0.5"], "--temperatures has no meaning here"),
        (["train.py", "dfm", "--learning-rate", "nan"], "--learning-rate: nan is not a number"),
        (["train.py", "judge", "--dropout", "1.5"], "--dropout: 1.5 is not a number from 0 to 0.99"),
        (["train.py", "fsdfm", "--dim", "32", "--out", "fresh"], "the student's network is the DFM's"),
        (["train.py", "dfm", "--device", "abacus"], "abacus"),
        (["train.py", "dfm", "--device", "cuda"], "cuda"),
        (["train.py", "dfm", "--dim", "50", "--n-head", "4", "--out", "fresh"], "--dim"),
        (["sample.py", "--steps", "0"], "--steps must be a number from 1 to 65536, not 0"),
        (["sample.py", "--steps", "many"], "many"),
        (["sample.py", "--temperature", "0"], "0 is not a number from 0.001 to 1000"),
        (["sample.py", "--temperature", "nan"], "nan is not a number"),
        (["sample.py", "--num-samples", "0"], "0 is not a whole number from 1"),
        (["sample.py", "--prompt", "word " * 100], "the text is to have 32"),
        (["eval.py", "--steps", "4", "0"], "--steps: 0 is not a whole number from 1"),
    ],
)
def test_bad_flags(trained, arguments, line):
    assert line in error_line(trained, *arguments)


def test_compiling_where_there_is_no_compiler(trained, tmp_path):
    nothing = os.environ | {"PATH": "", "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "sample.py", "--compile"], cwd=trained, env=nothing, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch.compile failed, try --no-compile: ") and result.stderr.count("\n") == 1


def test_bad_texts(project, tmp_path):
    (tmp_path / "latin").write_bytes("déjà vu ".encode("latin-1") * 500)
    (tmp_path / "short").write_text("too short")
    assert "is not UTF-8" in error_line(project, "data/prepare.py", "mine", "--text", tmp_path / "latin")
    assert "too short" in error_line(project, "data/prepare.py", "mine", "--text", tmp_path / "short")
    assert "cannot read" in error_line(project, "data/prepare.py", "mine", "--text", tmp_path / "absent")
    assert "--text" in error_line(project, "data/prepare.py", "mine")
    (tmp_path / "long").write_text("long enough " * 200)
    assert "0 characters to train on" in error_line(project, "data/prepare.py", "mine", "--text", tmp_path / "long", "--validation", "0.9999999")
    assert "not a folder name" in error_line(project, "data/prepare.py", "dataset.py", "--text", tmp_path / "long")
    assert not (project / "data/mine").exists()


def test_characters(trained, tmp_path):
    """A char tokenizer: rare characters are replaced and counted aloud, a prompt with an unknown one is refused, a
    text too short for one block is refused, and a judge of other tokens is refused."""
    (tmp_path / "abc.txt").write_text("the cat sat on the mat. " * 60 + "\u00e9")
    assert "1 rare" in run(trained, "data/prepare.py", "cats", "--text", tmp_path / "abc.txt", "--tokenizer", "char").stdout
    out = ["--data", "cats", "--out", tmp_path / "out"]
    assert "too short" in error_line(trained, "train.py", "dfm", *TINY, "--block-size", 500, *out)
    for stage in ("dfm", "fsdfm"):
        run(trained, "train.py", stage, *TINY, "--iterations", 4, *out)
    assert "'X'" in error_line(trained, "sample.py", "--prompt", "the X", "--out", tmp_path / "out")
    shutil.copy(trained / "out/judge.pt", tmp_path / "out/judge.pt")
    assert "other tokens" in error_line(trained, "eval.py", *out)
    assert "other tokens" in error_line(trained, "train.py", "fsdfm", "--resume", "--out", tmp_path / "out")


def test_a_damaged_checkpoint(trained, tmp_path):
    (tmp_path / "fsdfm.pt").write_bytes((trained / "out/fsdfm.pt").read_bytes()[:5000])
    assert "not a readable checkpoint" in error_line(trained, "sample.py", "--out", tmp_path)


def released_file(path, rows):
    """A file of the published format: a step-aware network of width 8 with `rows` tokens, random weights."""
    width, cond = 8, 4
    sizes = {"vocab_embed.weight": (rows, width), "time_condition_fuser.weight": (2 * cond, 2 * cond), "time_condition_fuser.bias": (2 * cond,)}
    for name in ("time_embedding", "dt_embedding"):
        sizes |= {f"{name}.mlp.0.weight": (cond, 256), f"{name}.mlp.0.bias": (cond,), f"{name}.mlp.2.weight": (cond, cond), f"{name}.mlp.2.bias": (cond,)}
    block = {"norm1.weight": (width,), "norm2.weight": (width,), "mlp.0.weight": (4 * width, width), "mlp.0.bias": (4 * width,)}
    block |= {f"{name}.weight": (width, width) for name in ("qw", "kw", "vw", "attn_out")}
    block |= {"mlp.2.weight": (width, 4 * width), "mlp.2.bias": (width,), "condition_fuser.weight": (cond, 2 * cond), "condition_fuser.bias": (cond,)}
    block |= {"adaLN_modulation.weight": (6 * width, cond), "adaLN_modulation.bias": (6 * width,)}
    sizes |= {f"blocks.0.{name}": size for name, size in block.items()}
    head = {"norm_final.weight": (width,), "linear.weight": (rows, width), "linear.bias": (rows,), "condition_fuser.weight": (cond, 2 * cond)}
    head |= {"condition_fuser.bias": (cond,), "adaLN_modulation.weight": (2 * width, cond), "adaLN_modulation.bias": (2 * width,)}
    sizes |= {f"output_layer.{name}": size for name, size in head.items()}
    student = {f"module.{name}": torch.randn(size) for name, size in sizes.items()}
    teacher = {name: value for name, value in student.items() if "fuser" not in name and "dt_embedding" not in name}
    torch.save({"student_ema_model": student, "teacher_model": teacher, "step": 1}, path)


def test_a_released_checkpoint(project, tmp_path):
    """From the published format to text; the head count, which this file does not store, comes from a flag."""
    try:
        gpt2_encoding()
    except UserError:
        pytest.skip("needs GPT-2's tokens: a network, or TIKTOKEN_CACHE_DIR")
    for rows in (50257, 50258):  # uniform and mask source
        released_file(tmp_path / "released.pth", rows)
        command = ["sample.py", "--checkpoint", tmp_path / "released.pth", "--steps", 2]
        assert len(run(project, *command, "--n-head", 2, "--prompt", "Once upon").stdout) > 1000
        assert "give --n-head" in error_line(project, *command)
        assert "3 heads do not fit" in error_line(project, *command, "--n-head", 3)
        assert len(run(project, *command, "--n-head", 2, "--model", "dfm").stdout) > 1000
    (tmp_path / "text").write_text("Once upon a time there was a text of some length. " * 100)
    run(project, "data/prepare.py", "story", "--text", tmp_path / "text", "--tokenizer", "gpt2")
    run(project, "train.py", "judge", *TINY, "--iterations", 2, "--data", "story", "--out", tmp_path)
    files = ["--dfm", tmp_path / "released.pth", "--fsdfm", tmp_path / "released.pth", "--n-head", 2, "--data", "story"]
    shown = run(project, "eval.py", *files, "--out", tmp_path, "--length", 8, "--steps", 1, 2, "--num-samples", 3).stdout
    assert shown.count("fsdfm ") >= 2 and len(json.loads((tmp_path / "eval.json").read_text())["rows"]) == 4
    released_file(tmp_path / "released.pth", 300)
    assert "300 tokens" in error_line(project, *command, "--n-head", 2)
    content = (tmp_path / "released.pth").read_bytes()
    (tmp_path / "released.pth").write_bytes(content[: len(content) // 2])
    assert "not a readable checkpoint" in error_line(project, *command, "--n-head", 2)


def test_a_checkpoint_is_data(project, tmp_path):
    """A pickle that would run code when loaded is refused, and runs nothing."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    assert "not a readable checkpoint" in error_line(project, "sample.py", "--checkpoint", tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()
    torch.save({"something": 1}, tmp_path / "else.pt")
    assert "no checkpoint of this project" in error_line(project, "sample.py", "--checkpoint", tmp_path / "else.pt")


def test_a_full_disk_loses_nothing(trained, tmp_path):
    """/dev/full refuses every byte: what was there stays, and nothing half-written is left."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "eval.json").write_bytes((trained / "out/eval.json").read_bytes())
    (tmp_path / "curve.png").write_bytes(b"the old one")
    (tmp_path / "curve.png.tmp").symlink_to("/dev/full")
    assert "cannot write" in error_line(trained, "plot.py", "--out", tmp_path)
    assert (tmp_path / "curve.png").read_bytes() == b"the old one" and not (tmp_path / "curve.png.tmp").is_symlink()
