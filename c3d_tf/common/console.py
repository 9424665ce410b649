# SPDX-License-Identifier: Apache-2.0
"""What a person sees while work goes on: one line of progress, with rate and time left."""

import contextlib
import os
import re
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterable

# What TensorFlow's C++ says at start-up before any log level is heeded; errors are kept.
_CHATTER = re.compile(rb'WARNING: All log messages before absl|[IW]0000 |E0000 .*cuInit|To enable the following instr')


def say(text: str = '') -> None:
    print(text, flush=True)


def redraw(line: str) -> None:
    """Shows a line in place of the last one on a terminal, and below it elsewhere."""
    if sys.stdout.isatty():
        room = os.get_terminal_size().columns - 1
        while columns(line) > room:  # a second row could not be taken back
            line = line[:-1]
        print(f'\r\x1b[2K{line}', end='', flush=True)
    else:
        say(line)


def columns(text: str) -> int:
    """Returns how many columns of a terminal the text takes: a Chinese letter two, an accent none."""
    return sum(0 if unicodedata.category(letter) in ('Mn', 'Me', 'Cf') else
               2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def aligned(texts: Iterable[str]) -> list[str]:
    """Returns the texts with spaces behind, all as wide as the widest."""
    texts = list(texts)
    widest = max(map(columns, texts), default=0)
    return [text + ' ' * (widest - columns(text)) for text in texts]


def duration(seconds: float) -> str:
    """Returns '8s', '2m05s' or '3h20m'."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds}s'
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'


class Progress:
    """One line that rewrites itself on a terminal, and a plain line now and then elsewhere.

    Args:
      what: the line's first word, e.g. 'prepare train'.
      total: how many units there are in all; 0 where nobody knows.
      unit: the plural of what is counted, e.g. 'videos'.
      done: units that an earlier run finished; they do not count for the rate.
      every: seconds between two plain lines.
      show: False where another process shows the progress of all.
    """

    def __init__(self, what: str, total: int, unit: str, *, done: int = 0, every: float = 10.0,
                 show: bool = True):
        self._hidden = not show
        self._what, self._total, self._unit, self._every = what, total, unit, every
        self._first = self._done = done
        self._start = self._last = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def rate(self) -> float:
        """Returns units a second since the start."""
        return (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def update(self, done: int, extra: str = '') -> None:
        """Shows that `done` units are finished, when the last line is old enough."""
        self._done = done
        now = time.monotonic()
        if self._hidden or now - self._last < (0.2 if self._terminal else self._every):
            return
        self._last = now
        rate = self.rate()
        known = rate and self._total >= done
        left = f'ETA {duration((self._total - done) / rate)}' if known else 'ETA ?'
        redraw(f'{self._what}: {done}/{self._total or "?"} {self._unit} · '
               f'{rate:.1f} {self._unit}/s · {left}{extra and " · " + extra}')

    def close(self, extra: str = '') -> None:
        """Shows the last line: how many units in how long."""
        if self._hidden:
            return
        took = duration(time.monotonic() - self._start)
        redraw(f'{self._what}: {self._done}/{self._total} {self._unit} in {took}'
               f'{extra and " · " + extra}')
        if self._terminal:
            say()

    def clear(self) -> None:
        """Takes the line back, where what follows says it all."""
        if self._terminal:
            print('\r\x1b[2K', end='', flush=True)


@contextlib.contextmanager
def quiet():
    """Keeps TensorFlow's start-up chatter off standard error; everything else is shown after."""
    sys.stderr.flush()
    keep = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(keep, 2)
            os.close(keep)
            said.seek(0)
            for line in said:
                if not _CHATTER.match(line):
                    os.write(2, line)
