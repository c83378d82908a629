"""2. A guess for every token, by Bayes' rule.

Texts have two tokens of V symbols, and text[a, b] is the probability of the text (a, b). Under the
uniform source a token of x_t is that of x_1 with probability t, else a random symbol. What does x_t
say about x_1?

    p(x_1 | x_t) is proportional to p(x_1) p(x_t[0] | x_1[0]) p(x_t[1] | x_1[1])
"""

import numpy as np


def posterior(text, x_t, t):
    """p(x_1[i] = y | x_t) as an array (2, V), a row for each token i, for text (V, V), a pair of
    symbols x_t and a time t in [0, 1)."""
    raise NotImplementedError("multiply, normalise, and sum over the other token")
