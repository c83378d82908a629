"""The race in a terminal: runs of the same noise side by side, on one clock.

    python sample.py --race                     DFM in 1,024 steps, FS-DFM in 8, DFM in 8
    python sample.py --race dfm:256 dmd:4       runners of your own: MODEL:STEPS

Eight steps are over before the eye sees one. The clock therefore runs slower than it ran (the top
line says how many times), so that a step of the fastest runner takes --pace seconds. When all
runners of few steps are done, it speeds up for the rest. The seconds of each pane are those of the
network.

Keys: space pauses, n takes one step of the fastest runner, f is twice as fast, q quits.
"""

import contextlib
import os
import re
import select
import shutil
import sys
import time

from common.command import UserError, printable
from data.tokenizer import MARKS, PAD
from show.run import STATUSES, statuses

SGR = {  # colours of the 16 that every terminal has; each status differs in more than hue
    "noise": "2", "new": "1;30;46", "changed": "1;30;43", "settled": "", "wrong": "1;37;41",
}
SMALLEST = 60, 16  # columns, lines
NARROWEST = 36  # columns of a pane
FEW_STEPS = 64  # steps of a run that the slow clock waits for
REST_SECONDS = 8  # of the faster clock, for what is left
FRAME = 0.05  # seconds between two pictures

ALTERNATE_SCREEN, NORMAL_SCREEN = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
HOME, CLEAR_LINE, CLEAR_BELOW = "\033[H", "\033[K", "\033[J"

# ------------------------------------------------------------------------------------------------
# a pane: the lines of one run


def words_of(run, step, tokenizer, mask_id):
    """[(str, status)] of a state; the str of a word has the blank before it."""
    ids = run.states[step].tolist()
    texts = iter(tokenizer.pieces([i for i in ids if i != mask_id]))
    pieces = ["_" if i == mask_id else printable(next(texts)).replace(PAD, "·") for i in ids]
    return list(zip(pieces, statuses(run, step)))


def wrap(words, width):
    """Lines of at most `width` columns: lists of (str, status). The first word of a line loses its
    blank."""
    lines, used = [[]], 0
    for piece, status in words:
        for part in re.split(r"(\n)", piece):
            room = width - used - (part not in MARKS)  # a mark stays behind its word
            if part == "\n" or (len(part) > room and lines[-1]):
                lines.append([])
                used = 0
                part = part.strip()
            part = part[:width]
            if part:
                lines[-1].append((part, status))
                used += len(part)
    return lines


def paint(line, width, colour):
    """One line, padded to `width` columns."""
    text = ""
    for piece, status in line:
        word = piece.lstrip(" ")
        blank = piece[: len(piece) - len(word)]
        text += f"{blank}\033[{SGR[status]}m{word}\033[0m" if colour and word else piece
    return text + " " * (width - sum(len(piece) for piece, _ in line))


def heading(run, step, width):
    """Two lines: whose run, how far it is, and what came of it."""
    calls = f"{step:,} of {run.steps:,} steps"
    done = step == run.steps
    second = f"{run.seconds[step]:.2f} s  {calls}"
    first = f"{run.label}: {run.verdict()}" if done else run.label
    return [first[:width].ljust(width), second[:width].ljust(width)]


def pane(run, step, tokenizer, mask_id, width, height, colour=True):
    """`height` lines of `width` columns."""
    body = wrap(words_of(run, step, tokenizer, mask_id), width)
    lines = heading(run, step, width) + ["-" * width]
    lines += [paint(line, width, colour) for line in body[: height - 3]]
    if len(body) > height - 3:
        lines[-1] = "...".ljust(width)
    return lines + [" " * width] * (height - len(lines))


# ------------------------------------------------------------------------------------------------
# the clock


class Clock:
    """The network's own seconds, told slower or faster than they passed."""

    def __init__(self, runs, pace):
        fastest = min(runs, key=lambda run: run.seconds[-1])
        self.step_seconds = fastest.seconds[-1] / fastest.steps
        self.slow = min(1, self.step_seconds / pace) if pace else 1
        few = [run.seconds[-1] for run in runs if run.steps <= FEW_STEPS]
        self.slow_until = max(few, default=0)
        self.end = max(run.seconds[-1] for run in runs)
        self.fast = max(1, (self.end - self.slow_until) / REST_SECONDS) if pace else 1
        self.now, self.factor, self.paused = 0.0, 1, False
        self.display_is_slow = False

    def speed(self):
        """Seconds of the network in one second of the viewer."""
        return self.factor * (self.slow if self.now < self.slow_until else self.fast)

    def advance(self, seconds):
        """Lets so many seconds of the viewer pass; none while it is paused."""
        if self.paused:
            return
        now = self.now + seconds * self.speed()
        if self.now < self.slow_until < now:  # the speed changes here
            now = self.slow_until
        self.now = min(self.end, now)

    def one_step(self):
        """Goes on by one step of the fastest runner, and pauses."""
        self.now, self.paused = min(self.end, self.now + self.step_seconds), True

    def line(self):
        speed = self.speed()
        if self.now >= self.end:
            told = "finished"
        elif self.paused:
            told = "paused"
        elif speed < 0.95:
            told = f"shown {1 / speed:.0f} times slower than it ran"
        else:
            told = f"shown {speed:.0f} times faster" if speed > 1.5 else "as fast as it ran"
        if self.display_is_slow:
            told += " (and the display is too slow for that)"
        return f"{self.now:.2f} s of the network's time, {told}"


# ------------------------------------------------------------------------------------------------
# the terminal


def panes_that_fit(runs, columns):
    return runs[: max(1, (columns + 3) // (NARROWEST + 3))]


def picture(runs, clock, tokenizer, mask_id, columns, lines):
    """The lines of the screen."""
    shown = panes_that_fit(runs, columns)
    width = (columns - 3 * (len(shown) - 1)) // len(shown)
    marks = [f"\033[{SGR[name]}m{meaning.split(':')[0]}\033[0m"
             for name, meaning in STATUSES.items()]
    legend = "  ".join(marks)
    keys = "space pause, n next step, f faster, q quit"
    hidden = len(runs) - len(shown)
    if hidden:
        keys += f"; {hidden} more in a wider terminal"
    height = lines - 4
    columns_of_text = [
        pane(run, run.step_at(clock.now), tokenizer, mask_id, width, height) for run in shown
    ]
    body = [" | ".join(row) for row in zip(*columns_of_text)]
    return [clock.line()[:columns], "", *body, legend, keys[:columns]]


def terminal_size():
    """(columns, lines). UserError if the race has no room there."""
    size = shutil.get_terminal_size()
    if size.columns < SMALLEST[0] or size.lines < SMALLEST[1]:
        raise UserError(
            f"the terminal has {size.columns} x {size.lines} characters, and the race needs "
            f"{SMALLEST[0]} x {SMALLEST[1]}: make it larger"
        )
    return size.columns, size.lines


@contextlib.contextmanager
def screen():
    """The alternate screen, with keys that are read one by one; all is put back at the end."""
    with single_keys():
        try:
            sys.stdout.write(ALTERNATE_SCREEN)
            yield
        finally:
            sys.stdout.write(NORMAL_SCREEN)
            sys.stdout.flush()


@contextlib.contextmanager
def single_keys():
    """Keys are handed over when they are pressed, not after Enter."""
    try:
        import termios
        import tty
    except ImportError:  # Windows, where key_within asks for them one by one
        os.system("")  # makes the console understand colours and cursor movements
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def key_within(seconds):
    """The key that is pressed within so many seconds, or ""."""
    try:
        import msvcrt  # on Windows alone
    except ImportError:
        ready, _, _ = select.select([sys.stdin], [], [], max(0, seconds))
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""
    end = time.perf_counter() + seconds
    while not msvcrt.kbhit():
        if time.perf_counter() >= end:
            return ""
        time.sleep(0.01)
    return msvcrt.getwch()


def obey(key, clock):
    """What a key does. Returns whether the race goes on."""
    if key == " ":
        clock.paused = not clock.paused
    elif key == "n":
        clock.one_step()
    elif key == "f":
        clock.factor *= 2
    return key not in ("q", "\x04")


def show_race(runs, tokenizer, mask_id, pace):
    """Replays the runs until all are finished and a key is pressed, or q."""
    clock = Clock(runs, pace)
    terminal_size()
    with screen():
        last = time.perf_counter()
        goes_on = True
        while goes_on:
            try:
                columns, lines = terminal_size()
                rows = picture(runs, clock, tokenizer, mask_id, columns, lines)
            except UserError as error:  # made smaller meanwhile
                rows = [str(error)[: shutil.get_terminal_size().columns]]
            rows = [row + CLEAR_LINE for row in rows]
            sys.stdout.write(HOME + "\n".join(rows) + CLEAR_BELOW)
            sys.stdout.flush()
            finished = clock.now >= clock.end
            key = key_within(FRAME)
            goes_on = obey(key, clock) and not (finished and key)
            now = time.perf_counter()
            clock.display_is_slow = now - last > 5 * FRAME
            clock.advance(min(now - last, 5 * FRAME))
            last = now


# ------------------------------------------------------------------------------------------------
# plain text: what stays on the screen, and all there is where it is no terminal


def finished_text(run, tokenizer, mask_id, width=80, colour=False):
    """The finished text of a run under its heading; wrong words stand between !exclamation marks!
    where there is no colour."""
    words = [(piece, status if status == "wrong" else "settled")
             for piece, status in words_of(run, run.steps, tokenizer, mask_id)]
    if not colour:
        words = mark_wrong(words)
    first = f"{run.label}, {run.steps:,} steps, {run.seconds[-1]:.2f} s: {run.verdict()}"
    lines = [paint(line, 0, colour) for line in wrap(words, width)]
    messages = [f"  word {m.position + 1}: {m.message}" for m in run.mistakes]
    return "\n".join([first, "-" * min(width, len(first)), *lines, *messages])


def mark_wrong(words):
    """The words, the wrong ones between exclamation marks."""
    marked = []
    for piece, status in words:
        word = piece.strip()
        marked.append((piece.replace(word, f"!{word}!"), status)
                      if word and status == "wrong" else (piece, status))
    return marked


def race(runs, tokenizer, mask_id, pace):
    """The race on a terminal, then the finished texts; elsewhere the texts alone."""
    notebook = "JPY_PARENT_PID" in os.environ  # Jupyter's `!` looks like a terminal without keys
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not notebook
    if on_terminal:
        show_race(runs, tokenizer, mask_id, pace)
    width = min(100, shutil.get_terminal_size().columns)
    texts = [finished_text(run, tokenizer, mask_id, width, on_terminal) for run in runs]
    print("\n\n".join(texts))
    slow, fast = max(runs, key=lambda run: run.steps), min(runs, key=lambda run: run.steps)
    if slow.steps > fast.steps:
        calls = f"{slow.steps:,} network calls against {fast.steps:,}"
        seconds = f"{slow.seconds[-1]:.2f} s against {fast.seconds[-1]:.2f} s"
        factor = slow.seconds[-1] / fast.seconds[-1]
        print(f"\n{calls}; {seconds}, {factor:.0f} times as long")
