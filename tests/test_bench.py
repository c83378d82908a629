"""What bench.py compares must be the same thing, and what is compiled must be compiled once. Times are never asserted."""

import json

import pytest
import torch
import torch._dynamo
from command import copy_project, run_python

from bench import exponent, textbook_jump
from distill import distillation_loss
from flow import generate, jump_probability, make_step, sample_source, step_times
from model import ModelConfig, Transformer


def test_the_textbook_jump_is_the_same_step():
    """20,000 tokens at x_t = 2: the share that stays, and where the others go, within 4.5 standard errors of the formula."""
    N, p, t, h = 20000, torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5]), torch.tensor([0.125])
    torch.manual_seed(1)
    y = textbook_jump(torch.full((1, N), 2), p.log().expand(1, N, 4), t, h)
    p_jump = jump_probability(p[2], t, h).item()
    expected = p / (1 - p[2]) * p_jump
    expected[2] = 1 - p_jump
    share = torch.bincount(y[0], minlength=4) / N
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / N).sqrt()).all()


def test_exponent():
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_nothing_is_compiled_twice():
    """8 steps, network and jump together, are one graph without a break; batches that are split between teacher and text in nine ways are at most three
    of the teacher's: one for the first size, one for any other, and one for a single sequence. (The backend runs a graph as it is; compiling is the same.)"""
    config = ModelConfig(vocab_size=5, block_size=8, n_layer=1, n_head=2, dim=16, cond_dim=8, step_aware=True)
    torch.manual_seed(1)
    x_1 = torch.randint(5, (8, 8))
    networks = [Transformer(config), Transformer(config).requires_grad_(False).eval()]
    graphs = [[], []]
    for network, seen in zip(networks, graphs):
        network.compile(backend=lambda graph, _, seen=seen: seen.append(graph) or graph.forward)
    torch._dynamo.reset()
    whole = []
    step = torch.compile(make_step(Transformer(config).eval()), backend=lambda graph, _: whole.append(graph) or graph.forward, fullgraph=True)
    generate(step, sample_source((8, 8), config), step_times(8, easing=2.0))
    assert len(whole) == 1 and any("searchsorted" in str(node.target) for node in whole[0].graph.nodes)  # the draw is in it
    for taught in range(9):
        weights = [taught] + [0] * 9 + [8 - taught]  # of 8 sequences, `taught` with h = 1
        distillation_loss(networks[0], networks[1], x_1, weights).backward()
    assert len(graphs[0]) == 1 and 1 <= len(graphs[1]) <= 3


def test_bench_runs(tmp_path):
    """Every part that is not long, from the command line, and its table as JSON."""
    copy_project(tmp_path)
    result = run_python(tmp_path, "bench.py", "--preset", "tiny", "--only", "training", "start")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out/bench.json").read_text())
    assert report["matrix_rate"] > 0 and report["copy_rate"] > 0
    steps = [row for row in report["rows"] if row["part"] == "training"]
    assert len(steps) == 4 and all(row["value"] > 0 for row in steps)
    assert all(row["ratio"] == pytest.approx(steps[0]["value"] / row["value"]) for row in steps)
    assert 0 < steps[0]["of_limit"] < 1
    assert "not measured" in report["rows"][-1]["what"]  # there is no student whose start could be
