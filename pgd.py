"""Projected gradient descent (Madry et al. 2018) under Linf and L2.

B batch, ... any image shape, C classes. Images in [0, 1]; eps and step sizes are (B,) radii in the same unit.
An attack is a pure function: the model, its gradients and modes, and the batch are as before when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from utils import eval_mode, frozen, per_row, row_norms

LossFn = Callable[[Tensor, Tensor], Tensor]  # (B, C) logits, (B,) labels -> (B,)


class PgdFn(Protocol):
    """`pgd`, or what is called as it is."""

    def __call__(
        self,
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
        decays: bool = False,
    ) -> Tensor: ...


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


class Geometry(NamedTuple):
    """What PGD needs to know of a norm. `noise` is uniform on [0, 1), shaped like x."""

    start: Callable[[Tensor, Tensor, Tensor], Tensor]  # x, eps, noise -> x_adv
    ascent: Callable[[Tensor], Tensor]  # gradient -> direction of a unit step
    constrain: Callable[[Tensor, Tensor, Tensor], Tensor]  # x_adv, x, eps -> x_adv inside ball and image range
    length: Callable[[Tensor], Tensor]  # (B, ...) -> (B,): the norm of each row


GEOMETRY = {
    "Linf": Geometry(
        start=lambda x, eps, noise: (x + (2 * noise - 1) * per_row(eps, x)).clamp(0, 1),
        ascent=torch.sign,
        constrain=lambda x_adv, x, eps: (x + project_linf(x_adv - x, eps)).clamp(0, 1),
        length=lambda delta: delta.flatten(1).abs().amax(dim=1),
    ),
    "L2": Geometry(
        start=lambda x, eps, noise: (x + project_l2(noise - x, eps)).clamp(0, 1),
        ascent=lambda gradient: gradient / per_row(row_norms(gradient).clamp(min=1e-6), gradient),
        # Shrinking towards x stays in [0, 1].
        constrain=lambda x_adv, x, eps: x + project_l2(x_adv.clamp(0, 1) - x, eps),
        length=row_norms,
    ),
}


def noise_towards(norm: str, x: Tensor, eps: Tensor, direction: Tensor) -> Tensor:
    """(B, ...), (B,), (B, ...) -> (B, ...): the `noise` with which `pgd` starts at x + eps direction instead of at random.

    direction: of length at most 1 in the norm.
    """
    return (direction + 1) / 2 if norm == "Linf" else x + per_row(eps, x) * direction


def step_sizes(step_size: Tensor, steps: int, decays: bool) -> Iterator[Tensor]:
    """(B,) -> `steps` times (B,): the size of each step. decays: step k of N, from 0, has the share 1 - k/N of it."""
    return (step_size * (1 - step / steps) if decays else step_size for step in range(steps))


def linearised(losses_at: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...) images -> (B,) losses there, (B, ...) their gradient. losses_at: (B, ...) -> (B,)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        losses = losses_at(x)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), gradient


def ascend(
    losses_at: Callable[[Tensor], Tensor], norm: str, x_adv: Tensor, x: Tensor, eps: Tensor, step: Tensor
) -> Tensor:
    """(B, ...), (B, ...), (B,), (B,) -> (B, ...): one step of PGD from x_adv, in the ball of radius eps around x.

    losses_at: (B, ...) images -> (B,) losses, of a model in eval mode.
    """
    geometry = GEOMETRY[norm]
    _, gradient = linearised(losses_at, x_adv)
    # A pixel whose gradient is not a number does not move, so that one image cannot spoil its batch.
    x_adv = x_adv.detach() + per_row(step, x) * geometry.ascent(gradient).nan_to_num(nan=0.0)
    return geometry.constrain(x_adv, x, eps)


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
    decays: bool = False,
) -> Tensor:
    """(B, ...), (B,) -> (B, ...): maximise loss_fn(model(x + delta), y) over ||delta|| <= eps, x + delta in [0, 1].

    The model runs in eval mode. eps and step_size: (B,) or one number. noise: uniform on [0, 1), shaped like x, for a
    random start; None starts at x. decays: the steps fall from step_size to 0, see `step_sizes`.
    """
    if not len(x):
        return x
    eps, step_size = as_rows(eps, x), as_rows(step_size, x)
    x_adv = x if noise is None else GEOMETRY[norm].start(x, eps, noise)
    with eval_mode(model), frozen(model):
        for step in step_sizes(step_size, steps, decays):
            x_adv = ascend(lambda x_adv: loss_fn(model(x_adv), y), norm, x_adv, x, eps, step)
    return x_adv.detach()


def class_weights(logits: Tensor, y: Tensor, rank: int) -> Tensor:
    """(B, C), (B,) -> (B, C): weights of z_t - z_y, t the class of the rank-th largest wrong logit, counted round."""
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    target = order[:, rank % (logits.shape[1] - 1)]
    weights = torch.zeros_like(logits).scatter(1, target[:, None], 1)
    return weights.scatter(1, y[:, None], -1)


def weighted_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """(B, C), (B, C) -> (B,): a combination of logits, such as ODI climbs."""
    return (logits * weights).sum(dim=1)


def odi_start(
    run: PgdFn, model: nn.Module, x: Tensor, norm: str, eps: Tensor, noise: Tensor, weights: Tensor, steps: int
) -> Tensor:
    """Output-diversified initialisation (Tashiro et al. 2020): (B, ...), (B,), (B, ...) -> (B, ...), the `noise` with
    which `pgd` starts where `steps` steps of eps / 3 up a random combination of logits end.

    weights: (B, C) uniform on [-1, 1); a row of zeros keeps its start.
    """
    how: dict[str, Any] = {"loss_fn": weighted_logits, "norm": norm, "eps": eps, "steps": steps, "noise": noise}
    found = run(model, x, weights, step_size=eps / 3, **how)
    unit = eps.clamp(min=torch.finfo(eps.dtype).tiny)  # a radius of 0 finds x itself
    return noise_towards(norm, x, eps, (found - x) / per_row(unit, x))


@dataclass(frozen=True)
class InnerPgd:
    """PGD as training uses it: `steps` steps of step_scale * eps / steps, in a ball of its own for each image."""

    norm: str
    steps: int
    loss_fn: LossFn
    step_scale: float = 2.5
    run: PgdFn = pgd  # or what runs it faster
    decays: bool = False
    odi_steps: int = 0  # before them, in rows that have weights for it
    every_row: bool = False  # ODI in the other rows too, and its start dropped there, so that no shape depends on data

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: Tensor | None = None,
        odi_weights: Tensor | None = None,
    ) -> Tensor:
        """(B, ...), (B,), (B,) -> (B, ...). noise: see `pgd`; odi_weights: see `odi_start`."""
        if odi_weights is not None and noise is not None:
            climbs = odi_weights.any(dim=1)
            rows = torch.arange(len(x), device=x.device) if self.every_row else climbs.nonzero().squeeze(1)
            of_rows = x[rows], self.norm, eps[rows], noise[rows], odi_weights[rows]
            starts = odi_start(self.run, model, *of_rows, self.odi_steps)
            noise = noise.to(x).index_copy(0, rows, torch.where(per_row(climbs[rows], starts), starts, noise[rows]))
        size = self.step_scale * eps / self.steps
        how: dict[str, Any] = {"norm": self.norm, "eps": eps, "step_size": size, "steps": self.steps}
        return self.run(model, x, y, loss_fn=self.loss_fn, **how, noise=noise, decays=self.decays)
