"""Checks experiments/one_step.py: in the exact world one step can write texts whose tokens agree,
with shared noise nearly and with distribution matching entirely, but only from a source that has
noise."""

import numpy as np
import pytest
import torch

from experiments.one_step import kl, log_posteriors, loss_gradient, match, shared_noise_texts
from experiments.one_step import written_texts
from flow import draw_with_shared_noise
from toy import PRODUCT_OF_MARGINALS, TEXT, L, V, softmax, total_variation

ONCE_IN_10_000 = 44.3  # chi-square of 15 degrees of freedom


def test_shared_noise_is_that_of_the_sampler():
    """The integrals against draws of flow.py: marginals, and all 16 texts."""
    p_1, p_2 = TEXT.sum(1), TEXT.sum(0)
    texts = shared_noise_texts(p_1, p_2)
    np.testing.assert_allclose(texts.sum(1), p_1, atol=1e-5)
    np.testing.assert_allclose(texts.sum(0), p_2, atol=1e-5)
    n = 100_000
    p = torch.from_numpy(np.stack([p_1, p_2]))
    drawn = draw_with_shared_noise(p.expand(n, -1, -1)).numpy()  # (n, 2)
    counts = np.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V**L)
    expected = n * texts.flatten()
    rare = expected < 5  # one cell for all of these
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    assert ((counts - expected) ** 2 / expected).sum() < ONCE_IN_10_000


def test_shared_noise_agrees_more_than_independent_draws():
    texts = shared_noise_texts(TEXT.sum(1), TEXT.sum(0))
    assert total_variation(texts, TEXT) < 0.3 * total_variation(PRODUCT_OF_MARGINALS, TEXT)


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
