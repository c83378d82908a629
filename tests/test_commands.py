"""sample.py, eval.py and plot.py as a user runs them, and what they say of ordinary mistakes.

They use the networks of weights/, which come with the project.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

import config.command as command
import eval as evaluation
from experiments import bench
from model import Config
from sample import at_temperature, fill, find_network, load_checkpoint, load_model, write
from test_training import ROOT, refusal, run


@pytest.fixture(scope="module")
def student():
    return load_model("weights/fsdfm.pt")


def test_the_same_seed_writes_the_same_text(student):
    model, tokenizer = student
    texts = write(model, tokenizer, num_samples=2, steps=4, seed=3)
    assert texts == write(model, tokenizer, num_samples=2, steps=4, seed=3)
    assert texts != write(model, tokenizer, num_samples=2, steps=4, seed=4)
    printed = run("sample.py", "--steps", 4, "--seed", 3, "--num-samples", 2).stdout
    assert [text for text in printed.splitlines() if "---" not in text] == texts


def test_given_tokens_guide_the_others(student):
    """Networks that were trained with given tokens keep to the names of a prompt: at least 24 of 32
    stories speak of Mia again. (Without the prompt 1 in 16 has her.)"""
    model, tokenizer = student
    assert write(model, tokenizer, "Mia  had", steps=1)[0].startswith("Mia  had ")  # as given
    texts = write(model, tokenizer, prompt="Mia had a golden kite.", num_samples=32, seed=1)
    assert all(text.startswith("Mia had a golden kite.") for text in texts)
    assert sum(text.count("Mia") > 1 for text in texts) >= 24


def test_temperature(student):
    """The network's logits are divided by it; at 0 the likeliest token is drawn."""
    model, tokenizer = student
    x = torch.randint(tokenizer.vocab_size, (2, 128))
    t, h = torch.tensor([0.25, 0.5]), torch.tensor([0.25, 0.125])
    torch.testing.assert_close(at_temperature(model, 0.5)(x, t, h), 2 * model(x, t, h))
    torch.manual_seed(1)
    x_0 = torch.randint(tokenizer.vocab_size, (4, 128))
    likeliest = model(x_0, torch.zeros(4), torch.ones(4)).argmax(-1)
    torch.manual_seed(1)
    x_1 = fill(model, torch.full((4, 128), -1), steps=1, temperature=0)
    assert (x_1 == likeliest).float().mean() > 0.99


def test_networks_that_are_not_trained_come_with_the_project(tmp_path, monkeypatch):
    """Each by itself: a folder that has the judge alone takes the others from weights/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "weights/judge.pt", "out/judge.pt")
    assert find_network("out", "judge") == "out/judge.pt"
    assert find_network("out", "dfm") == str(ROOT / "weights/dfm.pt")
    assert find_network("elsewhere", "dfm") == "elsewhere/dfm.pt"


def test_watch_and_check():
    printed = run("sample.py", "--model", "dfm", "--steps", 3, "--watch", "--check").stdout
    assert "--- step 1 of 3" in printed and "--- step 3 of 3" in printed
    assert "word" in printed or "  right" in printed


def test_measures_by_hand():
    """Entropy of histograms in bits; the judge's perplexity of texts that it finds equally likely
    is the number of tokens. Padding, here 3, counts in neither."""
    x = torch.tensor([[0, 0, 1, 1, 3], [0, 0, 0, 0, 0], [0, 1, 2, 5, 3]])
    torch.testing.assert_close(evaluation.entropies(x, pad=3), torch.tensor([1.0, 0.0, 2.0]))

    def judge(x, t):
        assert (t == 1).all()
        return torch.zeros(*x.shape, 7).index_fill(-1, torch.tensor(3), -99)

    judge.config = Config(vocab_size=7)
    torch.testing.assert_close(evaluation.perplexities(x, judge, pad=3), torch.full((3,), 6.0))
    row = evaluation.mean_and_error("nats", torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert row == {"nats": 0.75, "nats_error": pytest.approx(0.25)}
    assert evaluation.wilson(8, 10) == pytest.approx((0.490, 0.943), abs=0.001)
    low, high = evaluation.wilson(256, 256)
    assert high == 1 and 0.98 < low < 0.99


def test_eval_and_plot(tmp_path):
    """A table within 100 columns, a report, pictures. True stories are all right."""
    for name in ("judge", "dfm", "fsdfm"):
        shutil.copy(ROOT / f"weights/{name}.pt", tmp_path)
    done = run("eval.py", "--out", tmp_path, "--steps", 1, 8, "--num-samples", 16,
               "--temperatures", 0.7, 1)
    rows = done.stdout.splitlines()
    assert rows[0].startswith("measuring ") and str(tmp_path / "dfm.pt") in rows[0]
    assert max(map(len, rows[1:10])) <= 100
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["real"]["right"] == 1 and report["real"]["perplexity"] < 3
    right = {(row["model"], row["steps"], row["temperature"]): row["right"]
             for row in report["rows"]}
    assert len(right) == 8
    assert right["fsdfm", 8, 1] > 0.5 > right["fsdfm", 1, 1]  # 0.91 and 0.0
    run("experiments/ladder.py", "--out", tmp_path, "--num-samples", 16)
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert [row["steps"] for row in ladder] == [4, 8] * 5  # no dmd.pt there: no such rung
    assert ladder[7]["right"] == right["fsdfm", 8, 1]  # the same stories
    (tmp_path / "dfm.csv").write_text("iteration,loss,validation_loss\n10,2,\n20,1,1.5\n")
    run("plot.py", "--out", tmp_path)
    for name in ("curve", "stories", "frontier", "ladder", "training"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_commands_refuse(tmp_path):
    """One line on stderr that says what to do, and status 2."""
    (tmp_path / "fsdfm.pt").write_bytes(b"no checkpoint")
    cases = [
        (["sample.py", "--prompt", "Mia had a zebra"], "'zebra'"),
        (["sample.py", "--prompt", "Mia had a " * 60], "make it shorter"),
        (["sample.py", "--model", "dfn"], "python train.py dfn"),
        (["sample.py", "--out", tmp_path], "is no checkpoint"),
        (["sample.py", "--model", "judge"], "is a judge"),
        (["sample.py", "--sampler", "extras.samplers.nope"], "there is no function"),
        (["sample.py", "--device", "cuda"], "no cuda"),
        (["eval.py", "--out", tmp_path], "python train.py judge"),
        (["eval.py", "--data", "nope"], "python data/prepare.py nope` (a text"),
        (["plot.py", "--out", tmp_path], "python eval.py"),
    ]
    for arguments, message in cases:
        assert message in refusal(*arguments)


def test_the_benchmark(monkeypatch, capsys):
    """Its table, of the smallest network. Times are never asserted."""
    size = [str(ROOT / "config/tiny.py"), "--block_size=8", "--n_layer=1", "--dim=16"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *size])
    monkeypatch.setattr(bench, "AT_MOST", (3, 0.0))
    bench.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert 2 <= len(rows) <= 4 and "DFM, FS DFM" in rows[0] and "8 steps" in rows[-1]
    assert all(float(row.split("|")[4]) > 0 for row in rows)


def test_busy_cores_get_no_threads(monkeypatch):
    """In a second 4 cores were idle for 2 seconds, and this process used one: 3 are free."""
    threads, before = [], (time.monotonic() - 1, time.process_time() - 1, 0.0)
    monkeypatch.setattr(command, "BEFORE_TORCH", before)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for idle, cores in ((2.0, 4), (0.0, 4), (3.0, 4), (2.0, 2)):
        monkeypatch.setattr(command, "idle_seconds", lambda: idle)
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        command.leave_busy_cores()
    assert threads == [3, 1]  # and all of 4 or 2


def test_an_unfinished_network_is_named(tmp_path):
    checkpoint = load_checkpoint("weights/fsdfm.pt")
    torch.save(checkpoint | {"iteration": 5}, tmp_path / "fsdfm.pt")
    assert "is not finished, 5 of 2000 iterations" in run("sample.py", "--out", tmp_path).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    script = "import config.command, torch; torch.save({'a': torch.zeros(9999)}, '/dev/full')"
    assert "is the disk full?" in refusal("-c", script)
