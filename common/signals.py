"""Ctrl-C and SIGTERM while training: the iteration under way is finished and saved."""

import signal


class StopRequest:
    """Remembers a Ctrl-C or SIGTERM in .signal, for the loop to act on. A second one ends the
    program at once. With `ignore` neither is acted on: of several processes the first alone
    saves, and torchrun ends the others after it."""

    def __init__(self, ignore=False):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if ignore else self.receive)

    def receive(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
