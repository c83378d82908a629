"""8. Why averaging logits sharpens.

Two ways to average N predictions p_1, ..., p_N of the same token:

    of probabilities    m(v) = (1 / N) sum_i p_i(v)
    of logits           g(v) proportional to exp((1 / N) sum_i log p_i(v)), a geometric mean

m minimises sum_i KL(p_i || q) over q, and g minimises sum_i KL(q || p_i). A symbol that one p_i
excludes is excluded by g, and not by m.
"""

import torch


def mean_of_probabilities(p):
    """m (V,) for predictions p (N, V), all above 0."""
    return p.mean(0)


def mean_of_logits(p):
    """g (V,) for predictions p (N, V), all above 0."""
    return torch.softmax(p.log().mean(0), dim=-1)
