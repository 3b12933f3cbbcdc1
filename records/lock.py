"""One program in a folder at a time: flock, and in the locked file who holds it, renewed as a heartbeat.

flock ends with its process, however that ends, but on some file systems it does not reach other hosts. For them the file
holds process and host, and its modification time is renewed: after `STALE` seconds without that the holder is taken for
dead. Both ends of that time are stamped by the file system, so the hosts' clocks need not agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from errors import UserError

NAME = ".lock"
HEARTBEAT, STALE = 20.0, 300.0  # seconds


class Holder(NamedTuple):
    """Who a lock file names."""

    pid: int
    host: str


class FolderLock:
    """Keeps other processes out of a folder between `acquire` and `release`, or until this process ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: TextIO | None = None
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock of the folder, which must be there; nothing happens if it is had.

        :raises UserError: if another process holds it; if this file system has no locks.
        :raises OSError: if the file cannot be written.
        """
        if self._file is not None:
            return
        file = self.path.open("a+")
        try:
            self._take(file)
            file.truncate(0)
            json.dump(Holder(os.getpid(), platform.node())._asdict(), file)
            file.flush()
        except BaseException:
            with suppress(OSError):  # a full disk is met again when what is left of the text is written
                file.close()
            raise
        self._file, self._released = file, threading.Event()
        self._heart = threading.Thread(target=_beat, args=(file, self._released), daemon=True)
        self._heart.start()

    def _take(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _described(_holder(file))
            raise UserError(
                f"--savepath {self.path.parent}: another process trains here ({who}): wait for it, stop it, or "
                "choose another folder"
            ) from None
        except OSError as error:
            raise UserError(
                f"--savepath {self.path.parent}: this file system has no locks ({error.strerror}): choose a folder "
                "on another"
            ) from None
        holder = _holder(file)
        if holder is None or holder.host == platform.node():
            return
        age = _time_of_file_system(self.path.parent) - os.fstat(file.fileno()).st_mtime
        if age < STALE:
            raise UserError(
                f"--savepath {self.path.parent}: another process trains here ({_described(holder)}, heartbeat "
                f"{max(age, 0):.0f} s ago): wait for it, or choose another folder; if it is dead, start again in "
                f"{STALE - age:.0f} s, or remove {self.path}"
            )

    def release(self) -> None:
        """Give the lock back and name nobody in the file, so that another host need not wait for it to go stale."""
        if self._file is None or self._heart is None:
            return
        self._released.set()
        self._heart.join()
        with suppress(OSError):
            self._file.truncate(0)
            self._file.close()
        self._file = None


def _time_of_file_system(folder: Path) -> float:
    """Now, as a file there is stamped: on a network disk by its server, whatever this host's clock says."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{NAME}.", suffix=".tmp") as file:
        os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def _holder(file: TextIO) -> Holder | None:
    """Who is named in a lock file; None if nobody is, or it cannot be understood."""
    file.seek(0)
    try:
        content = json.loads(file.read(1000))
        return Holder(int(content["pid"]), str(content["host"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _described(holder: Holder | None) -> str:
    return "unknown" if holder is None else f"process {holder.pid} on {holder.host}"


def _beat(file: TextIO, released: threading.Event) -> None:
    """Renew the modification time until `released`; keeps the file open, and with it the lock, until then."""
    while not released.wait(HEARTBEAT):
        with suppress(OSError):  # the next beat may succeed
            os.utime(file.fileno())
