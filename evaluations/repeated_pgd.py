"""PGD from several random starts on what still stands: the evaluation's attack, of any network in memory.

N images, B batch, ... any image shape, C classes. Images in [0, 1]; eps is a radius in the same unit.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losses import logit_margin
from utils import EVALUATE, eval_mode, row_noise

Restart = Callable[..., Tensor]  # model, x (B, ...), y (B,), noise=(B, ...) -> (B, ...): `pgd`, all else filled in


@dataclass
class AttackState:
    """What repeated PGD has found for N images; changed in place."""

    x_adv: Tensor  # (N, ...) the strongest perturbation found; the clean image where none raises the margin
    margin: Tensor  # (N,) logit margin there; >= 0: broken, or misclassified without any perturbation
    restart: int = 0  # how many restarts are whole
    seconds: float = 0.0  # that they took

    @property
    def robust(self) -> Tensor:
        """(N,) bool: classified right, and no restart breaks it. NaN is not robust."""
        return self.margin < 0

    def larger_radius(self, fallen: Tensor | None = None) -> AttackState:
        """A copy before the restarts at a larger radius: what has fallen stays fallen, and (N,) bool `fallen` with it."""
        margin = self.margin.clone() if fallen is None else self.margin.masked_fill(fallen & self.robust, torch.inf)
        return AttackState(self.x_adv.clone(), margin)

    def keep_stronger(self, rows: Tensor, x_adv: Tensor, margin: Tensor) -> None:
        """(B,) rows, (B, ...), (B,): what is stronger than what is known of these images is kept."""
        stronger = ~(margin <= self.margin[rows])  # an output that is not a number counts as broken
        self.x_adv[rows[stronger]] = x_adv[stronger]
        self.margin[rows[stronger]] = margin[stronger]


def clean_logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """(N, ...) -> (N, C) float32, in eval mode, in batches that are all of full size."""
    with eval_mode(model), torch.no_grad():
        parts = torch.arange(len(x), device=x.device).split(batch_size)
        return torch.cat([model(x[_padded(rows, batch_size)])[: len(rows)].float() for rows in parts])


def repeated_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    restarts: Sequence[Restart],
    eps: float,
    seed: int = 0,
    batch_size: int = 200,
    state: AttackState | None = None,
    after_restart: Callable[[AttackState], object] = lambda state: None,
) -> AttackState:
    """(N, ...), (N,), (N,): each restart in turn, on the images that still stand.

    Judged at the last step of each restart, by `model` itself in eval mode. Batches hold survivors and are padded to full
    size, and a random start is a function of (seed, restart, eps, index), so that no result depends on how the images are
    packed. index: the images' numbers in their data set. eps: the radius of the restarts. state: where to go on, written
    into; None begins.
    """
    if state is None:
        state = AttackState(x.clone(), logit_margin(clean_logits(model, x, batch_size), y))
    for number in range(state.restart, len(restarts)):
        started = time.monotonic()
        standing = state.robust.nonzero().squeeze(1)
        for rows in standing.split(batch_size) if len(standing) else ():
            padded = _padded(rows, batch_size)
            noise = row_noise(index[padded], x.shape[1:], seed, EVALUATE, number, _bits(eps)).to(x)
            x_adv = restarts[number](model, x[padded], y[padded], noise=noise)
            with eval_mode(model), torch.no_grad():
                margin = logit_margin(model(x_adv), y[padded]).float()
            state.keep_stronger(rows, x_adv[: len(rows)], margin[: len(rows)])
        state.restart = number + 1
        state.seconds += time.monotonic() - started
        after_restart(state)
    return state


def _bits(eps: float) -> int:
    """The radius as a whole number, so that each radius has starts of its own."""
    return int.from_bytes(struct.pack(">d", eps), "big")


def _padded(rows: Tensor, size: int) -> Tensor:
    """(n,) -> (size,), repeating the first row; n <= size."""
    return torch.cat([rows, rows[:1].expand(size - len(rows))])
