"""The race in a terminal: runs of the same noise side by side, on one clock.

Four steps are over before the eye sees one. While they are shown, the clock therefore runs slower
than the network did (the top line says how many times). Then it is true: the longest run is shown
while the network computes it.
"""

import contextlib
import math
import os
import re
import select
import shutil
import sys
import textwrap
import time

from config.command import stop
from data.tokenizer import MARKS, PAD, UNKNOWN
from sample import printable
from show.run import (
    FEW_STEPS, LABELS, STATUSES, conclusion, longest_and_shortest, statuses, title,
)

try:
    import termios
    import tty
except ImportError:  # Windows: the finished texts alone
    termios = None

PLAIN = bool(os.environ.get("NO_COLOR"))  # no-color.org
SGR = {  # colours of the 16 that every terminal has; each status differs in more than hue
    "noise": "2", "new": "1;30;46", "changed": "1;30;43", "settled": "", "wrong": "1;37;41",
    "title": "1",
}
if PLAIN:
    SGR |= {"new": "1", "changed": "4", "wrong": "7"}  # bold, underlined, reverse
SMALLEST = 75, 22  # columns, lines
NARROWEST = 36  # columns of a pane
FRAME = 0.05  # seconds between two pictures
HOLD = 0.5  # seconds of the viewer in which a word that changed stays marked

# while it runs, and at the end
KEYS = "space pause, b back, q quit", "r replay, b back, s seed, q quit"

ALTERNATE_SCREEN, NORMAL_SCREEN = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
HOME, CLEAR_LINE, CLEAR_BELOW = "\033[H", "\033[K", "\033[J"

# ------------------------------------------------------------------------------------------------
# rows: lists of (str, style), a style being one of SGR


def words_of(run, step, tokenizer, since=None):
    """The words of a state, each with the blank before it. In a finished text only what is wrong is
    marked; the padding token is not shown, nor is [unk] as noise."""
    words = []
    pieces = map(printable, tokenizer.pieces(run.states[step].tolist()))
    for piece, status in zip(pieces, statuses(run, step, since)):
        if piece.strip() == PAD or (piece.strip(), status) == (UNKNOWN, "noise"):
            continue
        words.append((piece, "settled" if step == run.steps and status != "wrong" else status))
    return words


def wrap(words, width):
    """Rows of at most `width` columns. The first word of a row loses its blank."""
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


def row_of(text, width, style="settled"):
    return [(text[:width].ljust(width), style)]


def paint(row, colour=True):
    """A row as a str. Blanks have no colour; without it wrong words are between !exclamation
    marks!."""
    text = ""
    for part, style in row:
        if colour and SGR[style]:
            part = re.sub(r"[^ ].*", rf"\033[{SGR[style]}m\g<0>\033[0m", part)
        elif style == "wrong":
            part = re.sub(r"\S+", r"!\g<0>!", part)
        text += part
    return text


def pane(run, runs, clock, tokenizer, width):
    """Rows of `width` columns: whose run it is, how far, the text, and at the end what is wrong
    with it."""
    step, since = clock.steps_of(run)
    told, below = f"step {step:,} of {run.steps:,}", "-" * width
    body = wrap(words_of(run, step, tokenizer, since), width)
    if step == run.steps:
        told, below = f"{run.seconds[-1]:.2f} s, {run.verdict()}", run.tally() or below
        for mistake in run.mistakes or []:
            body += [[(part, "title")] for part in textwrap.wrap(str(mistake), width)]
    head = row_of(f"{LABELS[run.name]}, {told}", width)
    blanks = [(" " * (width - sum(len(text) for text, _ in row)), "settled") for row in body]
    return [row_of(title(run, runs), width, "title"), head, row_of(below, width),
            *([*row, blank] for row, blank in zip(body, blanks))]


def fit(rows, width, height):
    """So many rows; how many more there are, if they have no room."""
    if len(rows) > height:
        rows = [*rows[: height - 1], row_of(f"... {len(rows) - height + 1} more lines", width)]
    return rows + [row_of("", width)] * (height - len(rows))


def time_bars(runs, now, end, width, block="\u2588"):
    """The seconds of the longest run and of the shortest as bars of one scale: a str for each."""
    lines = []
    for run in longest_and_shortest(runs)[: len(runs)]:
        seconds = min(now, run.seconds[-1])
        told = run.verdict() if run.finished and seconds == run.seconds[-1] else ""
        text = f"{title(run, runs):<24}{seconds:>6.2f} s  {told:<12}"
        lines.append(text + block * max(1, int((width - len(text)) * seconds / end)))
    return lines


def picture(runs, clock, tokenizer, columns, lines, keys=("", "")):
    """The rows of the screen: the clock, and the keys while it runs and at the end; two times; as
    many panes as fit (the last runs); a legend, or the conclusion."""
    shown = runs[-max(1, (columns + 3) // (NARROWEST + 3)) :]
    width = (columns - 3 * (len(shown) - 1)) // len(shown)
    over = clock.finished()
    first = f"seed {runs[0].seed}: {clock.line()}".ljust(columns - len(keys[over])) + keys[over]
    bars = time_bars(runs, clock.now, clock.end(), columns)
    below = [[part for name, meaning in STATUSES.items()
              for part in ((meaning.split(":")[0], name), ("  ", "settled"))]]
    if over:
        below = [row_of(text, columns, "title")
                 for text in textwrap.wrap(conclusion(runs), columns)]
    height = lines - 1 - len(bars) - len(below)
    panes = [fit(pane(run, runs, clock, tokenizer, width), width, height) for run in shown]
    rows = [[part for row in rows for part in (*row, (" | ", "settled"))][:-1]
            for rows in zip(*panes)]
    return [*(row_of(text, columns) for text in (first, *bars)), *rows, *below]


# ------------------------------------------------------------------------------------------------
# the clock


class Clock:
    """The network's own seconds. Runs of few steps are finished before it starts; a step of the
    fastest of them is shown for `pace` seconds, and the rest in `rest` seconds at most."""

    def __init__(self, runs, pace, rest=math.inf):
        few = [run for run in runs if run.steps <= FEW_STEPS]
        self.runs, self.rest, self.now, self.paused = runs, rest, 0.0, False
        self.slow_until = max((run.seconds[-1] for run in few), default=0)
        step = min((run.seconds[-1] / run.steps for run in few), default=math.inf)
        self.slow = min(1, step / pace) if pace else 1

    def end(self):
        """The seconds of the longest run; of one that is still running an estimate."""
        return max(run.seconds[-1] * (run.steps / max(1, len(run.seconds) - 1))
                   for run in self.runs)

    def finished(self):
        return all(run.finished for run in self.runs) and self.now >= self.end()

    def speed(self):
        """Seconds of the network in one second of the viewer."""
        if self.now < self.slow_until:
            return self.slow
        return max(1, (self.end() - self.slow_until) / self.rest)

    def advance(self, seconds, limit):
        """Lets so many seconds of the viewer pass; none while it is paused."""
        if not self.paused:
            before, self.now = self.now, min(limit, self.now + seconds * self.speed())
            if before < self.slow_until < self.now:  # the speed changes here
                self.now = self.slow_until

    def back(self):
        """To the step before, of the run of fewest steps, and paused."""
        run = min(self.runs, key=lambda run: run.steps)
        self.now, self.paused = run.seconds[max(0, run.step_at(self.now) - 1)], True

    def steps_of(self, run):
        """The finished steps of a run, now and when its marks begin. Runs of as many steps move
        together."""
        leader = next(other for other in self.runs if other.steps == run.steps)
        step = leader.step_at(self.now)
        return step, max(0, min(step - 1, leader.step_at(self.now - HOLD * self.speed())))

    def line(self):
        speed = self.speed()
        told = "shown as fast as it ran"
        if speed > 1.5:
            told = f"shown {speed:.0f} times faster"
        elif speed < 0.7:
            told = f"shown {1 / speed:.0f} times slower"
        told = "finished" if self.finished() else "paused" if self.paused else told
        return f"{self.now:.2f} s of the networks, {told}"


# ------------------------------------------------------------------------------------------------
# the terminal


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


class Quit(Exception):
    """The viewer has pressed q."""


def key_within(seconds):
    """The key that is pressed within so many seconds, or "". Raises Quit for q."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    key = os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""
    if key == "q":
        raise Quit
    return key


class Show:
    """What is on the screen, and when it was drawn."""

    def __init__(self, runs, tokenizer):
        self.runs, self.tokenizer, self.clock = runs, tokenizer, Clock(runs, pace=0.5)
        self.looked, self.drawn = time.perf_counter(), 0

    def draw(self):
        size = shutil.get_terminal_size()
        rows = picture(self.runs, self.clock, self.tokenizer, *size, KEYS)
        sys.stdout.write(HOME + "\n".join(paint(row) + CLEAR_LINE for row in rows) + CLEAR_BELOW)
        sys.stdout.flush()
        self.drawn = time.perf_counter()

    def until(self, seconds):
        """Draws until the clock is at so many seconds of the network."""
        while self.clock.now < seconds:
            now = time.perf_counter()
            self.clock.advance(now - self.looked, seconds)
            self.looked = now
            if now - self.drawn > FRAME:
                self.draw()
            key = key_within(0 if self.clock.now >= seconds else FRAME)
            if key == " ":
                self.clock.paused = not self.clock.paused
            elif key == "b":
                self.clock.back()


def show_race(runners, run, count, tokenizer, seed):
    """Shows the race until the viewer quits. run(runner, seed, on_step) -> Run, and count(runs,
    seed) counts right stories. Returns the runs that are finished."""
    live = max(range(len(runners)), key=lambda i: runners[i][1])
    show, key, others, tally = None, "s", [], ()

    def on_step(running):  # a long run is shown while it runs, a short one afterwards
        nonlocal show
        if running.steps > FEW_STEPS or running.finished:
            show = show or Show([*others[:live], running, *others[live:]], tokenizer)
            show.until(running.seconds[-1])

    with contextlib.suppress(Quit), screen():
        while True:
            if key == "s":
                others = [run(runner, seed) for runner in runners[:live] + runners[live + 1 :]]
                show = None
                run(runners[live], seed, on_step)
                tally = count(show.runs, seed)
                seed += 1
            elif key == "r":
                show = Show(show.runs, tokenizer)
            elif key == "b":
                show.clock.back()
            show.until(show.clock.end())
            for _ in tally:  # it goes on after a replay
                show.draw()
                if (key := key_within(0)) in ("b", "r", "s"):
                    break
            else:
                show.draw()
                key = key_within(1)
    return [run for run in (show.runs if show else others) if run.finished]


# ------------------------------------------------------------------------------------------------
# plain text: what stays on the screen, and all there is where it is no terminal


def print_end(runs, tokenizer, colour):
    """The finished texts, how many more stories are right, the times and the conclusion."""
    width = min(100, shutil.get_terminal_size().columns)
    clock = Clock(runs, pace=0)
    clock.now = math.inf
    for run in runs:
        for row in pane(run, runs, clock, tokenizer, width):
            print(paint(row, colour and not PLAIN).rstrip())
        print()
    if runs:
        print(*time_bars(runs, math.inf, clock.end(), width, "#"), sep="\n")
        print(textwrap.fill(conclusion(runs), width))
