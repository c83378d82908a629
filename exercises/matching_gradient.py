"""9. The gradient of distribution matching.

The student's text is noised to z. The frozen DFM says what a token would be if z came from a true
text, log f(v | z), and the auxiliary what it is if z came from the student, log a(v | z). The
student's loss at one token is

    loss = -sum_v p(v) (log f(v) - log a(v))          p = softmax(logits)

where f and a have no gradient. Which logits does a step of gradient descent raise?
"""

import torch


def gradient(logits, log_f, log_a):
    """d loss / d logits (N, V) of the sum of the losses, for logits, log_f and log_a (N, V). By
    hand: no autograd."""
    raise NotImplementedError("what is the derivative of sum_v p(v) A(v) for a softmax p?")
