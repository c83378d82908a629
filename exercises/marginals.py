"""4. What one step writes.

From pure noise a step draws both tokens of a text from their posteriors, which are then the
frequencies of the symbols at either place, and draws them independently. How far are such texts
from true ones?

    KL(written || text) = sum over texts of written log(written / text), in nats
"""

import numpy as np


def one_step(text):
    """The distribution of texts (V, V) that one step writes, for true texts (V, V)."""
    raise NotImplementedError("the product of the two marginals")


def kl(written, text):
    """KL(written || text) in nats, a float; a text that is never written adds nothing."""
    raise NotImplementedError("a sum over texts")
