"""10. Beat the default at 8 steps.

The DFM that comes with the project (weights/dfm.pt) writes stories, and a program counts the right
ones. Without any training: how must it be *sampled*, so that in 8 steps more stories are right than
with flow.generate, by more than two standard errors, at a variety of at least 95%?
"""

from extras.samplers import leave_one_out_step
from flow import generate


def sampler(model, x, steps, on_step=None):
    """Texts (B, L) from noise x (B, L), int64, as flow.generate writes them."""
    # smaller last steps, and a temperature for what the *other* tokens say. The ordinary one also
    # makes a token believe more in itself, and then it keeps noise
    step = leave_one_out_step(0.6)
    return generate(model, x, steps, power=2.5, step=step, on_step=on_step)
