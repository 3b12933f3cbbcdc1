"""The run folder: config.json, metrics.jsonl, margins.npy, where the checkpoints lie, and its lock.

`metrics.jsonl` holds one JSON object a line; `margins.npy` the per-example radii, float16,
(checks, training examples), one row for each per-epoch check.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torchvision

from config import SPLITS
from errors import UserError
from records.progress import tell
from records.reading import parse_json, read_margins
from utils import sync, temporary_name, write_atomically


class RunFolder:
    """One training run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.margins_file = path / "margins.npy"
        self.last, self.previous, self.best = path / "last.pt", path / "last.prev.pt", path / "model_best.pt"
        self.files = (self.config_file, self.metrics_file, self.margins_file, self.last, self.previous, self.best)
        self._locked: TextIO | None = None

    def lock(self) -> None:
        """Keep other processes out of this folder, which must be there, until `unlock` or the end of this one.

        Where the file system has no locks a line says so, and nothing keeps them out.

        :raises UserError: if another process trains here.
        :raises OSError: if the file cannot be written.
        """
        if self._locked is not None:
            return
        file = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read(1000) or "unknown"
            file.close()
            raise UserError(
                f"--savepath {self.path}: another process trains here ({who}): choose another folder"
            ) from None
        except OSError as error:
            tell(f"--savepath {self.path}: no locks here ({error.strerror}): start no second run in this folder")
        self._locked = file
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()

    def unlock(self) -> None:
        """Let others in."""
        if self._locked is not None:
            self._locked.truncate(0)
            self._locked.close()
            self._locked = None

    def prepare(self) -> None:
        """Make and lock the folder, and remove what an interrupted write left.

        :raises UserError: as `lock`.
        :raises OSError: if it cannot be made or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        for file in self.files:
            temporary_name(file)

    def read_config(self) -> dict[str, Any] | None:
        """The stored config, or None.

        :raises UserError: if the file is not JSON.
        """
        try:
            config = parse_json(self.config_file.read_bytes())
            if not isinstance(config, dict):
                raise ValueError("not a JSON object")
            return config
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config_file}: cannot be read ({error}): mend it or choose another --savepath"
            ) from None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a half-written last line.

        :raises UserError: if another line is damaged.
        """
        lines = self.metrics_file.read_text(errors="replace").splitlines() if self.metrics_file.exists() else []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = parse_json(line)
                if type(row["step"]) is not int or (row["kind"] == "eval" and row["split"] not in SPLITS):
                    raise ValueError("not a row")
                rows.append(row)
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    raise UserError(
                        f"{self.metrics_file}: line {number} is damaged: mend it, or choose another --savepath"
                    ) from None
        return rows

    def checked_steps(self) -> set[int]:
        """Steps at which the network was checked."""
        return {row["step"] for row in self.rows() if row["kind"] == "eval" and row["split"] == "val"}

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """More lines of metrics.jsonl, in one write; values that are not finite become null, as JSON has none."""
        clean = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows
        ]
        with self.metrics_file.open("ab", buffering=0) as file:
            before = file.tell()
            lines = "".join(json.dumps(row) + "\n" for row in clean).encode()
            try:
                if file.write(lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(file.fileno())
            except OSError:
                file.truncate(before)  # all of it or nothing
                raise

    def append_margins(self, eps: np.ndarray) -> None:
        """One more row (training examples,) of margins.npy."""
        self._write_margins(np.concatenate([self._read_margins(len(eps)), eps.astype(np.float16)[None]]))

    def cut_back(self, step: int, checked_step: int, count: int) -> None:
        """Forget every row after `step`, and every check after `checked_step`; count: training examples."""
        kept = [row for row in self.rows() if row["step"] <= (checked_step if row["kind"] == "eval" else step)]
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        if self.margins_file.exists():
            self._write_margins(self._read_margins(count)[: len(self.checked_steps())])

    def _read_margins(self, count: int) -> np.ndarray:
        """The rows so far; (0, count) where there are none."""
        if not self.margins_file.exists():
            return np.empty((0, count), np.float16)
        try:
            margins = read_margins(self.margins_file)
            if margins.shape[1] != count:
                raise ValueError(f"of {margins.shape[1]} training images instead of {count}")
            return margins
        except ValueError as error:
            raise UserError(f"{self.margins_file}: damaged ({error}): remove it; only this record is lost") from None

    def _write_margins(self, margins: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, margins)
        write_atomically(self.margins_file, buffer.getvalue())


def environment(device: torch.device) -> dict[str, Any]:
    """Package versions, device and git commit of this program."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name}, {torch.get_num_threads()} threads)",
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit this program was run from, with -dirty if it was changed; None outside a clone or without git."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
