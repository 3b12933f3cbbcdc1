"""The run folder: config.json, metrics.jsonl, margins.npy, TensorBoard; where the checkpoints lie.

`metrics.jsonl` holds one JSON object a line (DESIGN in the README); `margins.npy` the per-example radii, float16,
(checks, training examples), one row for each per-epoch check.
"""

from __future__ import annotations

import io
import json
import math
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

from checkpoint import write_atomically
from errors import UserError


class RunFolder:
    """One training run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.margins_file = path / "margins.npy"
        self.last, self.previous, self.best = path / "last.pt", path / "last.prev.pt", path / "model_best.pt"

    def holds_a_run(self) -> bool:
        return any(f.exists() for f in (self.config_file, self.metrics_file, self.last, self.previous, self.best))

    def prepare(self) -> None:
        """Make the folder, and remove what an interrupted write left.

        :raises UserError: if it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stray in self.path.glob(".*.tmp"):
                stray.unlink()
            probe = self.path / ".probe.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--savepath {self.path}: cannot be written ({error.strerror}): choose another folder"
            ) from None

    def read_config(self) -> dict | None:
        """The stored config, or None.

        :raises UserError: if the file is not JSON.
        """
        try:
            return json.loads(self.config_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config_file}: cannot be read ({error}): mend it or choose another --savepath"
            ) from None

    def write_config(self, config: dict, device: torch.device) -> None:
        """Every field of the config, plus package versions, device and git commit."""
        content = {**config, "environment": environment(device)}
        write_atomically(self.config_file, (json.dumps(content, indent=2) + "\n").encode())

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl, without a half-written last line."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
        return rows

    def checked_steps(self) -> set[int]:
        """Steps at which a check on the validation set was made."""
        return {row["step"] for row in self.rows() if row["kind"] == "eval" and row["split"] == "val"}

    def append(self, row: dict) -> None:
        """One more line of metrics.jsonl; values that are not finite become null, as JSON has none."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def append_margins(self, eps: np.ndarray) -> None:
        """One more row (training examples,) of margins.npy."""
        row = eps.astype(np.float16)[None]
        self._write_margins(np.concatenate([np.load(self.margins_file), row]) if self.margins_file.exists() else row)

    def cut_back(self, step: int, checked_step: int) -> None:
        """Forget every row after `step`, and every check after `checked_step`."""
        kept = [row for row in self.rows() if row["step"] <= (checked_step if row["kind"] == "eval" else step)]
        write_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept).encode())
        if self.margins_file.exists():
            self._write_margins(np.load(self.margins_file)[: len(self.checked_steps())])

    def _write_margins(self, margins: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, margins)
        write_atomically(self.margins_file, buffer.getvalue())


class TensorBoard:
    """The rows of metrics.jsonl as scalars, and the margins as a histogram."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard: the package is not installed: pip install tensorboard") from None
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def row(self, row: dict) -> None:
        group = row.get("split", "train")
        for name, value in row.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{group}/{name}", value, row["step"])

    def margins(self, eps: np.ndarray, step: int) -> None:
        self.writer.add_histogram("train/margins", eps, step)

    def close(self) -> None:
        self.writer.close()


def environment(device: torch.device) -> dict:
    """Package versions, device and git commit of this program."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name}, {torch.get_num_threads()} threads)",
        "git_commit": commit.stdout.strip() or None,
    }
