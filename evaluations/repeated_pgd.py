"""PGD from several random starts on what still stands: the evaluation's attack, of any network in memory.

N images, B batch, ... any image shape, C classes. Images in [0, 1]; eps is a radius in the same unit.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import LOSSES, logit_margin
from pgd import PgdFn, as_rows, class_weights, odi_start, weighted_logits
from utils import EVALUATE, ODI, eval_mode, row_noise

ODI_STEPS = 10  # of the steps of a restart that starts by ODI
# The later restarts of the strong protocol skip images that hardly gave way: whose logit margin is still above a share of the
# clean image's.
FULL_RESTARTS, SKIP_ABOVE = 3, 0.5
BLOCKS = (0, 7, 4)  # on the image's side, in turn; 0: none
Uniform = Callable[[int, Sequence[int]], Tensor]  # stream, shape -> (B, *shape) on [0, 1), a row's own
Restart = Callable[[nn.Module, Tensor, Tensor, Uniform], Tensor]  # model, x (B, ...), y (B,), draws -> (B, ...)


@dataclass
class AttackState:
    """What repeated PGD has found for N images; changed in place."""

    x_adv: Tensor  # (N, ...) the strongest perturbation found; the clean image where none raises the margin
    margin: Tensor  # (N,) logit margin there; >= 0: broken, or misclassified without any perturbation
    restart: int = 0  # how many restarts are whole

    @property
    def robust(self) -> Tensor:
        """(N,) bool: classified right, and no restart breaks it. NaN is not robust."""
        return self.margin < 0


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
    skip_below: Tensor | None = None,
) -> AttackState:
    """(N, ...), (N,), (N,): each restart in turn, on the images that still stand.

    Judged at the last step of each restart, by `model` itself in eval mode. Batches hold survivors and are padded to full
    size, and a random start is a function of (seed, restart, eps, index), so that no result depends on how the images are
    packed. index: the images' numbers in their data set. eps: the radius of the restarts. state: where to go on, written
    into; None begins. skip_below: (N,) logit margins; after FULL_RESTARTS restarts an image whose margin is not
    above its own is left alone.
    """
    if state is None:
        state = AttackState(x.clone(), logit_margin(clean_logits(model, x, batch_size), y))
    bits = int.from_bytes(struct.pack(">d", eps), "big")  # so that each radius has starts of its own
    for number in range(state.restart, len(restarts)):
        attacked = state.robust
        if skip_below is not None and number >= FULL_RESTARTS:
            attacked = attacked & (state.margin > skip_below)
        standing = attacked.nonzero().squeeze(1)
        for rows in standing.split(batch_size) if len(standing) else ():
            padded = _padded(rows, batch_size)

            def uniform(stream: int, shape: Sequence[int], number: int = number, padded: Tensor = padded) -> Tensor:
                return row_noise(index[padded], shape, seed, stream, number, bits).to(x)

            x_adv = restarts[number](model, x[padded], y[padded], uniform)
            with eval_mode(model), torch.no_grad():
                margin = logit_margin(model(x_adv), y[padded])[: len(rows)].float()
            stronger = ~(margin <= state.margin[rows])  # an output that is not a number counts as broken
            state.x_adv[rows[stronger]] = x_adv[: len(rows)][stronger]
            state.margin[rows[stronger]] = margin[stronger]
        state.restart = number + 1
    return state


def paper_restarts(attack: PgdFn, count: int, **how: Any) -> list[Restart]:
    """The paper's: steps of one size from a random start, the first half on cross-entropy, the rest on the CW loss.

    how: norm, eps, step_size and steps, as of `pgd`.
    """
    return [from_noise(attack, loss_fn=LOSSES[loss], **how) for loss in loss_names(count)]


def from_noise(attack: PgdFn, **how: Any) -> Restart:
    """`attack`, told how, from a random start in the whole ball."""
    return lambda model, x, y, uniform: attack(model, x, y, **how, noise=uniform(EVALUATE, x.shape[1:]))


def loss_names(count: int) -> list[str]:
    """The loss of each of the paper's restarts."""
    on_xent = -(-count // 2)
    return ["xent"] * on_xent + ["cw"] * (count - on_xent)


def strong_restarts(attack: PgdFn, count: int, *, norm: str, eps: float, step_size: float, steps: int) -> list[Restart]:
    """Steps that fall from step_size to 0. Every second restart climbs a random combination of logits first (ODI); the others
    start in turn anywhere in the ball, and at its corners, alike in blocks of a seventh and of a quarter of the image's side.

    They maximise the logit margin; every second one of ODI's z_t - z_y, for the class t of the largest wrong clean logit, of
    the second largest, and so on.
    """

    def restart(number: int) -> Restart:
        climbs, blocks = number % 2 == 1 and steps > ODI_STEPS, BLOCKS[number // 2 % len(BLOCKS)]
        how: dict[str, Any] = {"norm": norm, "eps": eps, "step_size": step_size, "decays": True}
        how["steps"] = steps - ODI_STEPS if climbs else steps

        def run(model: nn.Module, x: Tensor, y: Tensor, uniform: Uniform) -> Tensor:
            if number % 2 == 0 and blocks and x.dim() == 4:
                corners = uniform(EVALUATE, (x.shape[1], blocks, blocks)).round()
                noise = F.interpolate(corners, tuple(x.shape[2:]))
            else:
                noise = uniform(EVALUATE, x.shape[1:])
            with eval_mode(model), torch.no_grad():
                logits = model(x)
            if climbs:
                weights = 2 * uniform(ODI, logits.shape[1:]) - 1
                noise = odi_start(attack, model, x, norm, as_rows(eps, x), noise, weights, ODI_STEPS)
            if number % 4 < 3:
                return attack(model, x, y, **how, loss_fn=logit_margin, noise=noise)
            weights = class_weights(logits, y, number // 4)
            return attack(model, x, weights, **how, loss_fn=weighted_logits, noise=noise)

        return run

    return [restart(number) for number in range(count)]


RESTARTS = {"paper": paper_restarts, "strong": strong_restarts}


def settings_of(protocol: str, restarts: int) -> dict[str, Any]:
    """What a row says of how this protocol attacks, beside steps, their size and restarts."""
    if protocol == "paper":
        return {"losses": dict(Counter(loss_names(restarts)))}
    return {"odi_steps": ODI_STEPS, "full_restarts": FULL_RESTARTS, "skip_above": SKIP_ABOVE, "blocks": list(BLOCKS)}


def skip_below_of(protocol: str, clean: Tensor) -> Tensor | None:
    """(N,) logit margins of the clean images -> `skip_below` of this protocol."""
    return SKIP_ABOVE * clean if protocol == "strong" else None


def _padded(rows: Tensor, size: int) -> Tensor:
    """(n,) -> (size,), repeating the first row; n <= size."""
    return torch.cat([rows, rows[:1].expand(size - len(rows))])
