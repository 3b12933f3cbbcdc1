"""Attack a trained network with AutoAttack (Croce & Hein 2020): `python evaluate_on_autoattack.py --model PATH`.

The standard ensemble of the package pyautoattack: APGD on cross-entropy, targeted APGD, targeted FAB, Square. An image is
robust if it is classified right and no attack breaks it. B batch, ... any image shape.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from config import opt
from errors import exits_on_user_error
from evaluations import external_attacks
from evaluations.autoattack import PARTS, build_autoattack, choose_ensemble, package_log, run_ensemble
from evaluations.external_attacks import ExternalAttack, settled_eps
from evaluations.flags import EvaluationFlags, parse_flags
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller

TRIAL_STEPS = 10


@dataclass(frozen=True)
class AutoAttackFlags(EvaluationFlags):
    """One evaluation by AutoAttack."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(
        None,
        f"some of {','.join(PARTS)}, by the package's budgets for a list of one's own; "
        "not standard AutoAttack (default: the standard ensemble)",
    )


def parse(argv: Sequence[str] | None = None) -> AutoAttackFlags:
    """The command line."""
    return parse_flags(AutoAttackFlags, "Attack a network with AutoAttack.", list(PARTS), argv)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    return run_evaluation(parse(argv), evaluate)


def evaluate(flags: AutoAttackFlags, subject: Subject, teller: Teller, world: World) -> None:
    """The ensemble at one radius."""
    eps = settled_eps(flags.eps, subject, teller, world)
    _, height, width = subject.test.shape
    settings, notes = world.together(
        lambda: choose_ensemble(subject.norm, height, width, classes_of(subject), flags.attacks)
    )
    for note in notes:
        teller.note(note)

    def build(seed: int) -> AutoAttack:
        return build_autoattack(subject.model, settings, norm=subject.norm, eps=eps, seed=seed, device=subject.device)

    attack = ExternalAttack(
        "autoattack",
        f"AutoAttack ({'' if settings['standard'] else 'not standard AutoAttack: '}{', '.join(settings['attacks'])})",
        eps,
        settings,
        lambda x, y, seed: run_ensemble(build(seed), x, y),
        lambda x, y: longest(build, settings["attacks"], x, y),
    )
    external_attacks.evaluate(attack, flags, flags.batch_size or len(subject.test), subject, teller, world)


def classes_of(subject: Subject) -> int:
    """How many logits the network gives."""
    with torch.no_grad():
        logits: Tensor = subject.model(torch.zeros(1, *subject.test.shape, device=subject.test.labels.device))
    return logits.shape[1]


def longest(build: Callable[[int], AutoAttack], attacks: Sequence[str], x: Tensor, y: Tensor) -> float:
    """Seconds the ensemble takes on (B, ...), (B,) if nothing falls: a few steps of each attack, times their number."""
    total = 0.0
    for name in attacks:
        place, length, _ = PARTS[name]
        part = getattr(build(0), place)
        steps = getattr(part, length) * (part.n_target_classes if name.endswith("-t") else part.n_restarts)
        setattr(part, length, TRIAL_STEPS)
        part.n_restarts = part.n_target_classes = 1
        if place == "fab":
            part.targeted = name == "fab-t"
        started = time.monotonic()
        with package_log():
            part.perturb(x, y)
        total += (time.monotonic() - started) * steps / TRIAL_STEPS
    return total


if __name__ == "__main__":
    sys.exit(main_of_process(main))
