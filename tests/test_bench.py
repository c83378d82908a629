"""Checks experiments/bench.py. Times are never asserted."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

import bench

from flow import jump


@pytest.mark.parametrize("step", [bench.textbook_jump, jump])
def test_the_two_jumps_are_the_same_step(step):
    """20,000 tokens at x_t = 2: the share that stays, and where the others go, within 4.5 standard
    errors of the formula."""
    N, p = 20_000, torch.tensor([0.1, 0.2, 0.3, 0.4])
    t, h = torch.tensor([0.5]), torch.tensor([0.125])
    y = step(torch.full((1, N), 2), p.log().expand(1, N, 4), t, h)
    p_jump = 1 - 0.75 ** (1 - 0.3)  # S = (1 - 5/8) / (1 - 1/2)
    expected = p / 0.7 * p_jump
    expected[2] = 1 - p_jump
    share = torch.bincount(y[0], minlength=4) / N
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / N).sqrt()).all()


def test_the_table_of_the_smallest_network(monkeypatch, capsys):
    size = ["--block_size=8", "--n_layer=1", "--dim=16"]
    monkeypatch.setattr(sys, "argv", ["bench.py", str(ROOT / "config/tiny.py"), *size])
    monkeypatch.setattr(bench, "AT_MOST", (3, 0.0))
    bench.main()
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10 and "judge, DFM" in rows[0] and "V 50,257" in rows[-1]
    assert all(float(row.split("|")[4]) > 0 for row in rows)
    assert "tokens a second" in printed
