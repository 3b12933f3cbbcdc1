"""How far is the nearest adversarial image? `python evaluate_on_minimum_norm.py --model PATH`.

L2: Carlini-Wagner (the paper's protocol), DDN and FMN; Linf: FMN; all through foolbox. Beside them AN-PGD's margins of the
same images, as training measures them. A distance is 0 for a misclassified image and inf where no attack breaks it.
B batch, N test images, ... any image shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from check import checker_of
from config import DATASETS, NORMS, opt, require_positive
from errors import UserError, exits_on_user_error
from evaluations.evaluation import Subject, load_subject, refuse_to_shrink, stored_result, wilson, write_result
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
    shown,
    summary,
)
from evaluations.shards import choose
from flags import build_parser
from hardware.memory import BatchSize
from pgd import PgdFn, pgd
from processes.distributed import ALONE, World, device_of, main_of_process


@dataclass(frozen=True)
class MinimumNormFlags:
    """One evaluation by attacks that look for the nearest adversarial image."""

    model: str = opt("", "checkpoint file or run folder")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    attacks: str | None = opt(None, "some of cw,ddn,fmn (default: all of them under L2, fmn under Linf)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the distance (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    test_size: int | None = opt(None, "test images (default: the first 1000, the paper's; 100 for cw on a CPU)")
    steps: int | None = opt(
        None, "steps of every attack (default: 1000; cw 10000 in each of its 9 searches, on a CPU 1000)"
    )
    batch_size: int | None = opt(None, "images attacked together, and kept when stopped later (default: 200; CPU: 25)")
    seed: int = opt(0, "seed of the random draws, where an attack makes any")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "skip the attacks whose JSON beside the model holds this very evaluation")


PAPER_SIZE, CW_SIZE_ON_CPU = 1000, 100
CHECK_KEY = (1, 0)  # the random starts of the training's check: of the test split, at step 0


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print and write a JSON for each attack. Returns the exit status."""
    flags = parse(argv)
    with device_of(flags.device, flags.deterministic) as (world, device):
        return evaluate(flags, device, world)


def evaluate(flags: MinimumNormFlags, device: torch.device, world: World) -> int:
    """Of several processes each attacks its batches, and the first prints and writes."""
    say = print if world.is_first else lambda line: None
    subject, attacks, notes = world.one_a_machine_first(lambda: settle(flags, device))
    for note in notes + [f"--{name}: {what}" for name, what in subject.overrides.items()]:
        say(note)
    flags = replace(flags, batch_size=flags.batch_size or (200 if device.type == "cuda" else 25))
    runs = [
        Run(subject, attack, flags.steps or default_steps(attack, subject.norm, device), flags.batch_size, flags.seed)
        for attack in attacks
    ]
    if flags.resume:
        done = world.from_first(lambda: [run.attack for run in runs if run.is_done])
        for attack in done:
            say(f"{subject.result_file(attack)}: already done")
        runs = [run for run in runs if run.attack not in done]
    if not runs:
        return 0
    world.from_first(lambda: refuse_what_is_in_the_way(subject, runs))

    batch = BatchSize(flags.batch_size, "--batch_size", tqdm.write)
    clean = batch.run(lambda size: clean_logits(subject, size))
    say(f"AN-PGD on {len(clean)} images, as the training's check runs it")
    margins = anpgd_margins(subject, world)
    found: dict[str, Found] = {}
    for run in runs:
        found[run.attack] = attack_all(run, clean, batch, say, world)
        if not world.is_first:
            continue
        for done in runs[: len(found)]:  # again, because the best known distance may have become shorter
            report = content(done, clean, found, margins)
            write_result(subject, done.attack, report)
        parts_file(run).unlink(missing_ok=True)
    for line in table(subject, clean, found, margins) if world.is_first else ():
        say(line)
    for run in runs:
        say(f"written: {subject.result_file(run.attack)}")
    return 0


def refuse_what_is_in_the_way(subject: Subject, runs: Sequence[Run]) -> None:
    """:raises UserError: if a result on more images would be replaced, or one that is needed at the end is damaged."""
    for run in runs:
        refuse_to_shrink(subject, run.attack)
    for attack in possible_attacks(subject):
        stored_result(subject, attack)


def parse(argv: Sequence[str] | None = None) -> MinimumNormFlags:
    """The command line. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    parser = build_parser(MinimumNormFlags, "Find the nearest adversarial images.", "default: ")
    flags = MinimumNormFlags(**parser.parse(argv))
    if not flags.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    require_positive(flags, ("test_size", "steps", "batch_size"))
    if flags.attacks is not None:
        choose(flags.attacks, NAMES)
    return flags


def settle(flags: MinimumNormFlags, device: torch.device) -> tuple[Subject, list[str], list[str]]:
    """The network with its test images, the attacks, and what the user should be told.

    :raises UserError: as `load_subject`, for an attack that the norm does not have, and if results on more images than are
        attacked by default would be replaced.
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
        for attack in attacks:
            if (before := stored_result(subject, attack).get("n", 0)) > len(subject.test):
                raise UserError(
                    f"--test_size not given: {size} images by default, but {subject.result_file(attack)} holds this "
                    f"network's result on {before}: add --test_size {before}, or choose other --attacks"
                )
        why = "the paper's 1000 would take cw long on a CPU" if size == CW_SIZE_ON_CPU else "as in the paper"
        notes.append(f"--test_size not given: {len(subject.test)} images ({why})")
    if flags.steps is None:
        taken = [f"{attack} {default_steps(attack, subject.norm, device)}" for attack in attacks]
        notes.append(f"--steps not given: {', '.join(taken)}" + (" (10000 on a GPU)" if "cw 1000" in taken else ""))
    return subject, attacks, notes


def anpgd_margins(subject: Subject, world: World = ALONE) -> Tensor:
    """(N,) float64 on the CPU: AN-PGD's margins, by the training's own check."""
    batch = BatchSize(subject.training.eval_batch_size, "AN-PGD's batch", tqdm.write)

    def check(size: int, attack: PgdFn) -> Tensor:
        found = checker_of(subject.training, attack, size)(subject.model, subject.test, *CHECK_KEY, world=world)
        assert found is not None  # nothing stops it
        return found.margins

    # Several processes go on with the same batches; where memory does not suffice, one attacks its own in parts.
    margins = check(batch.asked, batch.attack(pgd)) if world.size > 1 else batch.run(lambda size: check(size, pgd))
    return margins.cpu().double()


def possible_attacks(subject: Subject) -> list[str]:
    """Those for its norm."""
    return [attack for attack, norm in METHODS if norm == subject.norm]


def best_known(subject: Subject, found: dict[str, Found]) -> tuple[list[float], list[str]]:
    """(N,) shortest distance by attacks of this run and by JSON beside the model, inf where there is none; their names."""
    n = len(subject.test)
    known = {attack: result.distances for attack, result in found.items()}
    for attack, norm in METHODS:
        stored = stored_result(subject, attack) if norm == subject.norm and attack not in known else {}
        distances = stored.get("distances", [])
        if len(distances) == n or (distances and subject.dataset != "imagefolder"):  # the first ones, in the same order
            cut = [math.inf if d is None else d for d in distances[:n]]
            known[attack] = cut + [math.inf] * (n - len(cut))
    return [min(column) for column in zip(*known.values(), strict=True)], sorted(known)


def compared(subject: Subject, clean: Tensor, found: dict[str, Found], margins: Tensor) -> dict:
    """AN-PGD's margins, (N,), and their ratio to the best known distances.

    The ratio is over the images that are classified right, that an attack broke, and whose margin is not the end of
    AN-PGD's search, where nothing was found.
    """
    end, bracket = subject.training.search_maxeps, subject.training.search_maxeps / 2**subject.training.num_search_steps
    at_end = (margins >= end - bracket).tolist()
    best, attacks = best_known(subject, found)
    usable = [
        right and not stuck and 0 < distance < math.inf
        for right, stuck, distance in zip(is_right(subject, clean).tolist(), at_end, best, strict=True)
    ]
    ratios = [margin / distance for margin, distance, use in zip(margins.tolist(), best, usable, strict=True) if use]
    return {
        **summary(margins.tolist()),
        "search_end": end,
        "at_search_end": sum(at_end),
        "ratio": {**summary(ratios), "n": len(ratios), "below_1": sum(r < 1 for r in ratios), "best_of": attacks},
        "distances": margins.tolist(),
    }


def batch_settings(run: Run, result: Found) -> dict[str, int]:
    """What was asked for, where it is not what memory sufficed for."""
    smaller = result.batch_size < run.batch_size
    return {"batch_size": result.batch_size, "batch_size_asked": run.batch_size} if smaller else {}


def content(run: Run, clean: Tensor, found: dict[str, Found], margins: Tensor) -> dict:
    """The JSON of one attack, without its head."""
    result, n, right = found[run.attack], len(clean), int(is_right(run.subject, clean).sum())
    distances = [d if math.isfinite(d) else None for d in result.distances]
    broken = [d for d in distances if d is not None]
    return {
        "clean_acc": right / n,
        "clean_ci95": wilson(right, n),
        "seed": run.seed,
        "settings": {**run.settings, "device": str(clean.device), **batch_settings(run, result)},
        "seconds": result.seconds,
        **summary(result.distances),
        "not_found": n - len(broken),
        "mean_of_found": summary(broken)["mean"],
        "anpgd": compared(run.subject, clean, found, margins),
        "distances": distances,
    }


def table(subject: Subject, clean: Tensor, found: dict[str, Found], margins: Tensor) -> list[str]:
    """What to print at the end."""
    n, right, anpgd = len(clean), int(is_right(subject, clean).sum()), compared(subject, clean, found, margins)
    best, attacks = best_known(subject, found)
    low, high = wilson(right, n)

    def row(name: str, figures: dict, *rest: str) -> str:
        return (
            f"{name:22}" + "".join(f"{shown(v):>11}" for v in (figures["mean"], *figures["quartiles"])) + "".join(rest)
        )

    def missing(values: Sequence[float]) -> str:
        return f"{sum(math.isinf(value) for value in values):>11}"

    return [
        f"{subject.path}: {subject.dataset}, {n} test images, on {clean.device}",
        f"clean accuracy {right / n:.2%}   95 % interval [{low:.2%}, {high:.2%}]",
        f"{f'smallest {subject.norm} distance':22}"
        + "".join(f"{t:>11}" for t in ("mean", "25 %", "50 %", "75 %", "not found")),
        *[row(name, summary(r.distances), missing(r.distances), f"   {r.seconds:g} s") for name, r in found.items()],
        row("best known", summary(best), missing(best), f"   of {', '.join(attacks)}"),
        row(
            "AN-PGD",
            anpgd,
            f"{anpgd['at_search_end']:>11}",
            f"   (margins at the search's end, {anpgd['search_end']:.4g})",
        ),
        row(
            "AN-PGD / best known",
            anpgd["ratio"],
            f"{'':11}   over {anpgd['ratio']['n']} images; below 1 in {anpgd['ratio']['below_1']}",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main_of_process(main))
