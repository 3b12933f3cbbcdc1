"""The check after an epoch as a run makes it: which images, in which batches, and the rows it leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from check import Check, Measured, checker_of
from config import Config
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.memory import BatchSize
from hardware.precision import tf32
from loading.batches import Split, first_images
from loading.datasets import Dataset
from pgd import PgdFn
from processes.distributed import World


class EpochCheck:
    """The checks of one run, on `model`, which moves on between them."""

    def __init__(self, config: Config, model: nn.Module, data: Dataset, world: World, rows: int | None) -> None:
        self.config, self.model, self.data, self.world = config, model, data, world
        tune = layout_for(data.val.labels.device, config.precision, config.deterministic).tune
        self.attack = FastPgd(model, config.precision, rows=rows, tune=tune)
        self.batch = BatchSize(config.eval_batch_size, "--eval_batch_size", warnings.warn)
        self.passes = 0  # how often an image went through the network in the checks so far
        self.begun: dict[str, Measured] = {}  # of a check that was stopped on the way: what it has, by split
        self.begun_at = -1  # the step of that check

    def state_dict(self) -> dict[str, Any]:
        """What a check that was stopped has measured; {} if none was."""
        return (
            {"step": self.begun_at, "begun": {name: list(has) for name, has in self.begun.items()}}
            if self.begun
            else {}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that check."""
        self.begun_at = int(state.get("step", -1))
        device = self.data.val.labels.device
        has = {name: Measured(found.to(device), int(done)) for name, (found, done) in state.get("begun", {}).items()}
        self.begun = has if self.world.is_first else {name: one.of_another() for name, one in has.items()}

    def rows(self, step: int, epoch: int, stop: Callable[[], bool]) -> list[dict[str, Any]] | None:
        """One row of metrics for validation and one for test images; None if stopped on the way: the next call with this
        step goes on from there."""
        rows, passes = [], self.passes
        self.begun, self.begun_at = self.begun if self.begun_at == step else {}, step
        for number, (name, split) in enumerate(self._splits(step).items()):
            if not len(split):
                continue
            self.begun.setdefault(name, Measured.nothing(split))
            found = self._check(name, split, (number, step), stop)
            if found is None:
                return None
            passes += found.passes
            figures = {
                "clean_acc": found.clean_acc,
                "robust_acc": found.robust_acc,
                "mean_margin": found.mean_margin,
                "check_passes": passes,
            }
            smaller = {"eval_batch_size": self.batch.used} if self.batch.used < self.batch.asked else {}
            rows.append({"kind": "eval", "split": name, "step": step, "epoch": epoch, **figures, **smaller})
        self.passes, self.begun = passes, {}
        return rows

    def _splits(self, step: int) -> dict[str, Split]:
        splits = {"val": first_images(self.data.val, self.config.check_size)}
        if step >= self.config.max_steps or not self.config.test_at_end:
            splits["test"] = self.data.test
        return splits

    def _check(self, name: str, split: Split, key: tuple[int, int], stop: Callable[[], bool]) -> Check | None:
        def check(size: int, attack: PgdFn) -> Check | None:
            checker = checker_of(self.config, attack, size)
            with tf32(self.config.precision != "fp32"), torch.no_grad():
                found, self.begun[name] = checker.go_on(self.model, split, key, self.begun[name], stop, self.world)
                return found

        if self.world.size > 1:  # every process goes on with the same batches
            return check(self.batch.asked, self.batch.attack(self.attack))
        return self.batch.run(lambda size: check(size, self.attack.resize(size)))
