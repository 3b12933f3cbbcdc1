"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol), DDN and FMN; Linf: FMN; all through foolbox. Beside them AN-PGD's margins of the
same images, as training measures them. A distance is 0 for a misclassified image and inf where no attack breaks it.
B batch, N test images, ... any image shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from check import checker_of
from config import opt
from errors import UserError, exits_on_user_error
from evaluations.accuracy import clean_accuracy
from evaluations.common_flags import CommonFlags, choose, line_that_goes_on, overrides_said, parse_flags, what_next
from evaluations.distances import Measured, figures_of, table
from evaluations.minimum_norm import (
    METHODS,
    NAMES,
    Found,
    Run,
    attack_all,
    clean_logits,
    default_steps,
    is_right,
    parts_file,
)
from evaluations.others import overestimates
from evaluations.results import add_rows, is_done, require_writable
from evaluations.rows import Row
from evaluations.subject import Subject, load_subject
from hardware.memory import BatchSize
from pgd import PgdFn, pgd
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import ALONE, World, device_of, main_of_process
from records.progress import Teller, tell


@dataclass(frozen=True)
class MinimumNormFlags(CommonFlags):
    """One evaluation by attacks that look for the nearest adversarial image."""

    attacks: str | None = opt(None, "some of cw,ddn,fmn (default: all of them under L2, fmn under Linf)")
    test_size: int | None = opt(
        None,
        "so many images of the split: the first; by class from a folder of pictures (default: 1000, the paper's; 100 for cw on a CPU)",
    )
    steps: int | None = opt(
        None, "steps of every attack (default: 1000; cw 10000 in each of its 9 searches, on a CPU 1000)"
    )
    batch_size: int | None = opt(None, "images attacked together, and kept when stopped later (default: 200; CPU: 25)")


PAPER_SIZE, CW_SIZE_ON_CPU = 1000, 100
CHECK_KEY = (1, 0)  # the random starts of the training's check: of the test split, at step 0


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print and write a JSON for each attack. Returns the exit status."""
    flags = parse(argv)
    with device_of(flags.device, flags.deterministic) as (world, device):
        deadline = Deadline(flags.max_minutes, since_start(), world.largest, world.is_first)
        teller = Teller(world.is_first, flags.quiet)
        subject, attacks, notes = world.one_a_machine_first(lambda: settle(flags, device))
        for note in notes + overrides_said(subject):
            teller.note(note)
        runs = []
        for run in make_runs(flags, subject, attacks, device):
            if world.from_first(partial(is_done, run, flags.overwrite)):
                teller.say(f"{subject.result_file(run.attack)}: already done")
            else:
                runs.append(run)
        if not runs or evaluate(subject, runs, teller, world, deadline):
            for line in overestimates(subject):
                teller.say(line)
            teller.say(what_next(flags, subject))
            return 0
        teller.say(line_that_goes_on("evaluate_on_minimum_norm.py", argv, flags.max_minutes, world))
        return AGAIN


def parse(argv: Sequence[str] | None = None) -> MinimumNormFlags:
    """The command line. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    flags = parse_flags(MinimumNormFlags, argv, "Look for the nearest adversarial images.", ("steps",))
    if flags.attacks is not None:
        choose(flags.attacks, NAMES)
    return flags


def settle(flags: MinimumNormFlags, device: torch.device) -> tuple[Subject, list[str], list[str]]:
    """The network with its test images, the attacks, and what the user should be told.

    :raises UserError: as `load_subject`, and for an attack that the norm does not have.
    """
    subject = load_subject(flags, device)
    possible = possible_attacks(subject)
    attacks = possible if flags.attacks is None else choose(flags.attacks, NAMES)
    if wrong := [attack for attack in attacks if attack not in possible]:
        raise UserError(
            f"--attacks {wrong[0]}: not under {subject.norm}: name some of {','.join(possible)}, or add --norm L2"
        )
    notes = []
    if flags.test_size is None:
        size = CW_SIZE_ON_CPU if "cw" in attacks and device.type == "cpu" else PAPER_SIZE
        if len(subject.test) > size:
            subject = load_subject(replace(flags, test_size=size), device)
        why = "the paper's 1000 would take cw long on a CPU" if size == CW_SIZE_ON_CPU else "as in the paper"
        notes.append(f"--test_size not given: {len(subject.test)} images ({why})")
    if flags.steps is None:
        taken = [f"{attack} {default_steps(attack, subject.norm, device)}" for attack in attacks]
        notes.append(f"--steps not given: {', '.join(taken)}" + (" (10000 on a GPU)" if "cw 1000" in taken else ""))
    return subject, attacks, notes


def possible_attacks(subject: Subject) -> list[str]:
    """Those for its norm."""
    return [attack for attack, norm in METHODS if norm == subject.norm]


def make_runs(flags: MinimumNormFlags, subject: Subject, attacks: Sequence[str], device: torch.device) -> list[Run]:
    """Each attack with its steps."""
    size = flags.batch_size or (200 if device.type == "cuda" else 25)
    return [
        Run(subject, attack, flags.steps or default_steps(attack, subject.norm, device), size, flags.seed)
        for attack in attacks
    ]


def evaluate(subject: Subject, runs: Sequence[Run], teller: Teller, world: World, deadline: Deadline) -> bool:
    """Of several processes each attacks its batches, and the first prints and writes. False: the deadline stopped it."""
    require_writable(subject.path.parent)
    batch = BatchSize(runs[0].batch_size, "--batch_size", tell)
    clean = batch.run(lambda size: clean_logits(subject, size))
    teller.note(f"AN-PGD on {len(clean)} images, as the training's check runs it")
    margins, right = anpgd_margins(subject, world), is_right(subject, clean).cpu()
    found: dict[str, Found] = {}

    def measured() -> Measured:
        distances = {attack: result.distances for attack, result in found.items()}
        return Measured(subject, right, margins, distances, possible_attacks(subject))

    for run in runs:
        result = attack_all(run, clean, batch, teller, world, deadline)
        if result is None:
            return False
        found[run.attack] = result
        if world.is_first:
            anpgd = measured().compared()
            for done in runs[: len(found)]:  # again, because the best known distance may have become shorter
                row = make_row(done, right, found[done.attack]) | {"anpgd": anpgd}
                add_rows(subject.result_file(done.attack), subject.head(done.attack), [row])
            parts_file(run).unlink(missing_ok=True)
    if world.is_first:
        for line in table(measured(), {attack: result.seconds for attack, result in found.items()}):
            teller.say(line)
        teller.say("written: " + ", ".join(str(subject.result_file(run.attack)) for run in runs))
    return True


def anpgd_margins(subject: Subject, world: World = ALONE) -> Tensor:
    """(N,) float64 on the CPU: AN-PGD's margins, by the training's own check."""
    batch = BatchSize(subject.training.eval_batch_size, "AN-PGD's batch", tell)

    def check(size: int, attack: PgdFn) -> Tensor:
        found = replace(checker_of(subject.training, attack), batch_size=size)(
            subject.model, subject.test, *CHECK_KEY, world=world
        )
        assert found is not None  # nothing stops it
        return found.margins

    # Several processes go on with the same batches; where memory does not suffice, one attacks its own in parts.
    margins = check(batch.asked, batch.attack(pgd)) if world.size > 1 else batch.run(lambda size: check(size, pgd))
    return margins.cpu().double()


def make_row(run: Run, right: Tensor, found: Found) -> Row:
    """The result of one attack."""
    smaller = found.batch_size < run.batch_size
    asked = {"batch_size": found.batch_size, "batch_size_asked": run.batch_size} if smaller else {}
    return {
        "n": len(right),
        "split": run.subject.split,
        "images": run.subject.images,
        "seed": run.seed,
        **clean_accuracy(right),
        "settings": {**run.settings, "device": str(run.subject.test.labels.device), **asked},
        "seconds": found.seconds,
        **figures_of(found.distances),
    }


if __name__ == "__main__":
    sys.exit(main_of_process(main))
