"""5. The cumulative scalar of another schedule.

The scale of the velocity is r(t) = kappa'(t) / (1 - kappa(t)), and the cumulative scalar is its
mean over a step:

    g(t, h) = (1 / h) integral of r from t to t + h

Let kappa(t) = t^2. Do not integrate numerically: there is a closed form.
"""

import math


def rate(t):
    """r(t) for a t in [0, 1), a float."""
    return 2 * t / (1 - t**2)


def cumulative_scalar(t, h):
    """g(t, h) for t >= 0, h > 0 and t + h < 1, a float."""
    return math.log((1 - t**2) / (1 - (t + h) ** 2)) / h
