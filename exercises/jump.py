"""3. One step: the jump.

A step goes from t to t + h. With kappa(t) = t the share

    S = (1 - (t + h)) / (1 - t)

of the noise at t is still noise at t + h. FS-DFM lets a token jump with probability

    P(jump) = 1 - S^(1 - p(x_t))

to a y != x_t, drawn from the posterior p restricted to other symbols. In the last step every token
is drawn from p.
"""

import torch


def jump(x_t, p, t, h, last):
    """Tokens x_{t+h} (N,) for x_t (N,) int64 and posteriors p (N, V); t and h are floats, last is a
    bool."""
    raise NotImplementedError("which tokens jump, and where to?")
