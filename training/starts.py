"""Where the attack of a training step starts: radius, place in the ball, and whom it leaves alone.

B batch, N training images, ... any image shape; eps is a radius in input units. Every draw is a function of (seed, step).
"""

from __future__ import annotations

import torch
from torch import Tensor

from config import Config
from loading.batches import Batch
from loading.crops import Crops
from pgd import noise_towards
from training.directions import KeptDirections
from utils import per_row

BEYOND = 0.99  # times eps_max: a search that ended there met no wrong point; well above d_max = eps_max / 1.05


def fixed(config: Config, batch: Batch, step: int, noise: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    """One radius for all: (B,) eps and the (B, ...) noise of random starts, see `pgd`."""
    eps = torch.full_like(batch.y, config.eps_at(step), dtype=batch.x.dtype)
    return (eps, noise) if weights is None else (eps, noise, torch.zeros_like(batch.y, dtype=torch.bool), weights)


def per_example(
    config: Config,
    batch: Batch,
    stored: Tensor,
    noise: Tensor,
    epoch: int,
    directions: KeptDirections | None,
    crops: Crops | None,
    weights: Tensor | None,
) -> tuple[Tensor, ...]:
    """MMA: (B,) eps, (B, ...) noise and, with `rest_interval`, (B,) bool of those that are spared.

    stored: (B,) the radii of the last visit. An image starts along its kept direction, but at every `refresh_interval`-th
    visit at random: kept directions go stale, and a stale one makes eps too large. One whose last search met no wrong
    point is attacked at every `rest_interval`-th visit.
    """
    eps, visit = stored.clamp(min=config.attack_mineps), epoch + batch.index
    if directions is not None:
        kept = directions.kept(batch.index)
        if config.refresh_interval:
            kept = kept & (visit % config.refresh_interval != 0)
        towards = noise_towards(config.norm, batch.x, eps, directions.read(batch.index, crops).to(batch.x))
        noise = torch.where(per_row(kept, noise), towards, noise)
        weights = None if weights is None else torch.where(kept[:, None], 0, weights)
    if config.rest_interval == 1 and weights is None:
        return eps, noise
    spared = (stored >= BEYOND * config.search_maxeps) & (visit % config.rest_interval != 0)
    return (eps, noise, spared) if weights is None else (eps, noise, spared, weights)
