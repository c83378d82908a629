"""Checks experiments/one_step.py: in the exact world distribution matching writes true texts in one
step, but only from a source that has noise."""

import numpy as np
import pytest

from experiments.one_step import kl, log_posteriors, loss_gradient, match, written_texts
from toy import TEXT, V, softmax


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distribution_matching_writes_true_texts_in_one_step(seed):
    texts, history = match("uniform", seed=seed)
    assert history[0] > 0.8
    assert kl(texts, TEXT) < 0.01


def test_the_mask_source_cannot():
    """With one x_0 the texts are a product p_1 p_2. Minimising KL over p_1 and p_2 in turn, each of
    which has a closed form, leads from every start to the same product, far from TEXT."""
    texts, _ = match("mask")
    np.testing.assert_allclose(texts, np.outer(texts.sum(1), texts.sum(0)), atol=1e-12)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(50):
        p_2 = softmax(3 * generator.normal(size=V))
        for _ in range(300):
            p_1 = softmax((p_2 * np.log(TEXT)).sum(1))
            p_2 = softmax((p_1[:, None] * np.log(TEXT)).sum(0))
        found.append(kl(np.outer(p_1, p_2), TEXT))
    assert max(found) - min(found) < 1e-6
    assert 0.87 < min(found) <= kl(texts, TEXT)


def test_the_loss_stands_still_at_the_truth_alone():
    """Where the student's texts are distributed as the true ones there is no gradient. This student
    writes one text for each x_0."""
    student = np.eye(V)[[(a, a) for a in (0,) * 4 + (1,) * 2 + (2,) * 5 + (3,) * 5]]  # (16, L, V)
    np.testing.assert_allclose(written_texts(student), np.diag([4, 2, 5, 5]) / 16)
    own = loss_gradient(student, log_posteriors(written_texts(student)))
    assert np.abs(own).max() < 1e-9
    assert np.abs(loss_gradient(student, log_posteriors(TEXT))).max() > 0.1
