"""10. Beat the default at 8 steps.

The DFM that comes with the project (weights/dfm.pt) writes stories, and a program counts the right
ones. Without any training: how must it be *sampled*, so that in 8 steps more stories are right than
with the defaults, by more than two standard errors, at a variety of at least 95%?
"""

from flow import Sampler


def sampler():
    """A flow.Sampler. Its fields say what can be chosen."""
    # each step draws the whole text anew, and places that wait for the same name draw the same
    return Sampler(update="renoise", shared_noise=True)
