"""Few-step text diffusion, written by you: docs/exercises.md says how, in ten exercises.

    python -m pytest exercises         which of them are right
    python -m exercises.diffusion      a story, written by your code (from exercise 5 on)

Where a function says `raise NotImplementedError`, your code goes. B texts have L tokens of V
symbols. Token ids are int64, and kappa(t) = t, except in exercise 6.
"""

import math

import torch

# ------------------------------------------------------------------------------------------------
# from text to noise, and what the noise says of the text


def sample_path(x_1, x_0, t):
    """1. x_t (B, L) at times t (B,): each token is that of the text x_1 (B, L) with probability t,
    else that of the noise x_0 (B, L), and decides for itself."""
    raise NotImplementedError


def posterior(text, x_t, t):
    """2. p(x_1[i] = y | x_t), (2, V), a row for each token, by Bayes' rule.

    Texts have two tokens, and text[a, b] (V, V) is the probability of the text (a, b). x_t is a
    pair of ints, t a float in [0, 1). A token of x_t is text with probability t, else one of V
    random symbols:

        p(x_1 | x_t) is proportional to p(x_1) p(x_t[0] | x_1[0]) p(x_t[1] | x_1[1])
    """
    raise NotImplementedError


def dfm_loss(logits, x_1, x_t, t):
    """3. Generalised KL of every token, (B, L), for logits (B, L, V), x_1 and x_t (B, L), t (B,):

        1 / (1 - t) ([x_t = x_1] - p(x_t) - [x_t != x_1] log p(x_1)),    p = softmax(logits)

    [...] is 1 if it is true, else 0.
    """
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------
# from noise to text


def jump(x_t, logits, t, h, last):
    """4. One step of FS-DFM: tokens at t + h, (B, L), for x_t (B, L), logits (B, L, V), floats t
    and h, and a bool: does no step follow?

        S = (1 - (t + h)) / (1 - t)        P(a token jumps) = 1 - S^(1 - p(x_t))

    A token that jumps goes to a y != x_t, drawn from p without x_t. The last step draws every token
    from p.
    """
    raise NotImplementedError


def generate(model, x, times):
    """5. Noise x (B, L) -> text (B, L), by a jump from each of the times to the next. times is a
    list of floats from 0 to 1. model(x, t, h) gives logits (B, L, V); its t and h are (B,)."""
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------
# a student for large steps


def cumulative_scalar(t, h):
    """6. The rate r(s) = kappa'(s) / (1 - kappa(s)), averaged over the step from t to t + h, in
    closed form and for kappa(t) = t^2; floats, t + h < 1:

        g(t, h) = (1 / h) integral of r(s) ds from t to t + h
    """
    raise NotImplementedError


def shortcut_target(teacher, step, x_t, t, h):
    """7. The logits that a step of h should predict: a weighted mean over two steps of h/2.

        l1 = teacher(x_t, t)              x_a = step(x_t, l1) from t to t + h/2
        l2 = teacher(x_a, t + h/2)        x_b = step(x_a, l2) from t + h/2 to t + h
        l3 = teacher(x_b, t + h/2)        x_c = step(x_b, l3) from t + h/2 to t + h
        l4 = teacher(x_c, t + h)          target = (l1 + 2 l2 + 2 l3 + l4) / 6

    In code it is teacher(x, t, h) and step(x, logits, t, h), where h is the size of a half step.
    """
    raise NotImplementedError


def student_loss(logits, target, x_1, x_t, t, h):
    """8. The student's loss of every token, (B, L). logits and target are (B, L, V), of which
    target has no gradient; x_1 and x_t (B, L), t and h (B,).

        h > 2 / L     KL(teacher || student) = sum_v q(v) (log q(v) - log p(v)), q = softmax(target)
        h <= 2 / L    the loss of exercise 3, against the text
    """
    raise NotImplementedError


def time_grid(steps):
    """9. The times 0 = t_0 < ... < t_n = 1 of so many steps, a list of floats."""
    raise NotImplementedError


def measure(texts, true):
    """10. How well texts (N, L) are distributed as true texts (M, L), a float: higher is better."""
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------
# a story


def main():
    from sample import WEIGHTS, load_model

    torch.manual_seed(1)
    model, tokenizer = load_model(f"{WEIGHTS}/fsdfm.pt")
    noise = torch.randint(model.config.vocab_size, (1, model.config.block_size))
    times = [i / 16 for i in range(17)]  # after exercise 9: time_grid(8)
    with torch.no_grad():
        print(tokenizer.decode(generate(model, noise, times)[0].tolist()))


if __name__ == "__main__":
    main()
