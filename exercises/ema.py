"""7. The teacher's memory.

The teacher's weights are a running mean of the student's, EMA:

    ema <- decay * ema + (1 - decay) * weight

How far back does it remember? After n updates the old value counts decay^n.
"""

import math


def update(ema, weight, decay):
    """The next value of ema; floats or tensors, decay in [0, 1)."""
    raise NotImplementedError("one line")


def half_life(decay):
    """The number of updates n, a float, after which an old value counts one half; decay in (0, 1).
    """
    raise NotImplementedError("solve decay^n = 1/2")
