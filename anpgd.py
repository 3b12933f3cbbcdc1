"""AN-PGD: the shortest successful perturbation, found by PGD and a bisection along its direction (paper, algorithm 1).

B batch, ... any image shape. Images in [0, 1]; eps is a (B,) radius in the same unit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgd import LossFn, PgdFn, as_rows, pgd
from utils import has_batchnorm, per_row


def zero_crossing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    *,
    loss_fn: LossFn,
    start_eps: float | Tensor,
    max_eps: float,
    steps: int,
) -> Tensor:
    """(B, ...), (B,), (B, ...) -> (B,): the eta in [0, max_eps] where loss_fn(model(clip(x + eta direction)), y) = 0.

    `steps` halvings of [0, max_eps]; the first loss is measured at start_eps, clipped to max_eps. The error is at most
    max_eps / 2^steps if the loss crosses zero once. The model runs in the caller's mode, without gradients.
    """
    low = torch.zeros_like(as_rows(0.0, x))
    high = torch.full_like(low, max_eps)
    eps = as_rows(start_eps, x).clamp(max=max_eps)

    def loss_at(eps: Tensor) -> Tensor:
        return loss_fn(model((x + per_row(eps, x) * direction).clamp(0, 1)), y)

    with torch.no_grad():
        loss = loss_at(eps)
        for step in range(steps):
            # Invariant: loss < 0 at low (or low = 0), loss >= 0 at high (or high = max_eps).
            low = torch.where(loss < 0, eps, low)
            high = torch.where(loss < 0, high, eps)
            eps = (low + high) / 2
            # The loss at the last midpoint is not used. The reference still runs that pass, and with BatchNorm in train
            # mode it updates the running statistics.
            if step < steps - 1 or (model.training and has_batchnorm(model)):
                loss = loss_at(eps)
    return eps


class Shortest(NamedTuple):
    """The shortest perturbation found in each row."""

    x_adv: Tensor  # (B, ...) on the boundary; as in the reference, not clipped to [0, 1] again
    eps: Tensor  # (B,) its radius, the estimate of the margin d(x, y)


def anpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    start_eps: float | Tensor,
    max_eps: float,
    steps: int,
    step_scale: float,
    search_steps: int,
    attack_loss_fn: LossFn,
    search_loss_fn: LossFn,
    noise: Tensor | None = None,
    attack: PgdFn = pgd,
) -> Shortest:
    """(B, ...), (B,) -> `Shortest`: PGD of radius start_eps, then the zero crossing on [0, max_eps] along its direction.

    PGD takes `steps` steps of step_scale * start_eps / steps in eval mode; the search runs in the caller's mode. x must
    be classified right for the radius to mean a margin. noise: uniform on [0, 1), shaped like x, for a random start.
    attack: `pgd`, or what runs it faster.
    """
    start_eps = as_rows(start_eps, x)
    x_pgd = attack(
        model,
        x,
        y,
        loss_fn=attack_loss_fn,
        norm=norm,
        eps=start_eps,
        step_size=step_scale * start_eps / steps,
        steps=steps,
        noise=noise,
    )
    direction = (x_pgd - x) / per_row(start_eps + 1e-12, x)
    eps = zero_crossing(
        model, x, y, direction, loss_fn=search_loss_fn, start_eps=start_eps, max_eps=max_eps, steps=search_steps
    )
    return Shortest(x + per_row(eps, x) * direction, eps)
