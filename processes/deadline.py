"""`--max_minutes`: what must end before a time is over, saving included, asks this clock before each piece of work."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from processes.distributed import is_launched
from utils import age_of_process

AGAIN = os.EX_TEMPFAIL  # 75, the exit status of what was stopped by the clock and is to be started again
RECENT = 20  # pieces of work of a kind whose longest is expected next: long enough for its usual swings
SLACK = 1.5  # times what is expected
UNMEASURED = 1.0  # seconds, expected of a save before there was one
ENDING, OF_THE_START = 2.0, 0.5  # seconds that ending takes: these, and this share of what starting took


class Deadline:
    """Says before each piece of work whether it, and the save that must follow, no longer fit.

    Work is what lies between two calls of `over`; of each kind the longest of the last `RECENT` is expected again. One
    piece is always let through, so that the smallest number of minutes gets on. minutes: None is never. spent: seconds
    that were over when it was made. agree: of several processes the first one's clock counts; of the numbers 0 and 1
    that each gives, the largest over all.
    """

    def __init__(
        self,
        minutes: float | None,
        spent: float = 0.0,
        agree: Callable[[int], int] = int,
        is_first: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.agree, self.is_first, self.clock = agree, is_first, clock
        self.end = math.inf if minutes is None else clock() - spent + 60 * minutes - ENDING - OF_THE_START * spent
        self.seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self.begun: tuple[str, float] | None = None  # the work let through last, and when
        self.passed = False

    def over(self, work: str) -> bool:
        """Whether it is time to save and stop instead of a piece of `work`; once true it stays so, on every process."""
        if self.end == math.inf:
            return False
        self._ended()
        left = self.end - self.clock() - SLACK * (self._expected(work, 0.0) + self._expected("save", UNMEASURED))
        some_done = any(kind != "save" for kind in self.seconds)
        self.passed = self.passed or bool(self.agree(int(self.is_first and some_done and left <= 0)))
        if not self.passed:
            self.begun = work, self.clock()
        return self.passed

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What is done inside is a save; it is not counted as work."""
        self._ended()
        start = self.clock()
        yield
        self.seconds["save"].append(self.clock() - start)

    def _ended(self) -> None:
        if self.begun is not None:
            work, start = self.begun
            self.seconds[work].append(self.clock() - start)
            self.begun = None

    def _expected(self, work: str, unmeasured: float) -> float:
        return max(self.seconds[work]) if work in self.seconds else unmeasured


NEVER = Deadline(None)


def since_start() -> float:
    """Seconds since this program was started, its imports and its launcher's included."""
    return age_of_process(os.getppid() if is_launched() else os.getpid())
