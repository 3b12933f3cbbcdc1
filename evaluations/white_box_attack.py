"""Repeated PGD at one radius after another, stopped and gone on with at any batch. N test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from evaluations.pgd_partial import Partial
from evaluations.repeated_pgd import Attacked, Course, Images, Listener, Running, clean_attacked, go_on
from evaluations.rows import Row
from evaluations.white_box_plan import Plan
from hardware.fast_pgd import FastPgd
from hardware.layout import layout_for
from hardware.memory import BatchSize
from losses import cross_entropy
from pgd import PgdFn
from processes.deadline import Deadline
from processes.distributed import World
from records.progress import Teller, duration


@dataclass
class Reached:
    """How far the attack has come: less memory or a stop loses no more than a batch."""

    clean: Attacked
    courses: dict[float, Course]  # by radius, ascending
    attacks: int = 0  # on an image
    running: Running | None = None  # what the last one was made with


@dataclass(frozen=True)
class Attack:
    """The radii that are missing, and what the attack on them works with."""

    plan: Plan
    radii: Sequence[float]  # ascending
    stored: Sequence[Row]  # what fell at a smaller radius by these stays fallen
    partial: Partial
    batch: BatchSize
    world: World
    deadline: Deadline
    teller: Teller

    @property
    def images(self) -> Images:
        """What is attacked."""
        x, y, _ = self.plan.subject.test.everything()
        return Images(x, y, self.plan.subject.test.numbers)

    def run(self) -> tuple[Reached, bool]:
        """All restarts at each radius, and whether they are whole or the deadline came first. Goes on from where the
        same evaluation was stopped, and, on one process, in smaller batches if memory does not suffice."""
        world, batch, images, model = self.world, self.batch, self.images, self.plan.subject.model
        # Several processes go on with the same batches; where memory does not suffice, one attacks its own in parts.
        run: Callable[..., Any] = batch.run if world.size == 1 else lambda work: work(batch.asked)
        clean = run(lambda size: clean_attacked(model, images, Running(size, world=world)))
        courses = {eps: _to(images.x.device, course) for eps, course in world.from_first(self.partial.load).items()}
        reached = Reached(clean, courses)
        going_on = bool(courses)
        whole = run(lambda size: self._rest(reached, size, going_on))
        batch.used = -world.largest(-batch.used)
        return reached, whole

    def _rest(self, reached: Reached, batch_size: int, going_on: bool) -> bool:
        """What is missing in `reached`, which is moved on batch by batch."""
        images = self.images
        attack = self._made_for(batch_size)
        attack = self.batch.attack(attack) if self.world.size > 1 else attack
        reached.running = Running(batch_size, attack, self.world)
        left = _Left(self, reached)
        if self.world.is_first:
            work = -(-left.standing // batch_size // self.world.size) * batch_size * left.restarts
            said = "going on with an evaluation that was stopped; " if going_on else ""
            self.teller.note(said + f"at most about {longest(self.plan, attack, work, batch_size)}")
        with left.bar:
            for eps in self.radii:
                listener = Listener(partial(self._note, reached, left, eps), partial(self.deadline.over, "PGD batch"))
                course = reached.courses.setdefault(eps, self._begin(reached, eps))
                protocol = self.plan.protocol(eps)
                if not go_on(self.plan.subject.model, images, protocol, course, reached.running, listener):
                    return False
        return True

    def _made_for(self, batch_size: int) -> PgdFn:
        """PGD in the arithmetic asked for, on a GPU as a graph for batches of this size."""
        flags, device = self.plan.flags, self.plan.subject.test.labels.device
        recorded = device.type == "cuda" and flags.cuda_graphs
        tune = layout_for(device, flags.precision, flags.deterministic).tune
        return FastPgd(self.plan.subject.model, flags.precision, rows=batch_size if recorded else None, tune=tune)

    def _begin(self, reached: Reached, eps: float) -> Course:
        """From the next smaller radius, and from what is stored of others."""
        smaller = [radius for radius in reached.courses if radius < eps]
        state = reached.courses[max(smaller)].found if smaller else reached.clean
        return Course.begin(state.fallen(self.plan.fallen(self.stored, eps)))

    def _note(self, reached: Reached, left: _Left, eps: float, course: Course, count: int) -> None:
        reached.attacks += count
        left.move(eps, course, count)
        if self.partial.is_due:
            self.keep(reached)

    def keep(self, reached: Reached) -> None:
        """Write down what is done.

        :raises UserError: if the folder cannot be written.
        """
        if self.world.is_first:
            with self.deadline.saving():
                self.partial.save(reached.courses)


class _Left:
    """How many attacks on an image are left if none falls, with their bar."""

    def __init__(self, attack: Attack, reached: Reached) -> None:
        self.attack = attack
        courses = reached.courses
        state = courses[max(courses)].found if courses else reached.clean
        self.standing, self.n = int(state.robust.sum()), len(state.margin)
        nb_restart = attack.plan.flags.nb_restart
        self.restarts = nb_restart * len(attack.radii) - sum(course.restart for course in courses.values())
        self.bar = attack.teller.bar(self.standing * self.restarts, "attack", warm=True)

    def move(self, eps: float, course: Course, count: int) -> None:
        """`count` images were attacked at this radius."""
        radii, nb_restart = list(self.attack.radii), self.attack.plan.flags.nb_restart
        left = nb_restart - course.restart - bool(course.attacked.any())
        later = nb_restart * (len(radii) - 1 - radii.index(eps))
        standing = int(course.found.robust.sum())
        self.bar.fewer((self.standing - standing) * (left + later))
        self.standing = standing
        self.bar.note(f"eps {eps:.4g}, accuracy so far {standing / self.n:.2%}")
        self.bar.update(count)


def _to(device: torch.device, course: Course) -> Course:
    found = Attacked(*(part.to(device) for part in course.found))
    return replace(course, found=found, attacked=course.attacked.to(device))


def longest(plan: Plan, attack: PgdFn, work: int, batch_size: int) -> str:
    """How long `work` attacks on an image take if none falls, by two steps on one batch.

    :raises UserError: if the network has no gradient.
    """
    subject = plan.subject
    count = min(batch_size, len(subject.test))
    x, y, _ = subject.test.batch(torch.arange(count))
    settings: dict[str, Any] = {"loss_fn": cross_entropy, "norm": subject.norm, "eps": 0.0, "step_size": 0.0}
    seconds = 0.0
    for _ in range(2):  # the first one warms up
        started = time.monotonic()
        try:
            attacked: Tensor = attack(subject.model, x, y, **settings, steps=2)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(
                f"{subject.path}: no gradient reaches the images through this network: attack it with "
                "evaluate_on_gradient_free_attacks.py"
            ) from None
        attacked.sum().item()
        seconds = (time.monotonic() - started) / (2 * count)
    return duration(seconds * plan.flags.nb_iter * work)
