"""Projected gradient descent (Madry et al. 2018) under Linf and L2, and its repetition on what still stands.

B batch, ... any image shape, C classes. Images in [0, 1]; eps and step sizes are (B,) radii in the same unit.
An attack is a pure function: the model, its gradients and modes, and the batch are as before when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from processes.distributed import ALONE, World
from utils import EVALUATE, eval_mode, frozen, per_row, row_noise, row_norms

LossFn = Callable[[Tensor, Tensor], Tensor]  # (B, C) logits, (B,) labels -> (B,)
PgdFn = Callable[..., Tensor]  # `pgd`, or what is called as it is


def as_rows(value: float | Tensor, x: Tensor) -> Tensor:
    """A scalar or (B,) radius -> (B,) in the dtype and on the device of x (B, ...)."""
    if isinstance(value, Tensor):
        return value.to(x).expand(x.shape[0])
    return torch.full((x.shape[0],), value, dtype=x.dtype, device=x.device)


def project_linf(delta: Tensor, eps: Tensor) -> Tensor:
    """(B, ...), (B,) -> (B, ...): the nearest point of the box |delta| <= eps; inside points are unchanged."""
    radius = per_row(eps, delta)
    return delta.clamp(-radius, radius)


def project_l2(delta: Tensor, eps: Tensor) -> Tensor:
    """(B, ...), (B,) -> (B, ...): the nearest point of the ball ||delta||_2 <= eps; inside points are unchanged."""
    norms = row_norms(delta)
    shrink = torch.where(norms > eps, eps / norms.clamp(min=torch.finfo(delta.dtype).tiny), 1)  # only ever shrinks
    return delta * per_row(shrink, delta)


def _start_linf(x: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
    return (x + (2 * noise - 1) * per_row(eps, x)).clamp(0, 1)


def _start_l2(x: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
    return (x + project_l2(noise - x, eps)).clamp(0, 1)


def _ascent_linf(gradient: Tensor) -> Tensor:
    return gradient.sign()


def _ascent_l2(gradient: Tensor) -> Tensor:
    return gradient / per_row(row_norms(gradient).clamp(min=1e-6), gradient)


def _finite(direction: Tensor) -> Tensor:
    """A pixel whose gradient is not a number does not move, so that one image cannot spoil its batch."""
    return direction.nan_to_num(nan=0.0)


def _constrain_linf(x_adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    return (x + project_linf(x_adv - x, eps)).clamp(0, 1)


def _constrain_l2(x_adv: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    return x + project_l2(x_adv.clamp(0, 1) - x, eps)  # shrinking towards x stays inside [0, 1]


class Geometry(NamedTuple):
    """What PGD needs to know of a norm. `noise` is uniform on [0, 1), shaped like x."""

    start: Callable[[Tensor, Tensor, Tensor], Tensor]  # x, eps, noise -> x_adv
    ascent: Callable[[Tensor], Tensor]  # gradient -> direction of a unit step
    constrain: Callable[[Tensor, Tensor, Tensor], Tensor]  # x_adv, x, eps -> x_adv inside ball and image range


GEOMETRY = {
    "Linf": Geometry(_start_linf, _ascent_linf, _constrain_linf),
    "L2": Geometry(_start_l2, _ascent_l2, _constrain_l2),
}


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss_fn: LossFn,
    norm: str,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    noise: Tensor | None = None,
) -> Tensor:
    """(B, ...), (B,) -> (B, ...): maximise loss_fn(model(x + delta), y) over ||delta|| <= eps, x + delta in [0, 1].

    The model runs in eval mode. eps and step_size: (B,) or one number. noise: uniform on [0, 1), shaped like x, for a
    random start; None starts at x.
    """
    if not len(x):
        return x
    geometry = GEOMETRY[norm]
    eps, step_size = as_rows(eps, x), as_rows(step_size, x)
    x_adv = x if noise is None else geometry.start(x, eps, noise)
    with eval_mode(model), frozen(model):
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss_fn(model(x_adv), y).sum(), x_adv)
            x_adv = x_adv.detach() + per_row(step_size, x) * _finite(geometry.ascent(gradient))
            x_adv = geometry.constrain(x_adv, x, eps)
    return x_adv.detach()


class Attacked(NamedTuple):
    """What repeated PGD found for N images."""

    x_adv: Tensor  # (N, ...) the strongest perturbation found; the clean image where none raises `margin_fn`
    margin: Tensor  # (N,) margin_fn there, in logits; >= 0: broken, or misclassified without any perturbation

    @property
    def robust(self) -> Tensor:
        """(N,) bool: classified right, and no restart breaks it. NaN is not robust."""
        return self.margin < 0


def clean_attacked(
    model: nn.Module, x: Tensor, y: Tensor, *, margin_fn: LossFn, batch_size: int, world: World = ALONE
) -> Attacked:
    """(N, ...), (N,): the state before any restart, every perturbation zero."""
    margin = torch.zeros(len(x), device=x.device)
    with eval_mode(model), torch.no_grad():
        for rows in torch.arange(len(x), device=x.device).split(batch_size)[world.rank :: world.size]:
            padded = _pad(rows, batch_size)
            margin[rows] = margin_fn(model(x[padded]), y[padded])[: len(rows)].float()
    return Attacked(x.clone(), world.total(margin))


def repeated_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    state: Attacked,
    *,
    loss_fns: Sequence[LossFn],
    margin_fn: LossFn,
    norm: str,
    eps: float,
    step_size: float,
    steps: int,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int, int, int], None] = lambda restart, count, standing: None,
    on_restart: Callable[[int, Attacked], None] = lambda restart, state: None,
    first_restart: int = 0,
    attack: PgdFn = pgd,
    world: World = ALONE,
) -> Attacked:
    """One restart of PGD for each of `loss_fns`, each only on the images that still stand in `state`.

    x (N, ...), y (N,); index (N,): the images' numbers in their data set, which with (seed, restart) fix the random
    starts. margin_fn < 0 iff classified right; judged at the last step of each restart. Batches hold survivors from the
    whole set and are padded to `batch_size`, so that no result depends on how they are packed. What `state` (from
    `clean_attacked`, or from a smaller eps) holds as broken stays broken. on_batch: called with the restart's number,
    how many images were just attacked, and how many of all still stand. on_restart: called with its number and the state
    after each restart; with first_restart one goes on from there. attack: `pgd`, or what runs it faster; success is
    judged by `model` itself. Of several processes each attacks every so many-th batch, and all end with the same state;
    until a restart ends, `on_batch` knows of the others' batches that they are done, but not what fell.
    """
    x_adv, margin = state.x_adv.clone(), state.margin.clone()
    for restart, loss_fn in list(enumerate(loss_fns))[first_restart:]:
        survivors = (margin < 0).nonzero().squeeze(1)
        batches = survivors.split(batch_size) if len(survivors) else ()
        for number, rows in enumerate(batches):
            if number % world.size == world.rank:
                padded = _pad(rows, batch_size)
                noise = row_noise(index[padded], x.shape[1:], seed, EVALUATE, restart).to(x)
                attacked = attack(
                    model,
                    x[padded],
                    y[padded],
                    loss_fn=loss_fn,
                    norm=norm,
                    eps=eps,
                    step_size=step_size,
                    steps=steps,
                    noise=noise,
                )
                with eval_mode(model), torch.no_grad():
                    found = margin_fn(model(attacked), y[padded])[: len(rows)].float()
                stronger = ~(found <= margin[rows])  # an output that is not a number counts as broken
                x_adv[rows[stronger]] = attacked[: len(rows)][stronger]
                margin[rows[stronger]] = found[stronger]
            on_batch(restart, len(rows), int((margin < 0).sum()))
        for number, rows in enumerate(batches):
            x_adv[rows], margin[rows] = world.share_from(number % world.size, x_adv[rows], margin[rows])
        on_restart(restart, Attacked(x_adv, margin))
    return Attacked(x_adv, margin)


def _pad(rows: Tensor, size: int) -> Tensor:
    """(n,) -> (size,), repeating the first row; n <= size."""
    return torch.cat([rows, rows[:1].expand(size - len(rows))])
