"""PGD from several random starts on what still stands: the evaluation's attack.

N images, ... any image shape, C classes. Images in [0, 1]; eps and step sizes are radii in the same unit.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
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
    index: Tensor  # type: ignore[assignment]  # tuple.index is hidden; (N,) their numbers in the data set: with (seed, restart, eps) they fix the random starts


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


@dataclass
class Course:
    """How far the restarts at one radius have come; changed in place, so that a stop loses no more than a batch."""

    found: Attacked
    restart: int  # how many are whole
    attacked: Tensor  # (N,) bool: by the restart that is under way
    seconds: float = 0.0  # that it took

    @classmethod
    def begin(cls, state: Attacked) -> Course:
        """From `clean_attacked`, or from a smaller radius; `state` itself is left as it is."""
        return cls(Attacked(state.x_adv.clone(), state.margin.clone()), 0, torch.zeros_like(state.robust))


class Listener(NamedTuple):
    """Whom repeated PGD reports to, and who may stop it; of several processes all are called alike."""

    on_batch: Callable[[Course, int], None] = lambda course, count: None  # how many images were just attacked
    stop: Callable[[], bool] = lambda: False  # asked before each batch


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
    model: nn.Module, images: Images, protocol: Protocol, state: Attacked, run: Running, listener: Listener = NOBODY
) -> Attacked:
    """One restart of PGD for each of the protocol's losses, each only on the images that still stand in `state`.

    Judged at the last step of each restart. Batches hold survivors from the whole set and are padded to full size, so
    that no result depends on how they are packed. What `state` (from `clean_attacked`, or from a smaller eps) holds as
    broken stays broken.
    """
    course = Course.begin(state)
    go_on(model, images, protocol, course, run, listener)
    return course.found


def go_on(
    model: nn.Module, images: Images, protocol: Protocol, course: Course, run: Running, listener: Listener = NOBODY
) -> bool:
    """What is left of `course`, as `repeated_pgd`; False if the listener stopped it."""
    found, world = course.found, run.world
    for restart in range(course.restart, len(protocol.losses)):
        waiting = (found.robust & ~course.attacked).nonzero().squeeze(1)
        batches = waiting.split(run.batch_size) if len(waiting) else ()
        for first in range(0, len(batches), world.size):
            if listener.stop():
                return False
            started = time.monotonic()
            group = batches[first : first + world.size]
            if world.rank < len(group):
                _attack_rows(model, images, protocol, found, run, restart, group[world.rank])
            for rank, rows in enumerate(group):
                found.x_adv[rows], found.margin[rows] = world.share_from(rank, found.x_adv[rows], found.margin[rows])
                course.attacked[rows] = True
            if first + world.size >= len(batches):
                _next_restart(course)
            course.seconds += time.monotonic() - started
            listener.on_batch(course, sum(map(len, group)))
        if course.restart == restart:  # nothing was left of it
            _next_restart(course)
    return True


def _next_restart(course: Course) -> None:
    course.restart += 1
    course.attacked[:] = False


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
