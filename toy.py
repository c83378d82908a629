"""The whole method in a world of 16 texts, where every number is exact: python toy.py (NumPy only).

A text is 2 tokens over 4 symbols, and the table TEXT below is the distribution of texts. The world
is so small that Bayes' rule replaces the network and matrix products replace samples. The script
prints the error of few steps, and then one target of FS-DFM's shortcut teacher worked by hand.

The path.       Noise x_0 is at t = 0, text x_1 at t = 1. Each token of x_t is that of x_1 with
                probability kappa(t) = t, else that of x_0. The source of x_0 is "uniform" (random
                tokens) or "mask" (MASK everywhere).
The posterior.  p(y) = p(x_1[i] = y | x_t), one distribution for each position i. A network learns
                its logits; here logits = ln p exactly.
The velocity.   A token x_t jumps to y != x_t at the rate r(t) p(y), r = kappa' / (1 - kappa).
The sampler.    A step from t to t + h evaluates p once and moves every token at most once.

Why few steps are hard: a step draws its tokens independently, given x_t. One step from noise draws
the product of marginals, in which the two tokens of a text no longer agree. In a later step, p is
conditioned on the tokens that earlier steps drew, so more steps restore the agreement.

Four jump rules. They differ only in P(token changes); a token that changes goes to y ~ p restricted
to y != x_t. S = (1 - kappa(t + h)) / (1 - kappa(t)) is the share of the noise at t that is still
noise at t + h. The example is t = 0, h = 1/2, p(x_t) = 0.2, so r = 1 and S = 1/2.

    rule          P(token changes)                      example   scale r            forced move
    euler         (1 - exp(-h r)) (1 - p(x_t))          0.315     its value at t     no
    euler-forced  1 - exp(-h r (1 - p(x_t)))            0.330     its value at t     yes
    averaged      (1 - S) (1 - p(x_t))                  0.400     averaged over h    no
    cumulative    1 - S ** (1 - p(x_t))                 0.426     averaged over h    yes

Scale.   r = 1 / (1 - t) grows during the step. Euler uses its value at t and moves too little. The
         average over the step is g = (1/h) * integral of r = ln(1/S) / h, so exp(-h g) = S.
Forced.  Without it the sampler draws X_1 ~ p first, and X_1 may be the present token, which then
         stays. With it a token that jumps must change. "euler" is Meta's flow_matching library, the
         published DFM baseline; "cumulative" is FS-DFM.
Frozen.  If p is frozen and the chain runs for the whole step, a token may jump several times and
         may return. Then P(token changes) = (1 - S) (1 - p(x_t)): this is "averaged", 0.400 in the
         example. FS-DFM's rule, 0.426, is not that chain.
Last.    In the last step S = 0, and "cumulative" would expel every token, even one with
         p(x_t) = 0.99. So the sampler draws x_1 ~ p in its last step, at every position under the
         uniform source and at the masked positions under the mask source.

What each part is worth (uniform source, 8 steps; total variation from TEXT, 0.561 after one step):

    steps                             euler   euler-forced   averaged   cumulative
    uniform, t_i = i/n                0.118      0.110         0.097      0.087
    power 2, t_i = 1 - (1 - i/n)^2    0.113      0.086         0.067      0.028

At uniform steps the two changes to euler together take 0.118 to 0.087: the averaged scale alone
reaches 0.097, the forced move alone 0.110, so most of the gain comes from the averaged scale. The
grid of power 2 does little alone (0.118 to 0.113) and most with both (0.087 to 0.028): early errors
are corrected in later steps, errors of the last steps remain, and its last steps are small.

Sources: Gat et al. 2024 (discrete flow matching: path, velocity, Euler), FS-DFM (arXiv 2509.20624:
cumulative scalar, shortcut teacher). Read next: model.py, the network that learns the posterior.
"""

import itertools

import numpy as np

# ------------------------------------------------------------------------------------------------
# the texts

V, L = 4, 2  # symbols 0 to 3, tokens in a text; under the mask source symbol 4 is MASK
TEXT = np.array([[20, 1, 1, 1], [1, 12, 3, 1], [2, 1, 25, 1], [1, 4, 1, 26]], dtype=np.float64)
TEXT /= TEXT.sum()  # (V, V): p(x_1) by first and second token; the two mostly agree
TEXTS = list(itertools.product(range(V), repeat=L))  # the 16 texts, in the order of TEXT.flatten()

PRODUCT_OF_MARGINALS = np.outer(TEXT.sum(1), TEXT.sum(0))  # (V, V): each token right, the pair not
ENTROPY = -(TEXT * np.log(TEXT)).sum()  # nats per text


def total_variation(p, q):
    """Half the sum of |p - q|: 0 if the distributions are equal, 1 if they do not overlap."""
    return 0.5 * np.abs(p - q).sum()


# ------------------------------------------------------------------------------------------------
# the path and the posterior


def n_tokens(source):
    """Values that a token of x_t can have: V, or V + 1 with MASK."""
    return V + (source == "mask")


def states(source):
    """Every x_t: 16 pairs of tokens under the uniform source, 25 under the mask source."""
    return list(itertools.product(range(n_tokens(source)), repeat=L))


def token_path(source, kappa):
    """p(x_t = y | x_1 = x) of one token, (V, n_tokens): text with probability kappa, else noise."""
    if source == "mask":
        return np.hstack([kappa * np.eye(V), np.full((V, 1), 1 - kappa)])
    return kappa * np.eye(V) + (1 - kappa) / V


def path(source, kappa):
    """p(x_t | x_1) of both tokens, (texts, states): given the text, tokens are independent."""
    return np.kron(token_path(source, kappa), token_path(source, kappa))


def posterior(source, kappa, text=TEXT):
    """p(x_1[i] = y | x_t) by Bayes' rule, (states, L, V): the output of a perfect network for texts
    of this distribution, (V, V)."""
    kappa = np.clip(kappa, 1e-12, 1 - 1e-12)  # states of probability 0 get the limit
    joint = text.reshape(-1, 1) * path(source, kappa)  # (texts, states): p(x_1, x_t)
    x_1_given_x_t = (joint / joint.sum(0)).T.reshape(-1, V, V)  # (states, first, second token)
    return np.stack([x_1_given_x_t.sum(2), x_1_given_x_t.sum(1)], axis=1)


# ------------------------------------------------------------------------------------------------
# the four jump rules: P(token changes) from p_stay = p(x_t), for kappa(t) = t


def rate(t):
    """r = kappa'(t) / (1 - kappa(t)), the velocity's scale at time t."""
    return 1 / (1 - t)


def survival(t, h):
    """S = (1 - kappa(t + h)) / (1 - kappa(t)) = exp(-integral of r over the step), in [0, 1]."""
    return np.maximum(1 - (t + h), 0) / (1 - t)


def euler(p_stay, t, h):
    """Draw X_1 ~ p, then jump to it with the probability of an event at the rate r within h."""
    return (1 - np.exp(-h * rate(t))) * (1 - p_stay)


def euler_forced(p_stay, t, h):
    """Jump with the probability of an event at the rate r (1 - p(x_t)), always to another token."""
    return 1 - np.exp(-h * rate(t) * (1 - p_stay))


def averaged(p_stay, t, h):
    """Euler with the scale averaged over the step: exact if p is held still."""
    return (1 - survival(t, h)) * (1 - p_stay)


def cumulative(p_stay, t, h):
    """FS-DFM's cumulative scalar: scale averaged over the step, and a forced move."""
    return 1 - survival(t, h) ** (1 - p_stay)


RULES = {
    "euler": euler,
    "euler-forced": euler_forced,
    "averaged": averaged,
    "cumulative": cumulative,
}

# ------------------------------------------------------------------------------------------------
# the sampler's exact distribution


def time_grid(n, power):
    """The n + 1 times t_i = 1 - (1 - i/n)^power. Power 1: uniform steps; 2: steps that shrink."""
    return [1 - (1 - i / n) ** power for i in range(n + 1)]


def transition(source, t, h, last, rule="cumulative"):
    """p(x_{t+h} | x_t) of one step of the sampler, (states, states)."""
    size = n_tokens(source)
    p = np.zeros((size**L, L, size))
    p[:, :, :V] = posterior(source, t)  # p(MASK) = 0
    present = np.eye(size)[np.array(states(source))]  # (states, L, size): one-hot x_t
    p_stay = (p * present).sum(-1, keepdims=True)  # (states, L, 1); 1 at an unmasked token
    change = 1 - p_stay if last else RULES[rule](p_stay, t, h)  # last step: x_1 ~ p
    elsewhere = p * (1 - present) / np.maximum(1 - p_stay, 1e-12)  # y ~ p restricted to y != x_t
    token = change * elsewhere + (1 - change) * present  # (states, L, size): each next token
    pair = token[:, 0, :, None] * token[:, 1, None, :]  # tokens are drawn independently
    return pair.reshape(size**L, size**L)


def sampled_distribution(source, steps, rule="cumulative", power=1):
    """The distribution of the sampler's texts after so many steps from noise, (V, V)."""
    size = n_tokens(source)
    x_0 = np.full(size, 1 / size) if source == "uniform" else np.eye(size)[V]  # (size,)
    p_state = np.kron(x_0, x_0)  # (states,)
    times = time_grid(steps, power)
    for i in range(steps):
        t, h, last = times[i], times[i + 1] - times[i], i == steps - 1
        p_state = p_state @ transition(source, t, h, last, rule)
    return p_state.reshape(size, size)[:V, :V]


STEPS = (1, 2, 4, 8, 16, 64)
ROWS = [("uniform", rule, power) for power in (1, 2) for rule in RULES]
ROWS += [("mask", "euler", 1), ("mask", "cumulative", 1), ("mask", "cumulative", 2)]


def table_rows():
    """(source, rule, power, total variation after each number of STEPS), row by row."""
    rows = []
    for source, rule, power in ROWS:
        texts = [sampled_distribution(source, n, rule, power) for n in STEPS]
        rows.append((source, rule, power, [total_variation(p, TEXT) for p in texts]))
    return rows


# ------------------------------------------------------------------------------------------------
# the shortcut teacher, under the uniform source
#
# The student sees (x_t, t, h) and learns where two steps of h/2 lead. The teacher makes four calls
# with weights as in Runge-Kutta's fourth order (the paper's name for it is RK-4):
#
#     l1 at (x_t, t)            x_a = jump(x_t, l1) from t         to t + h/2
#     l2 at (x_a, t + h/2)      x_b = jump(x_a, l2) from t + h/2   to t + h
#     l3 at (x_b, t + h/2)      x_c = jump(x_b, l3) from t + h/2   to t + h
#     l4 at (x_c, t + h)        target logits = (l1 + 2 l2 + 2 l3 + l4) / 6
#
# The jumps are random, so no order of accuracy is claimed: the weights are Runge-Kutta's, and no
# more. A real teacher is conditioned on h/2 as well; the exact posterior does not depend on h.

WEIGHTS = np.array([1, 2, 2, 1]) / 6


def softmax(logits):
    """Over the last axis."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def entropy(p):
    """Nats, over the last axis."""
    return -(p * np.log(p)).sum(-1)


def call_times(t, h):
    """The time of each of the four calls."""
    return [t, t + h / 2, t + h / 2, t + h]


def teacher_logits(t, h):
    """The logits of the four calls, (4, states, L, V), for every state that a call may see."""
    return np.stack([np.log(posterior("uniform", time)) for time in call_times(t, h)])


def teacher_jumps(t, h):
    """Transitions x_t -> x_a -> x_b -> x_c, (3, states, states): jumps of h/2, none a last step."""
    times = call_times(t, h)[:3]
    return np.stack([transition("uniform", time, h / 2, last=False) for time in times])


def draw_states(x_t, t, h, rng):
    """Indices of the four calls' states, x_t, x_a, x_b, x_c, for one draw of the jumps."""
    drawn = [x_t]
    for jump in teacher_jumps(t, h):
        drawn.append(int(rng.choice(len(jump), p=jump[drawn[-1]])))
    return drawn


def target_logits(drawn, t, h):
    """The weighted mean of the four calls' logits at the drawn states, (L, V)."""
    logits = teacher_logits(t, h)[range(4), drawn]  # (4, L, V)
    return np.einsum("c,clv->lv", WEIGHTS, logits)


def expected_target(x_t, t, h):
    """The mean of softmax(target logits) over all 16^3 draws, (L, V): the student that minimises
    the expected KL(target || student) at (x_t, t, h)."""
    to_a, to_b, to_c = teacher_jumps(t, h)
    p_draw = np.einsum("a,ab,bc->abc", to_a[x_t], to_b, to_c)  # (16, 16, 16)
    l1, l2, l3, l4 = teacher_logits(t, h) * WEIGHTS[:, None, None, None]  # (16, L, V) each
    logits = l1[x_t] + l2[:, None, None] + l3[None, :, None] + l4[None, None, :]
    return np.einsum("abc,abclv->lv", p_draw, softmax(logits))  # logits (16, 16, 16, L, V)


# ------------------------------------------------------------------------------------------------
# the two printed parts


def print_table(rows):
    print("Why few steps are hard: total variation between sampled texts and true texts\n")
    print("source   jump rule     grid    steps:" + "".join(f"{n:>7}" for n in STEPS))
    for source, rule, power, errors in rows:
        grid = "uniform" if power == 1 else f"power {power}"
        print(f"{source:8} {rule:13} {grid:14}" + "".join(f"{error:7.3f}" for error in errors))


def print_parts(rows):
    """Which part of the gain at 8 steps comes from which."""
    tv = {f"{rule} {power}": f"{errors[3]:.3f}" for _, rule, power, errors in rows[:8]}
    plain, forced, scale, both = [tv[f"{rule} 1"] for rule in RULES]
    grid, all_three = tv["euler 2"], tv["cumulative 2"]
    print(f"""
Uniform source, 8 steps: euler has {plain}. The averaged scale alone gives {scale}, the forced
move alone {forced}, both {both}. The grid of power 2 alone gives {grid}, all three {all_three}.
Mask source: p(MASK) = 0, so a masked token that jumps always changes, and the forced move makes
no difference. Two tokens are drawn independently only if one step unmasks both: with cumulative
the probability of that is the sum of h^2 over the steps, 1/n for n uniform steps, else more.""")


def print_teacher(x_t=TEXTS.index((0, 2)), t=0.25, h=0.5, seed=7):
    """The four calls of one draw: states, times, posteriors, jumps; then the targets."""
    drawn = draw_states(x_t, t, h, np.random.default_rng(seed))
    logits = teacher_logits(t, h)[range(4), drawn]  # (4, L, V)
    print("\n\nOne target of the shortcut teacher, uniform source:", end=" ")
    print(f"x_t = {TEXTS[x_t]}, t = {t}, h = {h}\n")
    print("call  state  time   posterior of token 1  posterior of token 2  P(token changes) in h/2")
    for c, time in enumerate(call_times(t, h)):
        state, p = TEXTS[drawn[c]], softmax(logits[c])  # p (L, V)
        change = decimals(cumulative(p[range(L), state], time, h / 2)) if c < 3 else "(no jump)"
        start = f"l{c + 1}    {state[0]} {state[1]}    {time:.2f}"
        print(f"{start}   {decimals(p[0])}   {decimals(p[1])}   {change}")
    print_logits(logits[:, 0, 0])
    print_targets(x_t, t, h, drawn)


def print_logits(logits):
    """The weighted mean of the four calls' logits of one symbol, written out."""
    l1, l2, l3, l4 = logits
    print("\nTarget logit of token 1, symbol 0 (a logit is ln p):")
    print(f"({l1:.2f} + 2 ({l2:.2f}) + 2 ({l3:.2f}) + ({l4:.2f})) / 6 = {WEIGHTS @ logits:.2f}")


def print_targets(x_t, t, h, drawn):
    """What the teacher makes of the posterior at x_t, in this draw and in the mean over draws."""
    targets = {
        "posterior at x_t": posterior("uniform", t)[x_t],
        "target, this draw": softmax(target_logits(drawn, t, h)),
        "target, all draws": expected_target(x_t, t, h),
    }
    print("\n                    token 1               token 2               entropy, nats")
    for name, p in targets.items():
        print(f"{name:19} {decimals(p[0])}   {decimals(p[1])}   {decimals(entropy(p))}")
    print("\nA student learns the last row, the mean over the 16^3 outcomes of the three jumps:")
    print("it is conditioned on x_t, t and h only, and this mean minimises the expected KL.")


def decimals(numbers):
    return " ".join(f"{number:.2f}" for number in numbers)


def main():
    rows = table_rows()
    print_table(rows)
    print_parts(rows)
    print_teacher()


if __name__ == "__main__":
    main()
