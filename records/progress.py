"""What a long command shows while it works: a bar on a terminal, a line now and then in a log; no message is swallowed."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    Tqdm = tqdm[Any]
LOG_EVERY = 30.0  # seconds between lines where there is no terminal
MEASURED_FOR = 5.0  # seconds of work from which the rest is forecast
WORTH_SAYING = 30.0  # seconds of work left, from which the forecast is said


class Progress:
    """A bar over `total` pieces of work, of which `done` are done already; a context.

    After some seconds of work it says once how long the rest will take, if that is long. quiet: nothing is shown.
    beside: what that time does not hold, as "checks not counted". warm: the first piece is like all others.
    """

    def __init__(
        self, total: int, unit: str, *, done: int = 0, quiet: bool = False, beside: str = "", warm: bool = False
    ) -> None:
        self._total, self.unit, self.done, self.quiet, self.beside = total, unit, done, quiet, beside
        self.warm = warm
        self.measured_from: tuple[float, int] | None = None  # since when, and how many were done then
        self.said = False
        self.bar: Tqdm | None = None

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, count: int) -> None:
        self._total = count
        if self.bar is not None:
            self.bar.total = count

    def __enter__(self) -> Self:
        if not self.quiet:
            self.bar = _bar(self.total, self.done, self.unit)
        if self.warm:
            self.measured_from = time.monotonic(), self.done
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self.bar is not None:
                self.bar.close()

    def update(self, count: int = 1) -> None:
        """So many more pieces are done."""
        self.done += count
        if self.bar is None:
            return
        with suppress(OSError):  # a log file on a full disk
            self.bar.update(count)
        if not self.said:
            self._forecast(time.monotonic())

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.moving(text) if refresh else self.note(text)

    def note(self, text: str) -> None:
        """Shown behind the bar from its next update on."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def moving(self, text: str) -> None:
        """The same, shown as soon as the next bar or line is due, though no piece is done."""
        self.note(text)
        if self.bar is not None and time.time() - self.bar.last_print_t >= self.bar.mininterval:
            with suppress(OSError):
                self.bar.refresh()
            self.bar.last_print_t = time.time()

    def fewer(self, count: int) -> None:
        """So many pieces need not be done."""
        self.total -= count

    def _forecast(self, now: float) -> None:
        if self.measured_from is None:  # the first piece also warms up
            self.measured_from = now, self.done
            return
        since, before = self.measured_from
        if now - since < MEASURED_FOR or self.done == before:
            return
        self.said = True
        left = (self.total - self.done) * (now - since) / (self.done - before)
        if left > WORTH_SAYING:
            beside = f", {self.beside}" if self.beside else ""
            tell(f"about {duration(left)} for the {self.total - self.done} {self.unit}s left{beside}")


Bar = Progress


def _bar(total: int, done: int, unit: str) -> Tqdm:
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True)
    plain = f"{{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} gone, {{remaining}} left, {{rate_fmt}}{{postfix}}"
    # With miniters 1 and no maxinterval the time alone decides when a line is due.
    log: Any = _Log(sys.stderr)
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        file=log,
        bar_format=plain,
        mininterval=LOG_EVERY,
        maxinterval=float("inf"),
        miniters=1,
        delay=LOG_EVERY,
    )


class _Log:
    """A file for tqdm that makes a line of each of its bars: it would draw one over the other."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> None:
        """One bar, which begins with a carriage return; what only moves the cursor is left out."""
        if line := text.strip():
            self.file.write(line + "\n")

    def flush(self) -> None:
        self.file.flush()


def tell(text: str, file: TextIO | None = None) -> None:
    """A line above any bar, on standard output if not to `file`; lost if it goes to a log file on a full disk."""
    with suppress(OSError):
        tqdm.write(text, file=file or sys.stdout)
        (file or sys.stdout).flush()  # a log is read while it is written


class Teller:
    """What a long command says. speaks: of several processes the first one does. quiet: no bars and no notes."""

    def __init__(self, speaks: bool = True, quiet: bool = False) -> None:
        self.speaks, self.quiet = speaks, quiet

    def say(self, text: str) -> None:
        """Warnings and closing lines."""
        if self.speaks:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """What one may want to know while it works."""
        if not self.quiet:
            self.say(text)

    def bar(self, total: int, unit: str, *, done: int = 0, warm: bool = False) -> Progress:
        """A bar that is as quiet."""
        return Progress(total, unit, done=done, quiet=self.quiet or not self.speaks, warm=warm)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
