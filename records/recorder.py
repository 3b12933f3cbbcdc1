"""What the trainer hands over, written into the run folder and shown; a full disk is outlived."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from config import Config
from errors import UserError, remedy
from records import checkpoint
from records.progress import Teller, duration, warn
from records.run_folder import RunFolder


class Alarm:
    """A sign that training deceives itself: its radii grow while the check's robust accuracy falls.

    Attacks of few steps overestimate eps; a network that learns to hide from them looks safer to itself and is weaker.
    A fall counts if two checks in a row are below the best one by more than chance. images: of a check.
    """

    CHANCE = 2.0  # standard errors of a difference of two accuracies, each of so many images

    def __init__(self, config: Config, images: int) -> None:
        self.images, self.own_radii = max(images, 1), config.enlarges_margins
        self.remedies = "raise --nb_iter, or lower --lr" + (" or --refresh_interval" if config.refresh_interval else "")
        self.mean_eps: float | None = None
        self.best: tuple[float, float] | None = None  # mean eps and robust accuracy at the check of the largest
        self.fallen = 0  # checks in a row

    def look(self, rows: Iterable[dict[str, Any]]) -> str | None:
        """The rows of metrics as they come, or all of a run that is resumed -> a warning if it is time for one."""
        warning = None
        for row in rows:
            if row["kind"] == "train":
                self.mean_eps = row["mean_eps"] if self.own_radii else None
            elif row["split"] == "val" and self.mean_eps is not None:
                eps, robust = self.mean_eps, row["robust_acc"]
                if self.best is None or robust > self.best[1]:
                    self.best = eps, robust
                before, best = self.best
                chance = self.CHANCE * (2 * best * (1 - best) / self.images) ** 0.5
                self.fallen = self.fallen + 1 if eps > before and robust < best - chance else 0
                if self.fallen >= 2:
                    warning = (
                        f"step {row['step']}: training's mean eps rose from {before:.4f} to {eps:.4f} while robust "
                        f"accuracy on validation images fell from {best:.1%} to {robust:.1%}: its attacks no "
                        f"longer find what the check finds; {self.remedies}"
                    )
        return warning


class RunRecorder:
    """Writes what the trainer hands over into the run folder, and shows it.

    What cannot be written, because the disk is full, waits for the next save; training goes on meanwhile. step: where
    training begins. images: of a check.
    """

    def __init__(self, folder: RunFolder, config: Config, step: int, images: int) -> None:
        self.folder, self.config = folder, config
        self.tensorboard: Any = None
        if config.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard: the package is not installed: pip install tensorboard") from None
            self.tensorboard = SummaryWriter(str(folder.path), purge_step=step + 1)
        self.alarm = Alarm(config, images)
        self.teller = Teller(quiet=config.quiet)
        self.began = step
        self.measured: list[dict[str, Any]] | None = []  # train rows of which `_forecast` says its time; None: said
        self.waiting: list[tuple[str, Callable[[], None]]] = []  # what is to be written, in this order
        self.failed: OSError | None = None  # why the last write failed

    def __enter__(self) -> None:
        self.bar = self.teller.bar(self.config.max_steps, "step", done=self.began)
        # Without the time left, which `_forecast` says.
        self.bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self._to_tensorboard("close")

    def step(self) -> None:
        """A step was made. Its values are not read: on a GPU that would wait for the device."""
        self.bar.update()

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """More rows of metrics."""
        self._write("rows", lambda: self.folder.append(rows))
        if warning := self.alarm.look(rows):
            warn(f"warning: {warning}")
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float):
                    self._to_tensorboard("add_scalar", f"{row.get('split', 'train')}/{name}", value, row["step"])
            if row["kind"] == "eval":
                self.teller.note(
                    f"step {row['step']}, {row['split']}: clean {row['clean_acc']:.2%}, robust "
                    f"{row['robust_acc']:.2%}, mean margin {row['mean_margin']:.4f}"
                )
            elif row["kind"] == "train":
                self._show(row)

    def best(self, model: nn.Module, metrics: dict[str, dict[str, Any]]) -> None:
        """The best network so far. metrics: the rows of its check by split."""
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        content = {
            "epoch": metrics["val"]["epoch"],
            "model": weights,
            "config": self.config.to_dict(),
            "metrics": metrics,
        }
        self._forget("best")
        self._write("best", lambda: checkpoint.save(self.folder.best, content))

    def margins(self, eps: Tensor, step: int) -> None:
        """(N,) the radii of the training images after a check."""
        values = eps.cpu().numpy().copy()
        self._write("margins", lambda: self.folder.append_margins(values))
        self._to_tensorboard("add_histogram", "train/margins", values, step)

    def save(self, state: dict[str, Any]) -> None:
        """The state, once everything that belongs before it is written; `failed` says whether it was."""
        self._write("state", lambda: checkpoint.save(self.folder.last, state, previous=self.folder.previous))
        self._forget("state")  # the next one is newer

    def _forget(self, kind: str) -> None:
        self.waiting = [(name, write) for name, write in self.waiting if name != kind]

    def _write(self, kind: str, write: Callable[[], None]) -> None:
        self.waiting.append((kind, write))
        try:
            while self.waiting:
                self.waiting[0][1]()
                self.waiting.pop(0)
        except OSError as error:
            if self.failed is None:
                warn(f"warning: {self.folder.path}: cannot be written ({remedy(error)}): tried again at every save")
            self.failed = error
        else:
            if self.failed is not None:
                warn(f"{self.folder.path}: written again")
            self.failed = None

    def _to_tensorboard(self, method: str, *given: object) -> None:
        try:
            if self.tensorboard:
                getattr(self.tensorboard, method)(*given)
        except OSError as error:
            self.tensorboard = None
            warn(f"warning: --tensorboard: cannot be written ({error}): going on without it")

    def _show(self, row: dict[str, Any]) -> None:
        """A train row behind the bar; once, how long training will take at most."""
        if skipped := row.get("skipped_steps"):
            warn(f"warning: {skipped} steps up to {row['step']} were not finite and changed nothing")
        seen = "clean" if row["clean_loss"] is not None else "adv"  # adversarial training sees no clean image
        figures = row.get(f"{seen}_loss"), row.get(f"{seen}_acc"), row["mean_eps"] or 0.0
        if None not in figures:
            self.bar.set_postfix_str("loss {:.3f}, acc {:.1%}, mean eps {:.4f}".format(*figures), refresh=False)
        self._forecast(row)

    def _forecast(self, row: dict[str, Any]) -> None:
        """From the time of a pass and the passes of a step all of whose images are right: at first few are."""
        if self.measured is None:
            return
        self.measured.append(row)  # up to the first one it warms up
        pairs = [(one["step"] - before["step"], one["steps_per_second"]) for before, one in pairwise(self.measured)]
        taken, passes = (
            sum(steps / max(speed, 1e-4) for steps, speed in pairs),
            row["passes"] - self.measured[0]["passes"],
        )
        if taken > 5.0 and passes > 0:
            self.measured = None
            left = (self.config.max_steps - row["step"]) * self.config.batch_size * self.config.passes_an_image
            seconds = left * taken / passes
            if seconds > 30:
                self.teller.note(f"at most about {duration(seconds)} for the steps left, checks not counted")


class Silent(nullcontext[None]):
    """The recorder of every process but the first: it writes and shows nothing."""

    failed = None

    def ignore(self, *_: object) -> None:
        pass

    step = rows = best = margins = save = ignore
