"""6. The shortcut teacher.

One step of h should predict what two steps of h/2 predict. The teacher is asked four times, always
with the step size h/2, and jumps three times, each jump of size h/2:

    l1 = teacher(x_t, t)              x_a = jump(x_t, l1) at t
    l2 = teacher(x_a, t + h/2)        x_b = jump(x_a, l2) at t + h/2
    l3 = teacher(x_b, t + h/2)        x_c = jump(x_b, l3) at t + h/2
    l4 = teacher(x_c, t + h)          target = (l1 + 2 l2 + 2 l3 + l4) / 6
"""


def target(teacher, jump, x_t, t, h):
    """The target's logits. teacher(x, t, h) gives logits, jump(x, logits, t, h) the next tokens; t
    and h are floats."""
    half = h / 2
    l1 = teacher(x_t, t, half)
    x_a = jump(x_t, l1, t, half)
    l2 = teacher(x_a, t + half, half)
    x_b = jump(x_a, l2, t + half, half)
    l3 = teacher(x_b, t + half, half)
    x_c = jump(x_b, l3, t + half, half)
    l4 = teacher(x_c, t + h, half)
    return (l1 + 2 * l2 + 2 * l3 + l4) / 6
