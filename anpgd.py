"""AN-PGD: the shortest successful perturbation, found by PGD and a search along its direction (paper, algorithm 1).

B batch, ... any image shape. Images in [0, 1]; eps is a (B,) radius in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pgd import GEOMETRY, InnerPgd, LossFn, as_rows, class_weights, linearised, weighted_logits
from utils import eval_mode, frozen, has_batchnorm, per_row

LossAt = Callable[[Tensor], Tensor]  # (B,) radii along the direction -> (B,) losses there


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
            moves_statistics = model.training and has_batchnorm(model)
            return bisection(loss_at, start, self.max_eps, self.steps, moves_statistics)


def step_to_boundary(norm: str, x: Tensor, gradient: Tensor, rise: Tensor) -> Tensor:
    """(B, ...), (B, ...), (B,) -> (B, ...): the shortest d with gradient . d = rise and x + d in [0, 1].

    The step of DeepFool (Moosavi-Dezfooli et al. 2016) with the bounds of FAB (Croce & Hein 2020). With g the gradient and
    room_i how far pixel i may move in the direction of sign(g_i):
    Linf: d_i = sign(g_i) min(r, room_i), where sum_i |g_i| min(r, room_i) = rise;
    L2: d_i = sign(g_i) min(r |g_i|, room_i), where sum_i |g_i| min(r |g_i|, room_i) = rise.
    The sum is piecewise linear in r and bends where a pixel has no room left; with the bends sorted, r is exact. Where all
    the room does not suffice it is all used; a rise below 0 is 0. A gradient that is not a number gives such a step.
    """
    pull = gradient.flatten(1).abs()
    room = torch.where(gradient > 0, 1 - x, torch.where(gradient < 0, x, 0)).flatten(1).clamp(min=0)
    speed = pull if norm == "L2" else torch.ones_like(pull)  # |d_i| = min(r speed_i, room_i)
    bends, order = (room / speed.clamp(min=torch.finfo(x.dtype).tiny)).sort(dim=1)
    used_up = (pull * room).gather(1, order).cumsum(dim=1)  # what the pixels up to each bend give, without room left
    slope = (pull * speed).gather(1, order).flip(1).cumsum(dim=1).flip(1)  # of the sum up to each bend
    before = used_up - (pull * room).gather(1, order)
    piece = (before + bends * slope < rise[:, None]).sum(dim=1, keepdim=True).clamp(max=pull.shape[1] - 1)
    before, slope, end = (values.gather(1, piece) for values in (before, slope, bends))
    r = torch.minimum(((rise[:, None] - before) / slope).clamp(min=0), end)
    return gradient.sign() * torch.minimum(r * speed, room).reshape(x.shape)


class Shortest(NamedTuple):
    """The shortest perturbation found in each row."""

    x_adv: Tensor  # (B, ...) on the boundary; as in the reference, not clipped to [0, 1] again
    eps: Tensor  # (B,) its radius, the estimate of the margin d(x, y)
    direction: Tensor  # (B, ...) the perturbation over its radius, PGD's in the paper; x_adv = x + eps direction
    beyond: Tensor  # (B,) bool: the search met no misclassified point up to its end
    passes: int  # forward or forward/backward passes of each image


@dataclass(frozen=True)
class AnPgd:
    """AN-PGD with its hyper-parameters: PGD in each row's own ball, then the search along the direction found.

    Beyond the paper: `targets` and `projections` give further directions to search along, and the shortest perturbation
    of all counts. Each direction is that of the shortest step onto the boundary linearised at a point.
    """

    attack: InnerPgd
    search: Search
    projections: int = 0  # times in turn that the boundary is linearised at the shortest perturbation so far
    targets: int | Literal["all"] = 0  # classes, of the largest wrong logits, to which it is linearised at the image

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
        found = Shortest(x + per_row(eps, x) * direction, eps, direction, beyond, self.attack.steps + passes)
        if self.targets:
            with eval_mode(model), torch.no_grad():
                logits = model(x)
            found = found._replace(passes=found.passes + 1)
            wrong_classes = logits.shape[1] - 1
            for rank in range(wrong_classes if self.targets == "all" else min(self.targets, wrong_classes)):
                weights = class_weights(logits, y, rank)
                found = self._shorter(model, x, y, found, x, partial(weighted_logits, weights=weights), clean_loss)
        for _ in range(self.projections):
            point = found.x_adv.clamp(0, 1)
            found = self._shorter(model, x, y, found, point, lambda z: self.search.loss_fn(z, y), clean_loss)
        return found

    def _shorter(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        found: Shortest,
        point: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        clean_loss: Tensor | None,
    ) -> Shortest:
        """`found`, or where it is shorter what lies towards the zeros of a loss linearised at point (B, ...).

        loss_of: (B, C) logits -> (B,).
        """
        with eval_mode(model), frozen(model):
            loss, gradient = linearised(lambda point: loss_of(model(point)), point)
        step = step_to_boundary(self.attack.norm, x, gradient, -loss - (gradient * (x - point)).flatten(1).sum(dim=1))
        length = GEOMETRY[self.attack.norm].length(step)
        usable = length.isfinite() & (length > 0)
        direction = torch.where(per_row(usable, x), step / per_row(length, x), 0)
        eps, beyond, passes = self.search(model, x, y, direction, torch.where(usable, length, 0), clean_loss)
        shorter = usable & ~beyond & (found.beyond | (eps < found.eps))
        direction = torch.where(per_row(shorter, x), direction, found.direction)
        eps, beyond = torch.where(shorter, eps, found.eps), found.beyond & ~shorter
        x_adv = torch.where(per_row(shorter, x), x + per_row(eps, x) * direction, found.x_adv)
        return Shortest(x_adv, eps, direction, beyond, found.passes + 1 + passes)
