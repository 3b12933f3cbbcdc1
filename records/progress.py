"""What a long command shows while it works: tqdm's bar, and messages that the bar does not swallow."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TextIO

import tqdm

EVERY = {True: 0.1, False: 30.0}  # seconds between drawings on a terminal, and in a log


class Bar(tqdm.tqdm):  # type: ignore[type-arg]  # which it takes in its stubs alone
    """tqdm's, which outlives a log file on a full disk."""

    def display(self, *given: Any, **named: Any) -> None:
        with suppress(OSError):
            super().display(*given, **named)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Teller:
    """What a long command says. speaks: of several processes the first one does. quiet: no bars and no notes."""

    def __init__(self, speaks: bool = True, quiet: bool = False) -> None:
        self.speaks, self.quiet = speaks, quiet

    def say(self, *texts: str) -> None:
        """Warnings and closing lines."""
        for text in texts if self.speaks else ():
            tell(text)

    def note(self, *texts: str) -> None:
        """What one may want to know while it works."""
        if not self.quiet:
            self.say(*texts)

    def bar(self, total: int, unit: str, done: int = 0) -> Bar:
        """A bar over `total` pieces of work, of which so many are done already."""
        closed = sys.stderr is None  # before the start
        every, hidden = EVERY[not closed and sys.stderr.isatty()], closed or self.quiet or not self.speaks
        return Bar(total=total, initial=done, unit=unit, mininterval=every, maxinterval=max(every, 10), disable=hidden)


def tell(text: str, file: TextIO | None = None) -> None:
    """A line above any bar, on standard output if not to `file`; lost if it goes to a log file on a full disk."""
    stream = file or sys.stdout
    with suppress(OSError):
        if stream is not None:  # None: closed before the start
            tqdm.tqdm.write(text, file=stream)
            stream.flush()  # a log is read while it is written


def warn(text: str) -> None:
    """On standard error."""
    tell(text, sys.stderr)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
