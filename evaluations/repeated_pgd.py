"""PGD from several random starts on what still stands: the evaluation's attack.

N images, ... any image shape, C classes. Images in [0, 1]; eps and step sizes are radii in the same unit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses import logit_margin
from pgd import LossFn, PgdFn, pgd
from processes.distributed import ALONE, World
from utils import EVALUATE, eval_mode, row_noise


class Images(NamedTuple):
    """What is attacked."""

    x: Tensor  # (N, ...)
    y: Tensor  # (N,)
    index: Tensor  # (N,) their numbers in the data set: with (seed, restart, eps) they fix the random starts


class Protocol(NamedTuple):
    """How each restart attacks."""

    losses: tuple[LossFn, ...]  # one a restart
    norm: str
    eps: float
    step_size: float
    steps: int
    seed: int


class Running(NamedTuple):
    """In what portions, by what and by whom the work is done; no result depends on it but by rounding."""

    batch_size: int
    attack: PgdFn = pgd  # or what runs it faster; success is judged by the network itself
    world: World = ALONE  # of several processes each attacks every so many-th batch, and all end with the same state


class Attacked(NamedTuple):
    """What repeated PGD found for N images."""

    x_adv: Tensor  # (N, ...) the strongest perturbation found; the clean image where none raises the margin
    margin: Tensor  # (N,) logit margin there; >= 0: broken, or misclassified without any perturbation

    @property
    def robust(self) -> Tensor:
        """(N,) bool: classified right, and no restart breaks it. NaN is not robust."""
        return self.margin < 0

    def fallen(self, rows: Tensor) -> Attacked:
        """The same with these rows, (N,) bool, counted as broken, by flags that were stored without their images."""
        return self._replace(margin=torch.where(rows & self.robust, torch.inf, self.margin))


class Listener(NamedTuple):
    """Whom repeated PGD reports to."""

    # the restart's number, how many images were just attacked, how many of all still stand: of what other processes
    # attacked it is known at the end of a restart what fell
    on_batch: Callable[[int, int, int], None] = lambda restart, count, standing: None
    on_restart: Callable[[int, Attacked], None] = lambda restart, state: None  # its number, the state after it


NOBODY = Listener()


def clean_attacked(model: nn.Module, images: Images, run: Running) -> Attacked:
    """The state before any restart, every perturbation zero."""
    x, y, _ = images
    margin = torch.zeros(len(x), device=x.device)
    with eval_mode(model), torch.no_grad():
        batches = torch.arange(len(x), device=x.device).split(run.batch_size)
        for rows in batches[run.world.rank :: run.world.size]:
            padded = _pad(rows, run.batch_size)
            margin[rows] = logit_margin(model(x[padded]), y[padded])[: len(rows)].float()
    return Attacked(x.clone(), run.world.total(margin))


def repeated_pgd(
    model: nn.Module,
    images: Images,
    protocol: Protocol,
    state: Attacked,
    run: Running,
    listener: Listener = NOBODY,
    first_restart: int = 0,
) -> Attacked:
    """One restart of PGD for each of the protocol's losses, each only on the images that still stand in `state`.

    Judged at the last step of each restart. Batches hold survivors from the whole set and are padded to full size, so
    that no result depends on how they are packed. What `state` (from `clean_attacked`, or from a smaller eps) holds as
    broken stays broken. With first_restart one goes on from the state after the one before it.
    """
    state = Attacked(state.x_adv.clone(), state.margin.clone())
    world = run.world
    for restart in range(first_restart, len(protocol.losses)):
        survivors = state.robust.nonzero().squeeze(1)
        batches = survivors.split(run.batch_size) if len(survivors) else ()
        for number, rows in enumerate(batches):
            if number % world.size == world.rank:
                _attack_rows(model, images, protocol, state, run, restart, rows)
            listener.on_batch(restart, len(rows), int(state.robust.sum()))
        for number, rows in enumerate(batches):
            shared = world.share_from(number % world.size, state.x_adv[rows], state.margin[rows])
            state.x_adv[rows], state.margin[rows] = shared
        listener.on_restart(restart, state)
    return state


def _attack_rows(
    model: nn.Module, images: Images, protocol: Protocol, state: Attacked, run: Running, restart: int, rows: Tensor
) -> None:
    """Attack (B,) rows once, and write into `state` what is stronger than what it holds."""
    padded = _pad(rows, run.batch_size)
    x, y = images.x[padded], images.y[padded]
    key = (protocol.seed, EVALUATE, restart, _bits(protocol.eps))
    attacked = run.attack(
        model,
        x,
        y,
        loss_fn=protocol.losses[restart],
        norm=protocol.norm,
        eps=protocol.eps,
        step_size=protocol.step_size,
        steps=protocol.steps,
        noise=row_noise(images.index[padded], x.shape[1:], *key).to(x),
    )
    with eval_mode(model), torch.no_grad():
        found = logit_margin(model(attacked), y)[: len(rows)].float()
    stronger = ~(found <= state.margin[rows])  # an output that is not a number counts as broken
    state.x_adv[rows[stronger]] = attacked[: len(rows)][stronger]
    state.margin[rows[stronger]] = found[stronger]


def _bits(eps: float) -> int:
    """The radius as a whole number, so that each radius has starts of its own."""
    return int.from_bytes(struct.pack(">d", eps), "big")


def _pad(rows: Tensor, size: int) -> Tensor:
    """(n,) -> (size,), repeating the first row; n <= size."""
    return torch.cat([rows, rows[:1].expand(size - len(rows))])
