"""What a user can put right: one line on standard error, exit status 2."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """A wrong value, a missing file, a checkpoint that does not fit: `<what> <value>: <what to do>`."""

    alone = False  # of several processes, whether the others may not know of it


def remedy(error: OSError) -> str:
    """What a file could not do, and what helps: room only where the disk is full."""
    if isinstance(error, BrokenPipeError):
        return "what read the output ended first: let it read to the end, or write to a file"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}: {'make room' if full else 'mend that'}"


def some(names: Sequence[str]) -> str:
    """The first of them, in words."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def exits_on_user_error(main: Callable[P, int]) -> Callable[P, int]:
    """Wrap an entry point: a `UserError`, an `OSError` that nobody foresaw, or the end of memory becomes the line `error: …`
    and exit status 2, Ctrl-C 130; no traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # of a terminal that lacks a character
                stream.reconfigure(errors="backslashreplace")
        try:
            status = main(*args, **kwargs)
            if sys.stdout is not None:  # None: closed before the start
                sys.stdout.flush()
            return status
        except UserError as error:
            launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
            if error.alone or not launched or os.environ["RANK"] == "0":  # what all processes meet, one says
                print("error: " + " ".join(str(error).split()), file=sys.stderr)
            return 2
        except OSError as error:
            print(f"error: {remedy(error)}, then start again; what was saved stays", file=sys.stderr)
            try:
                if sys.stdout is not None:
                    sys.stdout.flush()
            except OSError:  # standard output is what failed: not again when the interpreter ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 2
        except (MemoryError, RuntimeError) as error:
            said = ("allocate memory", "out of memory", "ALLOC_FAILED")  # by torch and its libraries
            if not isinstance(error, MemoryError) and not any(words in str(error) for words in said):
                raise
            flags = "--batch_size, or if it was a training's check --eval_batch_size"
            print(f"error: memory does not suffice for so many images together: lower {flags}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what was kept, if anything was", file=sys.stderr)
            return 130

    return wrapped
