"""Attack a trained network with AutoAttack (Croce & Hein 2020): `python evaluate_on_autoattack.py --model PATH`.

The standard ensemble of the package pyautoattack: APGD on cross-entropy, targeted APGD, targeted FAB, Square. An image is
robust if it is classified right and no attack breaks it. B batch, ... any image shape.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from config import opt
from errors import UserError, exits_on_user_error
from evaluations import external_attacks
from evaluations.external_attacks import settled_eps, square_starts
from evaluations.flags import EvaluationFlags, choose, parse_flags
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 4, "square": 2}  # that each needs at least
MOST_TARGETS = 9


@dataclass(frozen=True)
class AutoAttackFlags(EvaluationFlags):
    """Attack a network with AutoAttack."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(
        None,
        f"some of {','.join(CLASSES)}, by the package's budgets for a list of one's own; "
        "not standard AutoAttack (default: the standard ensemble)",
    )


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    return run_evaluation(parse_flags(AutoAttackFlags, argv), evaluate)


def evaluate(flags: AutoAttackFlags, subject: Subject, teller: Teller, world: World) -> None:
    """The ensemble at one radius."""
    eps = settled_eps(flags.eps, subject, teller, world)
    settings, notes = world.together(lambda: choose_ensemble(flags, subject))
    for note in notes:
        teller.note(note)

    def attack(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, list[str]]:
        built = build_autoattack(subject.model, settings, norm=subject.norm, eps=eps, seed=seed, device=x.device)
        return run_ensemble(built, x, y)

    external_attacks.evaluate(
        flags,
        subject,
        teller,
        world,
        name="autoattack",
        title=f"{'' if settings['standard'] else 'not standard '}AutoAttack ({', '.join(settings['attacks'])})",
        eps=eps,
        settings=settings,
        batch_size=flags.batch_size or len(subject.test),
        attack=attack,
    )


def choose_ensemble(flags: AutoAttackFlags, subject: Subject) -> tuple[dict[str, Any], list[str]]:
    """The standard ensemble less what cannot run on this network, or the list in `--attacks`: settings for the JSON, which
    say all, and what the user should be told.

    :raises UserError: if an attack of that list cannot run.
    """
    channels, height, width = subject.test.shape
    with torch.no_grad():
        classes = subject.model(torch.zeros(1, channels, height, width, device=subject.test.labels.device)).shape[1]
    reasons = {
        name: f"{name} needs at least {least} classes, and here are {classes}"
        for name, least in CLASSES.items()
        if classes < least
    }
    if not square_starts(subject.norm, height, width):
        reasons["square"] = f"square cannot start on {height}x{width} images under L2"
    names = (
        choose(flags.attacks, list(CLASSES)) if flags.attacks else [name for name in STANDARD if name not in reasons]
    )
    if wrong := [name for name in names if name in reasons]:
        raise UserError(f"--attacks {flags.attacks}: {reasons[wrong[0]]}: leave it out")
    standard = not flags.attacks and names == list(STANDARD)
    settings = {
        "attacks": names,
        "version": "custom" if flags.attacks else "standard",  # by the package's budgets for a list of the user's own
        "standard": standard,
        "name": "AutoAttack" if standard else "not standard AutoAttack",
        "targets": min(MOST_TARGETS, classes - 1),  # wrong classes that the targeted attacks try
        "package": f"pyautoattack {version('pyautoattack')}",
    }
    why = (
        ["--attacks is a list of your own"]
        if flags.attacks
        else [reasons[name] for name in STANDARD if name in reasons]
    )
    return settings, [f"not standard AutoAttack: {reason}" for reason in why]


def build_autoattack(
    model: nn.Module, settings: dict[str, Any], *, norm: str, eps: float, seed: int, device: torch.device
) -> AutoAttack:
    """The package's object for these attacks, with no more target classes than there are."""
    chosen = {"attacks": settings["attacks"]} if settings["version"] == "custom" else {}
    with package_log():
        built = AutoAttack(model, version=settings["version"], norm=norm, eps=eps, seed=seed, device=device, **chosen)
    built.attacks_to_run = settings["attacks"]
    built.apgd_targeted.n_target_classes = built.fab.n_target_classes = settings["targets"]
    return built


def run_ensemble(ensemble: AutoAttack, x: Tensor, y: Tensor) -> tuple[Tensor, list[str]]:
    """(B, ...), (B,), all classified right -> what the ensemble finds, with the package's warnings."""
    trace = sys.gettrace()  # the package takes away a debugger's or coverage's
    with package_log() as warnings:
        try:
            x_adv, _ = ensemble.run_standard_evaluation(x, y, batch_size=len(y))
        finally:
            sys.settrace(trace)
    return x_adv, list(warnings.values())


@contextmanager
def package_log() -> Iterator[dict[str, str]]:
    """Silence the package's logger; give its warnings, of those that differ in numbers only the first."""
    logger = logging.getLogger("auto-attack")
    before = logger.handlers, logger.level, logger.propagate
    warnings: dict[str, str] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().replace(" See flags_doc.md for details.", "")
            warnings.setdefault(re.sub(r"[\d.]+", "#", text), f"pyautoattack on one shard: {text}")

    logger.handlers, logger.propagate = [Listener()], False
    logger.setLevel(logging.WARNING)
    try:
        yield warnings
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])


if __name__ == "__main__":
    sys.exit(main_of_process(main))
