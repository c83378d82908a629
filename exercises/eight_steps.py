"""10. Beat the default at 8 steps.

The DFM that comes with the project (weights/dfm.pt) writes stories, and a program counts the right
ones. Without any training: how must it be *sampled*, so that in 8 steps more stories are right than
with flow.generate, by more than two standard errors, at a variety of at least 95%?
"""

from flow import generate, jump


def sampler(model, x, steps, on_step=None):
    """Texts (B, L) from noise x (B, L), int64, as flow.generate writes them."""
    # generate(model, x, steps, power=2.0, step=jump, on_step=on_step) is the default
    raise NotImplementedError("another time grid, another step, or other logits")
