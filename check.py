"""The check after each epoch: accuracy, robust accuracy at a fixed radius, and the margin of every image of a split.

B batch, N images of the split. Images in [0, 1]; eps and margins are radii in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anpgd import Search
from config import Config
from loading.batches import Batch, Split
from losses import LOSSES, logit_margin
from pgd import LossFn, PgdFn, as_rows, pgd
from processes.distributed import ALONE, World
from utils import CHECK, eval_mode, row_noise


class Check(NamedTuple):
    """A network's figures on one split."""

    clean_acc: float
    robust_acc: float  # against PGD at the fixed test radius
    margins: Tensor  # (N,) radius of the zero crossing along PGD's direction; 0 where misclassified
    passes: int  # how often an image went through the network

    @property
    def mean_margin(self) -> float:
        return float(self.margins.double().mean())


class Measured(NamedTuple):
    """What a check has of a split so far."""

    found: Tensor  # (N, 3) right, robust, margin of each image; 0 where this process has not measured it
    done: int  # so many first images are measured, by one process or another

    @classmethod
    def nothing(cls, split: Split) -> Measured:
        """At its start."""
        return cls(torch.zeros(len(split), 3, device=split.labels.device), 0)

    def of_another(self) -> Measured:
        """The same for a process that leaves it to the first one to hold what all have found."""
        return Measured(torch.zeros_like(self.found), self.done)


@dataclass(frozen=True)
class Checker:
    """PGD at the fixed radius `eps`, then the zero crossing of the logit margin along its direction; all in eval mode."""

    norm: str
    eps: float
    step_size: float
    steps: int
    loss_fn: LossFn
    search: Search
    batch_size: int
    seed: int
    attack: PgdFn = pgd  # or what runs it faster

    def __call__(
        self,
        model: nn.Module,
        split: Split,
        *key: int,
        stop: Callable[[], bool] = lambda: False,
        world: World = ALONE,
    ) -> Check | None:
        """The figures of `model` on `split`; random starts are keyed by (seed, `key`, image).

        None if `stop()` became true on the way. Of several processes each takes whole batches, so that what an image
        gets does not depend on their number.
        """
        return self.go_on(model, split, key, Measured.nothing(split), stop, world)[0]

    def go_on(
        self,
        model: nn.Module,
        split: Split,
        key: tuple[int, ...],
        begun: Measured,
        stop: Callable[[], bool],
        world: World,
    ) -> tuple[Check | None, Measured]:
        """The same from what was `begun` on, which is written into; and what has been measured when it ends."""
        found, start = begun
        rows = torch.arange(start, len(split)).split(self.batch_size) if start < len(split) else ()
        with eval_mode(model), closing(split.batches(rows[world.rank :: world.size])) as batches:
            for first in range(0, len(rows), world.size):
                if stop():
                    has = Measured(world.total(found), start + first * self.batch_size)
                    return None, has if world.is_first else has.of_another()
                if first + world.rank < len(rows):
                    batch = next(batches)
                    found[batch.index] = self._measure(model, batch, split.numbers[batch.index], key)
        total = world.total(found)
        right, robust, margins = total.unbind(1)
        attacked = int(right.sum())
        passes = len(split) + attacked * (self.steps + 1 + self.search.steps)
        figures = Check(attacked / len(split), float(robust.double().mean()), margins.contiguous(), passes)
        has = Measured(total, len(split))
        return figures, has if world.is_first else has.of_another()

    def _measure(self, model: nn.Module, batch: Batch, numbers: Tensor, key: tuple[int, ...]) -> Tensor:
        """(B, 3): right, robust, margin of each image; numbers (B,) are the images' own."""
        found = torch.zeros(len(batch.y), 3, device=batch.y.device)
        with torch.no_grad():
            right = logit_margin(model(batch.x), batch.y) < 0
        x, y, numbers = batch.x[right], batch.y[right], numbers[right]
        if not len(y):
            return found
        noise = row_noise(numbers, x.shape[1:], self.seed, CHECK, *key).to(x)
        how = {"loss_fn": self.loss_fn, "norm": self.norm, "eps": self.eps, "step_size": self.step_size}
        x_adv = self.attack(model, x, y, **how, steps=self.steps, noise=noise)
        with torch.no_grad():
            robust = logit_margin(model(x_adv), y) < 0
        direction = (x_adv - x) / self.eps
        margins = self.search(model, x, y, direction, as_rows(self.eps, x)).eps
        found[right] = torch.stack([torch.ones_like(margins), robust.to(margins), margins], dim=1).float()
        return found


def checker_of(config: Config, attack: PgdFn = pgd, batch_size: int | None = None) -> Checker:
    """The check that belongs to a config, or to the training of a checkpoint."""
    return Checker(
        config.norm,
        config.test_eps,
        config.test_eps_iter,
        config.check_nb_iter or config.nb_iter,
        LOSSES[config.attack_loss_fn],
        Search(logit_margin, config.search_maxeps, config.check_search_steps),
        batch_size or config.eval_batch_size,
        config.seed,
        attack,
    )


def check_split(model: nn.Module, split: Split, config: Config, *key: int) -> Check:
    """The check of a whole split, by the settings of a training."""
    check = checker_of(config)(model, split, *key)
    assert check is not None  # nothing stops it
    return check
