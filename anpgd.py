"""AN-PGD: the shortest successful perturbation, found by PGD and a search along its direction (paper, algorithm 1).

B batch, ... any image shape. Images in [0, 1]; eps is a (B,) radius in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgd import InnerPgd, LossFn, as_rows
from utils import has_batchnorm, per_row

LossAt = Callable[[Tensor], Tensor]  # (B,) radii along the direction -> (B,) losses there
SEARCHES = ("bisection", "secant")


class Crossing(NamedTuple):
    """Where the loss along each row's direction crosses zero."""

    eps: Tensor  # (B,) in [0, max_eps]
    beyond: Tensor  # (B,) bool: no loss >= 0 was met on the way up to max_eps
    passes: int  # forward passes of each image


def bisection(loss_at: LossAt, start: Tensor, top: float, steps: int, every_pass: bool) -> Crossing:
    """(B,) start -> `Crossing`: `steps` halvings of [0, top], the first loss measured at start.

    The error is at most top / 2^steps if the loss crosses zero once. every_pass: also run the last pass, whose loss is
    not used, as the reference does; with BatchNorm in train mode it updates the running statistics.
    """
    low, high, eps = torch.zeros_like(start), torch.full_like(start, top), start
    loss = loss_at(eps)
    for step in range(steps):
        # Invariant: loss < 0 at low (or low = 0), loss >= 0 at high (or high = top).
        low = torch.where(loss < 0, eps, low)
        high = torch.where(loss < 0, high, eps)
        eps = (low + high) / 2
        if step < steps - 1 or every_pass:
            loss = loss_at(eps)
    return Crossing(eps, high == top, steps + every_pass)


def secant(loss_at: LossAt, start: Tensor, top: float, passes: int, loss_at_zero: Tensor) -> Crossing:
    """(B,) start, (B,) loss at eps 0 -> `Crossing`: `passes` secant steps from a first guess, kept inside the bracket.

    Chords through the bracket's ends, of which the one that stays is halved (the Illinois method); while nothing above
    zero is known, the slope of the last two points, overshot a little. The last estimate is not measured. With BatchNorm
    in train mode the loss at zero, of another batch's statistics, is only a guess, and so is the first chord.
    """
    low, high = torch.zeros_like(start), torch.full_like(start, top)
    low_loss, high_loss = loss_at_zero.clamp(max=-1e-12), torch.full_like(start, float("nan"))  # nan: not measured yet
    same_side = torch.zeros_like(start)  # consecutive measurements below (negative) or above zero (positive)
    eps = start.clamp(0.02 * top, top)
    for _ in range(passes):
        loss = loss_at(eps)
        below = loss < 0
        # The slope that the next proposal follows while nothing above zero is known: of the last two points.
        slope = (loss - low_loss) / (eps - low).clamp(min=1e-12)
        # Where these two do not rise, as on a plateau of bfloat16: of the chord from zero.
        slope = torch.where(slope > 0, slope, (loss - loss_at_zero) / eps)
        # Illinois: an end that stays twice has its loss halved, so that the chord cannot creep along one side.
        high_loss = torch.where(below & (same_side < 0), high_loss / 2, high_loss)
        low_loss = torch.where(~below & (same_side > 0), low_loss / 2, low_loss)
        same_side = torch.where(below, same_side.clamp(max=0) - 1, same_side.clamp(min=0) + 1)
        low, low_loss = torch.where(below, eps, low), torch.where(below, loss, low_loss)
        high, high_loss = torch.where(below, high, eps), torch.where(below, high_loss, loss)
        eps = _propose(low, low_loss, high, high_loss, slope)
    beyond = (high == top) & ~(high_loss >= 0) & (low >= 0.99 * top)
    return Crossing(torch.where(beyond, top, eps), beyond, passes)


def _propose(low: Tensor, low_loss: Tensor, high: Tensor, high_loss: Tensor, slope: Tensor) -> Tensor:
    """(B,) each -> (B,): the next radius to measure, inside [low, high]."""
    bracketed = high_loss.isfinite()
    chord = low + (high - low) * low_loss / (low_loss - torch.where(bracketed, high_loss, 1))
    step = -low_loss / slope
    ahead = torch.where((slope > 0) & (step < high - low), low + 1.1 * step, high)  # a little too far brackets it
    inner = 0.02 * (high - low)
    return torch.where(bracketed, chord.clamp(low + inner, high - inner), torch.minimum(ahead, high))


@dataclass(frozen=True)
class Search:
    """How the zero crossing of `loss_fn` along a direction is looked for on [0, max_eps]."""

    loss_fn: LossFn
    max_eps: float
    steps: int = 10  # halvings of "bisection"; passes of "secant"
    method: str = "bisection"  # or "secant"

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        direction: Tensor,
        start_eps: Tensor,
        clean_loss: Tensor | None = None,
    ) -> Crossing:
        """(B, ...), (B,), (B, ...), (B,) -> `Crossing`: the eta in [0, max_eps] where loss_fn(model(clip(x + eta direction)), y)
        is 0, first measured at start_eps, clipped to max_eps. The model runs in the caller's mode, without gradients.

        clean_loss: (B,) loss_fn at x, for "secant", which measures it itself where it is not given.
        """
        start = start_eps.clamp(max=self.max_eps)

        def loss_at(eps: Tensor) -> Tensor:
            return self.loss_fn(model((x + per_row(eps, x) * direction).clamp(0, 1)), y)

        with torch.no_grad():
            if self.method == "secant":
                clean_loss = self.loss_fn(model(x), y) if clean_loss is None else clean_loss
                return secant(loss_at, start, self.max_eps, self.steps, clean_loss)
            return bisection(loss_at, start, self.max_eps, self.steps, _updates_statistics(model))


def _updates_statistics(model: nn.Module) -> bool:
    """Whether a pass moves BatchNorm's running statistics."""
    return model.training and has_batchnorm(model)


class Shortest(NamedTuple):
    """The shortest perturbation found in each row."""

    x_adv: Tensor  # (B, ...) on the boundary; as in the reference, not clipped to [0, 1] again
    eps: Tensor  # (B,) its radius, the estimate of the margin d(x, y)
    direction: Tensor  # (B, ...) PGD's perturbation over its radius; x_adv = x + eps direction
    beyond: Tensor  # (B,) bool: the search met no misclassified point up to its end
    passes: int  # forward/backward passes of each image


@dataclass(frozen=True)
class AnPgd:
    """AN-PGD with its hyper-parameters: PGD in each row's own ball, then the search along the direction found."""

    attack: InnerPgd
    search: Search

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        start_eps: float | Tensor,
        noise: Tensor | None = None,
        clean_loss: Tensor | None = None,
        odi_weights: Tensor | None = None,
    ) -> Shortest:
        """(B, ...), (B,), (B,) or one number -> `Shortest`. noise: see `pgd`; clean_loss: see `Search`; odi_weights: see
        `odi_start`."""
        start_eps = as_rows(start_eps, x)
        x_pgd = self.attack(model, x, y, start_eps, noise, odi_weights)
        direction = (x_pgd - x) / per_row(start_eps + 1e-12, x)
        eps, beyond, passes = self.search(model, x, y, direction, start_eps, clean_loss)
        return Shortest(x + per_row(eps, x) * direction, eps, direction, beyond, self.attack.steps + passes)
