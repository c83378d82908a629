"""Checks that what bench.py compares is the same thing, and that what is compiled is compiled once.
Times are never asserted."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from command import copy_project, run

from distill import STEP_WEIGHTS, distillation_loss
from experiments.bench import growth_exponent, textbook_categorical, textbook_jump
from flow import Sampler, categorical, generate, jump_probability, sample_source
from model import ModelConfig, Transformer
from train import loss_of, make_config

TORCH_COMPILE = torch.compile


def test_the_textbook_jump_is_the_same_step():
    """20,000 tokens at x_t = 2: the share that stays, and where the others go, within 4.5 standard
    errors of the formula."""
    N = 20000
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    t, h = torch.tensor([0.5]), torch.tensor([0.125])
    torch.manual_seed(1)
    y = textbook_jump(torch.full((1, N), 2), p.log().expand(1, N, 4), t, h)
    p_jump = jump_probability(p[2], t, h).item()
    expected = p / (1 - p[2]) * p_jump
    expected[2] = 1 - p_jump
    share = torch.bincount(y[0], minlength=4) / N
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / N).sqrt()).all()


def test_the_textbook_draw_is_the_same_draw():
    """From the same random numbers the same tokens, which are never of weight zero."""
    weights = torch.rand(2000, 100)
    weights[:, ::3] = 0
    torch.manual_seed(1)
    theirs = textbook_categorical(weights)
    torch.manual_seed(1)
    assert torch.equal(theirs, categorical(weights))
    assert (theirs % 3 != 0).all()
    assert len(theirs.unique()) == 66


def test_growth_exponent():
    assert growth_exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


class Counter:
    """A backend of torch.compile that keeps the graphs and runs them as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward

    def compile(self, function, **options):
        assert options == {"fullgraph": True}  # no break between the network and the jump
        return TORCH_COMPILE(function, backend=self, **options)


def small_network(stage="fsdfm"):
    shape = {"vocab_size": 5, "block_size": 8, "n_layer": 1, "n_head": 2, "dim": 16, "cond_dim": 8}
    kind = {"step_aware": stage == "fsdfm", "causal": stage == "judge"}
    return Transformer(ModelConfig(**shape, **kind))


def test_the_sampler_is_compiled_once(monkeypatch):
    """Network and jump are one graph, for every step of two texts."""
    torch._dynamo.reset()
    counter = Counter()
    monkeypatch.setattr(torch, "compile", counter.compile)
    network = small_network().eval()
    x_0 = sample_source((8, 8), network.config)
    for _ in range(2):
        generate(network, x_0, 8, Sampler(compile=True))
    assert len(counter.graphs) == 1
    assert any("cumsum" in str(node.target) for node in counter.graphs[0].graph.nodes)


def test_training_is_compiled_a_few_times(monkeypatch):
    """Batches that are split between teacher and data loss in nine ways: one graph of the student,
    and at most three of the teacher. These are of its first size, of any other size, and of a
    single sequence."""
    torch._dynamo.reset()
    student, teacher = small_network(), small_network().requires_grad_(False).eval()
    counters = SimpleNamespace(student=Counter(), teacher=Counter())
    student.compile(backend=counters.student)
    teacher.compile(backend=counters.teacher)
    x_1 = torch.randint(5, (8, 8))
    settings = make_config("fsdfm", "tiny", step_weights="test", data_steps=1024)
    for taught in range(9):
        # of 8 sequences, `taught` have h = 1 and a teacher, the others h = 1/1024
        monkeypatch.setitem(STEP_WEIGHTS, "test", [taught] + [0] * 9 + [8 - taught])
        distillation_loss(student, teacher, x_1, settings).backward()
    assert len(counters.student.graphs) == 1
    assert 1 <= len(counters.teacher.graphs) <= 3


@pytest.mark.parametrize("stage", ["judge", "dfm"])
def test_network_and_loss_are_one_graph(stage):
    """Without a teacher there is no break, no second graph, and the loss is the same."""
    torch._dynamo.reset()
    counter = Counter()
    compiled = TORCH_COMPILE(loss_of, backend=counter, fullgraph=True)
    network, settings = small_network(stage), make_config(stage, "tiny")
    x_1 = torch.randint(5, (8, 8))
    losses = []
    for loss_function in (loss_of, compiled, compiled):
        torch.manual_seed(1)
        losses.append(loss_function(stage, network, None, x_1, settings))
    torch.testing.assert_close(losses[1:], losses[:1] * 2)
    assert len(counter.graphs) == 1


def test_bench_runs(tmp_path):
    """The parts that are not long, from the command line, and their table as JSON."""
    copy_project(tmp_path)
    flags = ["--preset", "tiny", "--only", "training", "start", "--out", tmp_path / "here"]
    shown = run(tmp_path, "experiments/bench.py", *flags).stdout
    report = json.loads((tmp_path / "here/bench.json").read_text())
    assert report["matrix_rate"] > 0 and report["copy_rate"] > 0
    *steps, start = report["rows"]
    assert [row["part"] for row in steps] == ["training"] * 4
    assert all(row["value"] > 0 and row["what"] in shown for row in steps)
    assert 0 < steps[0]["of_limit"] < 1
    # there is no student whose start could be measured
    assert "not measured" in start["what"] and str(tmp_path / "here/fsdfm.pt") in start["what"]
