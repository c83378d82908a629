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
    if last:
        return torch.multinomial(p, 1).squeeze(1)
    p_stay = p.gather(1, x_t[:, None]).squeeze(1)  # (N,), p(x_t)
    still_noise = (1 - (t + h)) / (1 - t)
    jumps = torch.rand(len(x_t)) < 1 - still_noise ** (1 - p_stay)
    elsewhere = p.scatter(1, x_t[:, None], 0)  # (N, V), with p(x_t) = 0
    elsewhere[~jumps] = 1  # not used: a row of zeros could not be drawn from
    return torch.where(jumps, torch.multinomial(elsewhere, 1).squeeze(1), x_t)
