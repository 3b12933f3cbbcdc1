"""The check after each epoch: accuracy, robust accuracy at a fixed radius, and the margin of every image of a split.

B batch, N images of the split. Images in [0, 1]; eps and margins are radii in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anpgd import Search
from config import Config
from loading.batches import Batch, Split, first_images
from loading.datasets import Dataset
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
        found = torch.zeros(len(split), 3, device=split.labels.device)  # right, robust, margin
        rows = torch.arange(len(split)).split(self.batch_size)
        with eval_mode(model), closing(split.batches(rows[world.rank :: world.size])) as batches:
            for first in range(0, len(rows), world.size):
                if stop():
                    return None
                if first + world.rank < len(rows):
                    batch = next(batches)
                    found[batch.index] = self._measure(model, batch, split.numbers[batch.index], key)
        right, robust, margins = world.total(found).unbind(1)
        attacked = int(right.sum())
        passes = len(split) + attacked * (self.steps + 1 + self.search.steps)
        return Check(attacked / len(split), float(robust.double().mean()), margins.contiguous(), passes)

    def _measure(self, model: nn.Module, batch: Batch, numbers: Tensor, key: tuple[int, ...]) -> Tensor:
        """(B, 3): right, robust, margin of each image; numbers (B,) are the images' own."""
        found = torch.zeros(len(batch.y), 3, device=batch.y.device)
        with torch.no_grad():
            right = logit_margin(model(batch.x), batch.y) < 0
        x, y, numbers = batch.x[right], batch.y[right], numbers[right]
        if not len(y):
            return found
        eps = as_rows(self.eps, x)
        noise = row_noise(numbers, x.shape[1:], self.seed, CHECK, *key).to(x)
        how: dict[str, Any] = {"loss_fn": self.loss_fn, "norm": self.norm, "step_size": self.step_size}
        x_adv = self.attack(model, x, y, **how, steps=self.steps, eps=eps, noise=noise)
        with torch.no_grad():
            robust = logit_margin(model(x_adv), y) < 0
        margins = self.search(model, x, y, (x_adv - x) / self.eps, eps).eps
        found[right] = torch.stack([torch.ones_like(margins), robust.to(margins), margins], dim=1).float()
        return found


def checker_of(config: Config, attack: PgdFn = pgd) -> Checker:
    """The check that belongs to a config, or to the training of a checkpoint."""
    return Checker(
        norm=config.norm,
        eps=config.test_eps,
        step_size=config.test_eps_iter,
        steps=config.check_nb_iter or config.nb_iter,
        loss_fn=LOSSES[config.attack_loss_fn],
        search=Search(logit_margin, config.search_maxeps, config.check_search_steps),
        batch_size=config.eval_batch_size,
        seed=config.seed,
        attack=attack,
    )


def check_split(model: nn.Module, split: Split, config: Config, *key: int) -> Check:
    """The check of a whole split, by the settings of a training."""
    check = checker_of(config)(model, split, *key)
    assert check is not None  # nothing stops it
    return check


def check_rows(
    config: Config,
    model: nn.Module,
    data: Dataset,
    step: int,
    epoch: int,
    passes: int,
    *,
    attack: PgdFn = pgd,
    world: World = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]] | None:
    """What metrics.jsonl holds of the check after `step`: a row for the validation images and one for the test images.

    passes: of the checks before this one, which `check_passes` goes on from. None if `stop()` became true on the way.
    """
    splits = {"val": first_images(data.val, config.check_size)}
    if step >= config.max_steps or not config.test_at_end:
        splits["test"] = data.test
    rows = []
    for number, (name, split) in enumerate(splits.items()):
        if not len(split):
            continue
        found = checker_of(config, attack)(model, split, number, step, stop=stop, world=world)
        if found is None:
            return None
        passes += found.passes
        figures = {"clean_acc": found.clean_acc, "robust_acc": found.robust_acc, "mean_margin": found.mean_margin}
        rows.append({"kind": "eval", "split": name, "step": step, "epoch": epoch, **figures, "check_passes": passes})
    return rows
