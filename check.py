"""The check after each epoch: accuracy, robust accuracy at a fixed radius, and the margin of every image of a split.

B batch, N images of the split. Images in [0, 1]; eps and margins are radii in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anpgd import Search
from config import Config
from loading.batches import Batch, Split, first_images
from loading.datasets import Dataset
from losses import LOSSES, logit_margin
from pgd import PgdFn, as_rows, pgd
from processes.distributed import ALONE, World
from utils import CHECK, eval_mode, row_noise


class Check(NamedTuple):
    """A network's figures on one split."""

    clean_acc: float
    robust_acc: float  # against PGD at the fixed test radius
    margins: Tensor  # (N,) radius of the zero crossing along PGD's direction; 0 where misclassified
    passes: int  # how often an image went through the network


def check_split(
    model: nn.Module,
    split: Split,
    config: Config,
    *key: int,
    attack: PgdFn = pgd,
    stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> Check | None:
    """PGD at the fixed test radius of a training, then the zero crossing of the logit margin along its direction; all in
    eval mode.

    Random starts are keyed by (seed, `key`, image). attack: what runs PGD. Of several processes each takes whole batches,
    so that what an image gets does not depend on their number. None if `stop()` became true on the way.
    """
    found = torch.zeros(len(split), 3, device=split.labels.device)  # right, robust, margin
    rows = torch.arange(len(split)).split(config.eval_batch_size)
    with eval_mode(model), closing(split.batches(rows[world.rank :: world.size])) as batches:
        for first in range(0, len(rows), world.size):
            if stop():
                return None
            if first + world.rank < len(rows):
                batch = next(batches)
                found[batch.index] = check_batch(model, batch, split.numbers[batch.index], config, key, attack)
    right, robust, margins = world.total(found).unbind(1)
    attacked = int(right.sum())
    passes = len(split) + attacked * (config.check_steps + 1 + config.check_search_steps)
    return Check(attacked / len(split), float(robust.double().mean()), margins.contiguous(), passes)


def check_batch(
    model: nn.Module, batch: Batch, numbers: Tensor, config: Config, key: tuple[int, ...], attack: PgdFn
) -> Tensor:
    """(B, 3): right, robust, margin of each image; numbers (B,): the images' own; the rest as of `check_split`."""
    found = torch.zeros(len(batch.y), 3, device=batch.y.device)
    with torch.no_grad():
        right = logit_margin(model(batch.x), batch.y) < 0
    x, y, numbers = batch.x[right], batch.y[right], numbers[right]
    if not len(y):
        return found
    eps, noise = as_rows(config.test_eps, x), row_noise(numbers, x.shape[1:], config.seed, CHECK, *key).to(x)
    how: dict[str, Any] = {"loss_fn": LOSSES[config.attack_loss_fn], "norm": config.norm, "steps": config.check_steps}
    x_adv = attack(model, x, y, **how, eps=eps, step_size=config.test_eps_iter, noise=noise)
    with torch.no_grad():
        robust = logit_margin(model(x_adv), y) < 0
    search = Search(logit_margin, config.search_maxeps, config.check_search_steps)
    margins = search(model, x, y, (x_adv - x) / config.test_eps, eps).eps
    found[right] = torch.stack([torch.ones_like(margins), robust.to(margins), margins], dim=1).float()
    return found


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
        found = check_split(model, split, config, number, step, attack=attack, stop=stop, world=world)
        if found is None:
            return None
        passes += found.passes
        row = {"kind": "eval", "split": name, "step": step, "epoch": epoch, "clean_acc": found.clean_acc}
        row |= {"robust_acc": found.robust_acc, "mean_margin": float(found.margins.double().mean())}
        rows.append({**row, "check_passes": passes})
    return rows
