"""What the trainer hands over, written into the run folder and shown; a full disk is outlived."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor

from objectives import StepResult
from records import checkpoint
from records.progress import Progress, tell
from records.runlog import RunFolder, TensorBoard
from trainer import Trainer
from training.alarm import Alarm


class RunRecorder:
    """Writes what the trainer hands over into the run folder, and shows it.

    What cannot be written, because the disk is full, waits for the next save; training goes on meanwhile.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, device: torch.device) -> None:
        self.folder = folder
        self.tensorboard = TensorBoard(folder.path, trainer.step) if trainer.config.tensorboard else None
        self.reads_are_free = device.type == "cpu"
        self.shown_at = 0.0
        self.alarm = Alarm(min(len(trainer.data.val), trainer.config.check_size or len(trainer.data.val)))
        self.total, self.quiet = trainer.config.max_steps, trainer.config.quiet
        self.bar = Progress(self.total, "step", done=trainer.step, quiet=self.quiet, beside="checks not counted")
        self.waiting: list[tuple[str, Callable[[], None]]] = []  # what is to be written, in this order
        self.failed: OSError | None = None  # why the last write failed

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *_: object) -> None:
        self.bar.__exit__()
        self._on_tensorboard(lambda board: board.close())

    def step(self, result: StepResult) -> None:
        self.bar.update()
        # On a GPU reading a value waits for the device: there the bar follows the train rows only.
        if self.reads_are_free and time.monotonic() - self.shown_at > 0.5:
            self.shown_at = time.monotonic()
            count = len(result.eps)
            loss = float(result.clean_loss) or float(result.adv_loss)  # adversarial training has no clean one
            self._show(loss, int(result.correct) / count, float(result.eps.mean()))

    def rows(self, rows: list[dict[str, Any]]) -> None:
        self._write("rows", lambda: self.folder.append(rows))
        if warning := self.alarm.look(rows):
            tell(f"warning: {warning}", sys.stderr)
        for row in rows:
            self._on_tensorboard(methodcaller("row", row))
            if row["kind"] == "eval" and not self.quiet:
                tell(
                    f"step {row['step']}, {row['split']}: clean {row['clean_acc']:.2%}, robust {row['robust_acc']:.2%}, "
                    f"mean margin {row['mean_margin']:.4f}"
                )
            elif row["kind"] == "train":
                self._show_row(row)

    def best(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        weights = {name: value.detach().cpu().clone() for name, value in trainer.model.state_dict().items()}
        content = {"epoch": trainer.epoch, "model": weights, "config": trainer.config.to_dict(), "metrics": metrics}
        self.waiting = [(kind, write) for kind, write in self.waiting if kind != "best"]
        self._write("best", lambda: checkpoint.save(self.folder.best, content))

    def margins(self, eps: Tensor, step: int) -> None:
        values = eps.cpu().numpy().copy()
        self._write("margins", lambda: self.folder.append_margins(values))
        self._on_tensorboard(lambda board: board.margins(values, step))

    def save(self, trainer: Trainer) -> None:
        """The state, once everything that belongs before it is written; `failed` says whether it was."""
        self.waiting = [(kind, write) for kind, write in self.waiting if kind != "state"]
        self._write("state", lambda: checkpoint.save(self.folder.last, trainer.state(), previous=self.folder.previous))
        self.waiting = [(kind, write) for kind, write in self.waiting if kind != "state"]  # the next one is newer

    def _on_tensorboard(self, work: Callable[[TensorBoard], None]) -> None:
        try:
            if self.tensorboard:
                work(self.tensorboard)
        except OSError as error:
            self.tensorboard = None
            tell(f"warning: --tensorboard: cannot be written ({error}): going on without it", sys.stderr)

    def _write(self, kind: str, write: Callable[[], None]) -> None:
        self.waiting.append((kind, write))
        try:
            while self.waiting:
                self.waiting[0][1]()
                self.waiting.pop(0)
        except OSError as error:
            if self.failed is None:
                tell(
                    f"warning: {self.folder.path}: cannot be written ({error}): training goes on and tries again at every save; "
                    "make room",
                    sys.stderr,
                )
            self.failed = error
        else:
            if self.failed is not None:
                tell(f"{self.folder.path}: written again", sys.stderr)
            self.failed = None

    def _show_row(self, row: dict[str, Any]) -> None:
        if skipped := row.get("skipped_steps"):
            tell(f"warning: {skipped} steps up to {row['step']} were not finite and changed nothing", sys.stderr)
        if self.reads_are_free:
            return
        seen = "clean" if row["clean_loss"] is not None else "adv"  # adversarial training sees no clean image
        loss, accuracy = row.get(f"{seen}_loss"), row.get(f"{seen}_acc")
        if loss is not None and accuracy is not None:
            self._show(loss, accuracy, row["mean_eps"] or 0.0)

    def _show(self, loss: float, accuracy: float, mean_eps: float) -> None:
        self.bar.note(f"loss {loss:.3f}, acc {accuracy:.1%}, mean eps {mean_eps:.4f}")


class Silent(nullcontext[None]):
    """The recorder of every process but the first: it writes and shows nothing."""

    failed = None

    def ignore(self, *_: object) -> None:
        pass

    step = rows = best = margins = save = ignore
