"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol) and DDN; Linf: APGD inside a search on eps; both: FMN and AN-PGD. A distance is 0 for
a misclassified image and inf where no attack breaks it. Every distance is an upper bound of the true one.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from evaluations.flags import SEARCHES, MinimumNormFlags, choose, parse_flags
from flags import answers_help

answers_help(__name__, lambda: parse_flags(MinimumNormFlags))

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from errors import UserError, exits_on_user_error
from evaluations import minimum_norm
from evaluations.compare_attacks import overestimates, write_curve
from evaluations.minimum_norm import ATTACKS, settings_of, shortest_distances
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


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print and write a JSON for each attack. Returns the exit status."""
    flags = parse_flags(MinimumNormFlags, argv)
    return run_evaluation(flags, evaluate, default_size=partial(default_size, flags))


def attacks_asked(flags: MinimumNormFlags, subject: Subject) -> list[str]:
    """The attacks of `--attacks`, or all that there are for this norm.

    :raises UserError: for an attack that the norm does not have.
    """
    possible = list(ATTACKS[subject.norm])
    attacks = possible if flags.attacks is None else choose(flags.attacks, list(SEARCHES))
    if wrong := [attack for attack in attacks if attack not in possible]:
        raise UserError(
            f"--attacks {wrong[0]}: not under {subject.norm}: name some of {','.join(possible)}, or give the other --norm"
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
    x, _, _ = subject.test.everything()
    logits = clean_logits(subject.model, x, min(batch_size, len(x)))
    done, rows = dict[str, Row](), dict[str, Row]()
    for attack in attacks:
        try:
            settings = settings_of(attack, subject.norm, steps[attack], logits.shape[1])
        except UserError as error:
            if flags.attacks is not None or attack == attacks[0]:  # the first needs fewest
                raise
            teller.say(f"warning: left out: {error}")
            continue
        row = subject.row(flags.seed, {**settings, "batch_size": batch_size})
        if stored := already_done(subject, attack, row, flags.overwrite, teller, world):
            done[attack] = stored
        else:
            rows[attack] = row
    search(subject, rows, done, logits, batch_size, teller, world)
    if flags.curve and world.is_first:
        teller.say(f"written: {write_curve(subject)}")
    teller.say(*overestimates(subject))


def search(
    subject: Subject,
    rows: dict[str, Row],
    done: dict[str, Row],
    logits: Tensor,
    batch_size: int,
    teller: Teller,
    world: World,
) -> None:
    """Run each attack of `rows`, of which each says how, write the JSON of each, and print a table of them and of those
    that are `done`; logits (N, C)."""
    right = logit_margin(logits, subject.test.labels) < 0
    batches = right.nonzero().squeeze(1).split(batch_size) if right.any() else ()
    with ExitStack() as kept:
        for attack, row in rows.items():

            def attack_batch(number: int, known: Mapping[int, Part], attack: str = attack, row: Row = row) -> Part:
                seed = mixed_seed(row["seed"], EVALUATE, number)
                found = shortest_distances(subject, attack, row["settings"], batches[number], logits, seed)
                return dict(zip(("distances", "passes"), found, strict=True))

            identity = [row["settings"], row["seed"]]
            shards = run_shards(attack_batch, len(batches), subject, attack, identity, teller, world)
            parts = kept.enter_context(shards)
            distances = torch.zeros(len(right), dtype=torch.float64)
            if parts:
                distances[right.cpu()] = torch.cat([part["distances"] for part in parts])
            rows[attack] = {**row, **clean_accuracy(right), **minimum_norm.figures_of(distances)}
            rows[attack]["settings"] = {**row["settings"], "device": str(subject.device)}
            rows[attack]["seconds"] = round(sum(part["seconds"] for part in parts), 1)
            rows[attack]["passes"] = round(sum(part["passes"] for part in parts) / max(int(right.sum()), 1), 1)
        if world.is_first:
            best, names = minimum_norm.best_known(subject, rows)
            for attack, row in (done | rows).items():
                distances = torch.tensor([math.inf if d is None else d for d in row["distances"]], dtype=torch.float64)
                row["local_optimality"] = {"value": minimum_norm.local_optimality(distances, best), "best_of": names}
                if attack in rows:
                    (rows[attack],) = subject.add_rows(attack, [row])
            teller.say(*minimum_norm.table(subject, done | rows, best, names))
    if rows:
        teller.say("written: " + ", ".join(str(subject.result_file(attack)) for attack in rows))


if __name__ == "__main__":
    sys.exit(main_of_process(main))
