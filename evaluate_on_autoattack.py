"""Attack a trained network with AutoAttack (Croce & Hein 2020): `python evaluate_on_autoattack.py --model PATH`.

The standard ensemble of the package pyautoattack: APGD on cross-entropy, targeted APGD, targeted FAB, Square. An image is
robust if it is classified right and no attack breaks it. B batch, ... any image shape.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from evaluations.flags import AutoAttackFlags, parse_flags
from flags import answers_help

answers_help(__name__, lambda: parse_flags(AutoAttackFlags))

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errors import exits_on_user_error
from evaluations import external_attacks
from evaluations.autoattack import choose_ensemble, run_ensemble
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the result. Returns the exit status."""
    return run_evaluation(parse_flags(AutoAttackFlags, argv), evaluate)


def evaluate(flags: AutoAttackFlags, subject: Subject, teller: Teller, world: World) -> None:
    """The ensemble at one radius."""
    (eps,), notes = world.together(lambda: subject.radii([flags.eps] if flags.eps else None))
    with torch.no_grad():
        classes = subject.model(torch.zeros(1, *subject.test.shape, device=subject.device)).shape[1]
    settings, more = world.together(lambda: choose_ensemble(subject.norm, subject.test.shape, classes, flags.attacks))
    teller.note(*notes, *more)

    def attack(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, list[str]]:
        return run_ensemble(subject.model, x, y, settings, norm=subject.norm, eps=eps, seed=seed)

    how: dict[str, Any] = {"eps": eps, "settings": settings, "batch_size": flags.batch_size or len(subject.test)}
    external_attacks.evaluate(flags, subject, teller, world, name="autoattack", attack=attack, **how)


if __name__ == "__main__":
    sys.exit(main_of_process(main))
