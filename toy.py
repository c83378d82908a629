"""The method in a world of 16 texts, where every number is exact: python toy.py (NumPy only).

A text is 2 tokens over 4 symbols, and TEXT is the distribution of texts. Bayes' rule replaces the
network, and matrix products replace samples. Each token of x_t is, with probability kappa(t) = t,
that of the text x_1, else that of the noise x_0. The source of x_0 is "uniform" (random tokens) or
"mask" (MASK everywhere).

Why few steps are hard: a step draws its tokens independently, given x_t. One step from noise draws
the product of marginals, in which the two tokens of a text do not agree. A later step sees what
the earlier ones drew, so more steps restore the agreement.

Four jump rules differ only in P(token changes). A token that changes goes to y ~ p, the posterior,
restricted to y != x_t. r = kappa'(t) / (1 - kappa(t)) is the rate, and S the share of the noise at
t that is still noise at t + h. The example is t = 0, h = 1/2, p(x_t) = 0.2, so r = 1 and S = 1/2.

    rule          P(token changes)                  example   scale r            forced move
    euler         (1 - exp(-h r)) (1 - p(x_t))      0.315     its value at t     no
    euler-forced  1 - exp(-h r (1 - p(x_t)))        0.330     its value at t     yes
    averaged      (1 - S) (1 - p(x_t))              0.400     averaged over h    no
    cumulative    1 - S ** (1 - p(x_t))             0.426     averaged over h    yes

"euler" is that of Meta's flow_matching library: r grows during the step, and its value at t moves
too little. Textbook Euler (Gat et al.) is h r (1 - p(x_t)), without the exponential. For kappa = t
this is "averaged", since then h r = 1 - S. "averaged" is exact if p is held still. "cumulative" is
FS-DFM's and adds the forced move: a token that jumps must change. Under the mask source p(MASK) = 0
and a masked token is written with probability 1 - S, which is MDLM's step (Sahoo et al. 2024). In
the last step S = 0, and "cumulative" would expel even a token with p(x_t) = 0.99: x_1 ~ p is drawn.

What each part is worth (uniform source, 8 steps; total variation from TEXT, 0.561 after one step):

    steps                             euler   euler-forced   averaged   cumulative
    uniform, t_i = i/n                0.118      0.110         0.097      0.087
    power 2, t_i = 1 - (1 - i/n)^2    0.113      0.086         0.067      0.028

The last steps of power 2 are small: later steps correct early errors, and none corrects the last.

Sources: Campbell et al. 2024, Gat et al. 2024 (discrete flow matching), Frans et al. 2024 (one step
learns what two half steps do), FS-DFM (arXiv 2509.20624: cumulative scalar, the teacher's four
calls). Read next: model.py, the network that learns the posterior.
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
# the four jump rules: P(token changes) from p_stay = p(x_t), for kappa(t) = t and r = 1 / (1 - t)


def survival(t, h):
    """S = (1 - kappa(t + h)) / (1 - kappa(t)) = exp(-integral of r over the step), in [0, 1]."""
    return np.maximum(1 - (t + h), 0) / (1 - t)


def cumulative(p_stay, t, h):
    """FS-DFM's cumulative scalar: r averaged over the step, and a forced move."""
    return 1 - survival(t, h) ** (1 - p_stay)


RULES = {
    "euler": lambda p_stay, t, h: (1 - np.exp(-h / (1 - t))) * (1 - p_stay),
    "euler-forced": lambda p_stay, t, h: 1 - np.exp(-h / (1 - t) * (1 - p_stay)),
    "averaged": lambda p_stay, t, h: (1 - survival(t, h)) * (1 - p_stay),
    "cumulative": cumulative,
}

# ------------------------------------------------------------------------------------------------
# the sampler's exact distribution


def time_grid(n, power):
    """The n + 1 times t_i = 1 - (1 - i/n)^power. Power 1: uniform steps; 2: steps that shrink."""
    return [1 - (1 - i / n) ** power for i in range(n + 1)]


def transition(source, p, t, h, last, rule="cumulative"):
    """p(x_{t+h} | x_t) of one step of the sampler with the posterior p (states, L, V), as a matrix
    (states, states)."""
    size = n_tokens(source)
    p = np.pad(p, [(0, 0), (0, 0), (0, size - V)])  # p(MASK) = 0
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
        p_state = p_state @ transition(source, posterior(source, t), t, h, last, rule)
    return p_state.reshape(size, size)[:V, :V]


# ------------------------------------------------------------------------------------------------
# the shortcut teacher, uniform source: one step of h learns where two steps of h/2 lead
#
#     l1 = logits(x_t, t)          x_a = jump(x_t, l1) of h/2
#     l2 = logits(x_a, t + h/2)    x_b = jump(x_a, l2) of h/2
#     l3 = logits(x_b, t + h/2)    x_c = jump(x_b, l3) of h/2
#     l4 = logits(x_c, t + h)      target = (l1 + 2 l2 + 2 l3 + l4) / 6

WEIGHTS = np.array([1, 2, 2, 1]) / 6


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def call_times(t, h):
    return [t, t + h / 2, t + h / 2, t + h]


def teacher_logits(t, h):
    """The logits of the four calls, (4, states, L, V), for every state that a call may see."""
    return np.log([posterior("uniform", time) for time in call_times(t, h)])


def teacher_jumps(t, h):
    """Transitions x_t -> x_a -> x_b -> x_c, (3, states, states): jumps of h/2, none a last step."""
    times = call_times(t, h)[:3]
    return [transition("uniform", posterior("uniform", s), s, h / 2, last=False) for s in times]


def draw_states(state, t, h, rng):
    """The states of the four calls, x_t, x_a, x_b, x_c, for one draw of the jumps. A state is an
    index into TEXTS."""
    drawn = [state]
    for jump in teacher_jumps(t, h):
        drawn.append(int(rng.choice(len(jump), p=jump[drawn[-1]])))
    return drawn


def expected_target(state, t, h):
    """The mean of softmax(target logits) over all 16^3 draws, (L, V): the student that minimises
    the expected KL(target || student) where x_t is TEXTS[state]."""
    to_a, to_b, to_c = teacher_jumps(t, h)
    p_draw = np.einsum("a,ab,bc->abc", to_a[state], to_b, to_c)  # (16, 16, 16)
    l1, l2, l3, l4 = teacher_logits(t, h) * WEIGHTS[:, None, None, None]  # (16, L, V) each
    logits = l1[state] + l2[:, None, None] + l3[None, :, None] + l4[None, None, :]
    return np.einsum("abc,abclv->lv", p_draw, softmax(logits))  # logits (16, 16, 16, L, V)


# ------------------------------------------------------------------------------------------------
# what is printed

STEPS = (1, 2, 4, 8, 16, 64)
ROWS = [("uniform", rule, power) for power in (1, 2) for rule in RULES]
ROWS += [("mask", "euler", 1), ("mask", "cumulative", 1), ("mask", "cumulative", 2)]


def print_table():
    print("Why few steps are hard: total variation between sampled texts and true texts\n")
    print("source   jump rule     grid    steps:" + "".join(f"{n:>7}" for n in STEPS))
    for source, rule, power in ROWS:
        texts = [sampled_distribution(source, n, rule, power) for n in STEPS]
        errors = "".join(f"{total_variation(p, TEXT):7.3f}" for p in texts)
        print(f"{source:8} {rule:13} {'uniform' if power == 1 else 'power 2':14}{errors}")


def print_teacher():
    """The posteriors that the four calls see in one draw of the jumps, and the targets."""
    state, t, h = TEXTS.index((0, 2)), 0.25, 0.5
    drawn = draw_states(state, t, h, np.random.default_rng(7))
    logits = teacher_logits(t, h)[range(4), drawn]  # (4, L, V)
    rows = {f"l{c + 1} at {TEXTS[drawn[c]]}, t = {time:.2f}": softmax(logits[c])
            for c, time in enumerate(call_times(t, h))}
    rows["target, this draw"] = softmax(np.tensordot(WEIGHTS, logits, axes=1))
    rows["target, all draws"] = expected_target(state, t, h)
    print(f"\n\nOne target of the shortcut teacher: x_t = {TEXTS[state]}, t = {t}, h = {h}\n")
    print(f"{'':24}first token           second token          entropy, nats")
    for name, p in rows.items():  # (L, V)
        entropy = -(p * np.log(p)).sum(-1)  # (L,)
        print(f"{name:24}" + "   ".join(decimals(row) for row in (*p, entropy)))


def decimals(numbers):
    return " ".join(f"{number:.2f}" for number in numbers)


if __name__ == "__main__":
    print_table()
    print_teacher()
