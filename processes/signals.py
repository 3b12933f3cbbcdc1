"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask a run to stop after its step; a second one ends it at once.

Schedulers send the last three before they end a job, and a terminal SIGHUP when it closes; under nohup that stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_SIGNAL = 2.0  # seconds: a launcher passes on what the terminal already sent to all
PATIENCE = 20.0  # seconds until a process that waits for others in vain exits


class StopSignals:
    """Inside, these signals are noted; calling it says whether the run is to stop, on every process alike.

    agree: of the number that each process received (0: none), the largest over all. launched: whether a launcher may pass
    a signal on a second time, and other processes may keep this one waiting.
    """

    def __init__(self, agree: Callable[[int], int] = lambda number: number, launched: bool = False) -> None:
        self.agree, self.launched = agree, launched
        self.number = 0  # what this process received
        self.agreed = 0
        self.at = 0.0

    def __enter__(self) -> StopSignals:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [number for number in STOPPING if number != signal.SIGHUP or not ignored]
        self.before = {number: signal.signal(number, self._handle) for number in heard}
        if self.launched:
            self.over = threading.Event()
            self.woken, wakes = os.pipe()
            os.set_blocking(wakes, False)
            self.wakeup_before = signal.set_wakeup_fd(wakes)
            self.wakes = wakes
            threading.Thread(target=self._exit_if_nothing_ends, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.launched:
            signal.set_wakeup_fd(self.wakeup_before)
            self.over.set()
            os.close(self.wakes)

    def __call__(self) -> bool:
        self.agreed = self.agreed or self.agree(self.number)
        if self.agreed and self.launched:
            self.over.set()  # the processes have met; what follows is the save
        return self.agreed > 0

    def _handle(self, number: int, _frame: object) -> None:
        if self.number and time.monotonic() - self.at < SAME_SIGNAL:
            return
        if self.number or not self.launched:
            for each in self.before:
                signal.signal(each, signal.SIG_DFL)
        if self.number:
            signal.raise_signal(number)
        self.number, self.at = number, time.monotonic()
        os.write(2, b"\nstopping after this step; once more ends at once\n")  # safe within a signal handler

    def _exit_if_nothing_ends(self) -> None:
        """In a thread: Python's handlers wait while the main thread waits for another process, this one does not."""
        while received := os.read(self.woken, 1):
            if received[0] not in self.before:
                continue  # other handlers wake it too, as DataLoader's for its workers
            if not self.over.wait(PATIENCE):
                with suppress(OSError):
                    os.write(2, b"no step ended: exit without saving; the last saved state is whole\n")
                os._exit(128 + received[0])
        os.close(self.woken)
