"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol), DDN and FMN; Linf: FMN; all through foolbox. Beside them AN-PGD's margins of the
same images, as training measures them. A distance is 0 for a misclassified image and inf where no attack breaks it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from check import checker_of
from config import opt
from errors import UserError, exits_on_user_error
from evaluations import minimum_norm
from evaluations.compare_attacks import overestimates
from evaluations.flags import EvaluationFlags, choose, parse_flags
from evaluations.minimum_norm import NAMES, attacks_under, default_steps
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller

PAPER_SIZE, CW_SIZE_ON_CPU = 1000, 100
CHECK_KEY = (1, 0)  # the random starts of the training's check: of the test split, at step 0


@dataclass(frozen=True)
class MinimumNormFlags(EvaluationFlags):
    """One evaluation by attacks that look for the nearest adversarial image."""

    attacks: str | None = opt(None, "some of cw,ddn,fmn (default: all of them under L2, fmn under Linf)")
    test_size: int | None = opt(
        None,
        "so many images of the split: the first; by class from a folder of pictures (default: 1000, the paper's; 100 for cw "
        "on a CPU)",
    )
    steps: int | None = opt(
        None, "steps of every attack (default: 1000; cw 10000 in each of its 9 searches, on a CPU 1000)"
    )
    batch_size: int | None = opt(None, "images attacked together, and kept when stopped later (default: 200; CPU: 25)")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print and write a JSON for each attack. Returns the exit status."""
    flags = parse(argv)
    return run_evaluation(flags, evaluate, default_size=partial(default_size, flags))


def parse(argv: Sequence[str] | None = None) -> MinimumNormFlags:
    """The command line."""
    return parse_flags(MinimumNormFlags, "Look for the nearest adversarial images.", NAMES, argv)


def attacks_asked(flags: MinimumNormFlags, subject: Subject) -> list[str]:
    """The attacks of `--attacks`, or all that there are for this norm.

    :raises UserError: for an attack that the norm does not have.
    """
    possible = attacks_under(subject.norm)
    attacks = possible if flags.attacks is None else choose(flags.attacks, NAMES)
    if wrong := [attack for attack in attacks if attack not in possible]:
        raise UserError(
            f"--attacks {wrong[0]}: not under {subject.norm}: name some of {','.join(possible)}, or add --norm L2"
        )
    return attacks


def default_size(flags: MinimumNormFlags, subject: Subject) -> int:
    """The paper's number of images, or as many as a CPU does in hours."""
    slow = subject.device.type == "cpu" and "cw" in attacks_asked(flags, subject)
    return CW_SIZE_ON_CPU if slow else PAPER_SIZE


def evaluate(flags: MinimumNormFlags, subject: Subject, teller: Teller, world: World) -> None:
    """Every attack that is not done yet, and what their distances say of PGD's figure."""
    steps = {attack: flags.steps or default_steps(attack, subject) for attack in attacks_asked(flags, subject)}
    if flags.test_size is None:
        why = (
            "the paper's 1000 would take cw long on a CPU"
            if default_size(flags, subject) < PAPER_SIZE
            else "as in the paper"
        )
        teller.note(f"--test_size not given: {len(subject.test)} images ({why})")
    if flags.steps is None:
        slow = " (10000 on a GPU)" if steps.get("cw") == 1000 else ""
        teller.note(f"--steps not given: {', '.join(f'{attack} {number}' for attack, number in steps.items())}{slow}")
    minimum_norm.evaluate(
        subject,
        steps,
        lambda: anpgd_margins(subject, world),
        seed=flags.seed,
        batch_size=flags.batch_size or (200 if subject.device.type == "cuda" else 25),
        overwrite=flags.overwrite,
        teller=teller,
        world=world,
    )
    for line in overestimates(subject):
        teller.say(line)


def anpgd_margins(subject: Subject, world: World) -> Tensor:
    """(N,) float64 on the CPU: AN-PGD's margins, by the training's own check."""
    found = checker_of(subject.training)(subject.model, subject.test, *CHECK_KEY, world=world)
    assert found is not None  # nothing stops it
    return found.margins.cpu().double()


if __name__ == "__main__":
    sys.exit(main_of_process(main))
