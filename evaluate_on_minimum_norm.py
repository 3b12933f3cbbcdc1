"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol), DDN and FMN; Linf: FMN; all through foolbox. Beside them AN-PGD's margins of the
same images, as training measures them. A distance is 0 for a misclassified image and inf where no attack breaks it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from check import check_split
from config import opt
from errors import UserError, exits_on_user_error
from evaluations.compare_attacks import overestimates
from evaluations.flags import EvaluationFlags, choose, parse_flags
from evaluations.minimum_norm import (
    ATTACKS,
    SEARCHES,
    attacks_under,
    best_known,
    compared,
    figures_of,
    shortest_distances,
    table,
)
from evaluations.repeated_pgd import clean_logits
from evaluations.results import Row, clean_accuracy
from evaluations.shards import Part, already_done, run_evaluation, run_shards
from evaluations.subject import Subject
from losses import logit_margin
from processes.distributed import World, main_of_process
from records.progress import Teller
from utils import EVALUATE, mixed_seed

PAPER_SIZE, CW_SIZE_ON_CPU = 1000, 100
STEPS, CW_STEPS = 1000, 10_000  # on a CPU cw takes as many as the others
CHECK_KEY = (1, 0)  # the random starts of the training's check: of the test split, at step 0


@dataclass(frozen=True)
class MinimumNormFlags(EvaluationFlags):
    """Look for the nearest adversarial images."""

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
    flags = parse_flags(MinimumNormFlags, argv)
    return run_evaluation(flags, evaluate, default_size=partial(default_size, flags))


def attacks_asked(flags: MinimumNormFlags, subject: Subject) -> list[str]:
    """The attacks of `--attacks`, or all that there are for this norm.

    :raises UserError: for an attack that the norm does not have.
    """
    possible = attacks_under(subject.norm)
    attacks = possible if flags.attacks is None else choose(flags.attacks, list(SEARCHES))
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
    """Every attack that is not done yet; the JSON of each, a table, and what their distances say of PGD's figure.

    :raises UserError: if the folder cannot be written.
    """
    attacks, on_cpu = attacks_asked(flags, subject), subject.device.type == "cpu"
    steps = {name: flags.steps or (CW_STEPS if name == "cw" and not on_cpu else STEPS) for name in attacks}
    if flags.test_size is None:
        few = default_size(flags, subject) < PAPER_SIZE
        why = "the paper's 1000 would take cw long on a CPU" if few else "as in the paper"
        teller.note(f"--test_size not given: {len(subject.test)} images ({why})")
    if flags.steps is None:
        slow = f" ({CW_STEPS} on a GPU)" if "cw" in steps and on_cpu else ""
        teller.note(f"--steps not given: {', '.join(f'{attack} {number}' for attack, number in steps.items())}{slow}")
    batch_size = flags.batch_size or (25 if on_cpu else 200)
    rows = {}
    for attack in attacks:
        settings = {"steps": steps[attack], "searches": SEARCHES[attack], **ATTACKS[attack, subject.norm][1]}
        row = subject.row(flags.seed, {**settings, "batch_size": batch_size, "foolbox": version("foolbox")})
        if not already_done(subject, attack, row, flags.overwrite, teller, world):
            rows[attack] = row
    if rows:
        search(subject, rows, batch_size, teller, world)
    for line in overestimates(subject):
        teller.say(line)


def search(subject: Subject, rows: dict[str, Row], batch_size: int, teller: Teller, world: World) -> None:
    """Run each attack of `rows`, of which each says how, write the JSON of each, and print a table."""
    x, y, _ = subject.test.everything()
    logits = clean_logits(subject.model, x, min(batch_size, len(x)))
    right = logit_margin(logits, y) < 0
    batches = right.nonzero().squeeze(1).split(batch_size) if right.any() else ()
    found, seconds = dict[str, Tensor](), dict[str, float]()  # found: distances
    with ExitStack() as kept:
        for attack, row in rows.items():

            def attack_batch(number: int, known: Mapping[int, Part], attack: str = attack, row: Row = row) -> Part:
                steps, seed = row["settings"]["steps"], mixed_seed(row["seed"], EVALUATE, number)
                return {"distances": shortest_distances(subject, attack, steps, batches[number], logits, seed)}

            identity = [row["settings"], row["seed"]]
            shards = run_shards(attack_batch, len(batches), subject, attack, identity, teller, world, title=attack)
            parts = kept.enter_context(shards)
            found[attack] = torch.zeros(len(x), dtype=torch.float64)
            if parts:
                found[attack][right.cpu()] = torch.cat([part["distances"] for part in parts])
            seconds[attack] = round(sum(part["seconds"] for part in parts), 1)
        teller.note(f"AN-PGD on {len(x)} images, as the training's check runs it")
        check = check_split(subject.model, subject.test, subject.training, *CHECK_KEY, world=world)
        if world.is_first:
            best, attacks = best_known(subject, found)
            anpgd = compared(subject, right, check.margins.cpu().double(), best, attacks)
            for attack, row in rows.items():
                settings = {**row["settings"], "device": str(subject.device)}
                figures = {**clean_accuracy(right), **figures_of(found[attack]), "anpgd": anpgd}
                subject.add_rows(attack, [{**row, **figures, "settings": settings, "seconds": seconds[attack]}])
            for line in table(subject, right, found, best, anpgd, seconds):
                teller.say(line)
    teller.say("written: " + ", ".join(str(subject.result_file(attack)) for attack in rows))


if __name__ == "__main__":
    sys.exit(main_of_process(main))
