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

from config.command import stop
from data.tokenizer import MARKS, PAD
from sample import printable
from show.run import LABELS, STATUSES, statuses

try:
    import termios
    import tty
except ImportError:  # Windows: the finished texts alone
    termios = None

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


def words_of(run, step, tokenizer):
    """[(str, status)] of a state; the str of a word has the blank before it."""
    pieces = tokenizer.pieces(run.states[step].tolist())
    return list(zip([printable(p).replace(PAD, "·") for p in pieces], statuses(run, step)))


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
    for piece, status in line:  # blanks have no colour
        text += re.sub(r"[^ ].*", rf"\033[{SGR[status]}m\g<0>\033[0m", piece) if colour else piece
    return text + " " * (width - sum(len(piece) for piece, _ in line))


def pane(run, step, tokenizer, width, height):
    """`height` lines of `width` columns: two of whose run it is and how far, then the text."""
    name = LABELS[run.name] + (f": {run.verdict()}" if step == run.steps else "")
    clock = f"{run.seconds[step]:.2f} s  {step:,} of {run.steps:,} steps"
    body = wrap(words_of(run, step, tokenizer), width)
    lines = [text[:width].ljust(width) for text in (name, clock, "-" * width)]
    lines += [paint(line, width, colour=True) for line in body[: height - 3]]
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
        few = [run.seconds[-1] for run in runs if run.steps <= FEW_STEPS]
        self.slow_until = max(few, default=0)
        self.end = max(run.seconds[-1] for run in runs)
        self.slow = min(1, self.step_seconds / pace) if pace else 1
        self.fast = max(1, (self.end - self.slow_until) / REST_SECONDS) if pace else 1
        self.now, self.factor, self.paused = 0.0, 1, False

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
        told = f"shown {speed:.0f} times faster" if speed > 1.5 else "as fast as it ran"
        if speed < 0.95:
            told = f"shown {1 / speed:.0f} times slower than it ran"
        told = "finished" if self.now >= self.end else "paused" if self.paused else told
        return f"{self.now:.2f} s of the network's time, {told}"


# ------------------------------------------------------------------------------------------------
# the terminal


def picture(runs, clock, tokenizer, columns, lines):
    """The lines of the screen."""
    shown = runs[: max(1, (columns + 3) // (NARROWEST + 3))]
    width = (columns - 3 * (len(shown) - 1)) // len(shown)
    panes = [pane(run, run.step_at(clock.now), tokenizer, width, lines - 4) for run in shown]
    legend = "  ".join(f"\033[{SGR[name]}m{meaning.split(':')[0]}\033[0m"
                       for name, meaning in STATUSES.items())
    keys = "space pause, n next step, f faster, q quit"
    if len(shown) < len(runs):
        keys += f"; {len(runs) - len(shown)} more in a wider terminal"
    body = [" | ".join(row) for row in zip(*panes)]
    return [clock.line()[:columns], "", *body, legend, keys[:columns]]


def on_terminal():
    """Whether there is a terminal to race on. stop() if it is too small."""
    if termios is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    size = shutil.get_terminal_size()
    if size.columns < SMALLEST[0] or size.lines < SMALLEST[1]:
        stop(f"the terminal has {size.columns} x {size.lines} characters, and the race needs "
             f"{SMALLEST[0]} x {SMALLEST[1]}: make it larger")
    return True


@contextlib.contextmanager
def screen():
    """The alternate screen, with keys that are read one by one; all is put back at the end."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(ALTERNATE_SCREEN)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write(NORMAL_SCREEN)
        sys.stdout.flush()


def key_within(seconds):
    """The key that is pressed within so many seconds, or ""."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""


def show_race(runs, tokenizer, pace):
    """Replays the runs until all are finished and a key is pressed, or q."""
    clock, key = Clock(runs, pace), ""
    with screen():
        last = time.perf_counter()
        while key != "q" and not (key and clock.now >= clock.end):
            rows = picture(runs, clock, tokenizer, *shutil.get_terminal_size())
            sys.stdout.write(HOME + "\n".join(row + CLEAR_LINE for row in rows) + CLEAR_BELOW)
            sys.stdout.flush()
            key = key_within(FRAME)
            if key == " ":
                clock.paused = not clock.paused
            elif key == "n":
                clock.one_step()
            elif key == "f":
                clock.factor *= 2
            now = time.perf_counter()
            clock.advance(now - last)
            last = now


# ------------------------------------------------------------------------------------------------
# plain text: what stays on the screen, and all there is where it is no terminal


def finished_text(run, tokenizer, width=80, colour=False):
    """The finished text of a run under its heading; wrong words stand between !exclamation marks!
    where there is no colour."""
    words = []
    for piece, status in words_of(run, run.steps, tokenizer):
        word = piece.strip()
        if word and status == "wrong" and not colour:
            piece = piece.replace(word, f"!{word}!")
        words.append((piece, status if status == "wrong" else "settled"))
    first = f"{run.title}, {run.seconds[-1]:.2f} s: {run.verdict()}"
    lines = [paint(line, 0, colour) for line in wrap(words, width)]
    messages = [f"  {line}" for line in run.mistake_lines()]
    return "\n".join([first, "-" * min(width, len(first)), *lines, *messages])


def race(runs, tokenizer, pace, terminal):
    """The race, where there is a terminal for it, then the finished texts."""
    if terminal:
        show_race(runs, tokenizer, pace)
    width = min(100, shutil.get_terminal_size().columns)
    print("\n\n".join(finished_text(run, tokenizer, width, terminal) for run in runs))
    slow, fast = max(runs, key=lambda run: run.steps), min(runs, key=lambda run: run.steps)
    if slow.steps > fast.steps:
        print(f"\n{slow.steps:,} network calls against {fast.steps:,}; {slow.seconds[-1]:.2f} s "
              f"against {fast.seconds[-1]:.2f} s, {slow.seconds[-1] / fast.seconds[-1]:.0f} times "
              "as long")
