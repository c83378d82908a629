"""Checks experiments/one_step.py: in the exact world distribution matching writes true texts in one
step, but only from a source that has noise."""

import numpy as np
import pytest

from experiments.one_step import kl, log_posteriors, loss_gradient, match, written_texts
from toy import TEXT, V


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distribution_matching_writes_true_texts_in_one_step(seed):
    texts, history = match("uniform", seed=seed)
    assert history[0] > 0.8
    assert kl(texts, TEXT) < 0.01


def test_the_mask_source_cannot():
    """With one x_0 the texts are a product, and of all products the nearest is 0.87 nats off."""
    texts, _ = match("mask")
    np.testing.assert_allclose(texts, np.outer(texts.sum(1), texts.sum(0)), atol=1e-12)
    assert kl(texts, TEXT) > 0.87


def test_the_loss_stands_still_at_the_truth_alone():
    """Where the student's texts are distributed as the true ones there is no gradient. This student
    writes one text for each x_0."""
    student = np.eye(V)[[(a, a) for a in (0,) * 4 + (1,) * 2 + (2,) * 5 + (3,) * 5]]  # (16, L, V)
    np.testing.assert_allclose(written_texts(student), np.diag([4, 2, 5, 5]) / 16)
    own = loss_gradient(student, log_posteriors(written_texts(student)))
    assert np.abs(own).max() < 1e-9
    assert np.abs(loss_gradient(student, log_posteriors(TEXT))).max() > 0.1
