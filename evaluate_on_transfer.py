"""Every network's adversarial images replayed on every other.

    python evaluate_on_transfer.py RUN RUN ... [--eps 0.1 0.2]

The images are those that `evaluate_on_pgd_attacks.py --save_adv` left beside each network; where there are none that fit,
they are made first. In the matrix stands the accuracy of the row's network on the images made against the column's.
Images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from config import DATASETS, NORMS, QUIET, SPLITS, opt
from errors import UserError, exits_on_user_error
from evaluations import white_box
from evaluations.adversarial_images import saved_images
from evaluations.common_flags import line_that_goes_on
from evaluations.flags import EvalConfig
from evaluations.results import add_rows, require_writable
from evaluations.rows import Row, effort
from evaluations.subject import Subject, load_subject
from evaluations.transfer import Field, make_row, matrix, replay_all, right_on
from evaluations.white_box_plan import make_plan
from flags import Radii, build_parser
from hardware.memory import BatchSize
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import one_process_only
from records.commands import command
from records.progress import Teller, tell
from utils import use_device
from validation import require_positive


@dataclass(frozen=True)
class TransferFlags:
    """The flags, which are passed on where adversarial images have to be made."""

    eps: Radii | None = opt(None, "one or more radii, or grid (default: the test radius of the runs' training)")
    split: str = opt("test", "test images, or the validation or training images of their training", tuple(SPLITS))
    test_size: int | None = opt(
        None, "so many images of the split: the first; by class from a folder of pictures (default: all)"
    )
    nb_iter: int | None = opt(None, "PGD steps, where images must be made (default: as in their JSON, else 100)")
    nb_restart: int | None = opt(None, "restarts, where images must be made (default: as in their JSON, else 10)")
    batch_size: int = opt(200, "images a batch")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    dataset: str | None = opt(None, "data set (default: the checkpoints')", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoints')", NORMS)
    network: str | None = opt(None, "network of all runs (default: each checkpoint's); your own must be named here")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoints', else data)")
    resume: bool = opt(False, "has no effect: what was stopped goes on anyway, and what is done is not done again")
    overwrite: bool = opt(False, "replay anew where the JSON beside the models hold this very comparison")
    max_minutes: float | None = opt(None, "stop before so many minutes are over, exit status 75; start again to go on")
    quiet: bool = opt(False, QUIET)


OWN_FLAGS = ("overwrite", "resume", "max_minutes")  # which are not about making images


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print and write a JSON beside each network. Returns the exit status."""
    runs, flags = parse(argv)
    one_process_only("evaluate_on_transfer.py")
    device = use_device(flags.device, False)
    deadline = Deadline(flags.max_minutes, since_start())
    subjects = [load_subject(evaluation_flags(flags, run), device) for run in runs]
    teller = Teller(quiet=flags.quiet)
    radii = shared_radii(flags, runs, subjects, teller)
    for subject in subjects:
        subject.rows("transfer")  # read at the end: better refused now
        require_writable(subject.path.parent)
    if compare(flags, runs, subjects, radii, teller, deadline):
        folders = (str(subject.path.parent) for subject in subjects)
        teller.say(f"look at it with: {command('reports/make_report.py', *folders)}")
        return 0
    teller.say(line_that_goes_on("evaluate_on_transfer.py", argv, flags.max_minutes))
    return AGAIN


def parse(argv: Sequence[str] | None = None) -> tuple[list[str], TransferFlags]:
    """The command line: run folders or checkpoint files, and flags.

    :raises UserError: for a wrong flag or value.
    """
    parser = build_parser(TransferFlags, "Replay every network's adversarial images on every other.", "default: ")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder or checkpoint file", default=[])
    given = parser.parse_with_file(argv)
    runs = given.pop("runs")
    if "eps" in given:
        given["eps"] = tuple(given["eps"])
    flags = TransferFlags(**given)
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run folders: transfer needs two or more: name them before the flags")
    require_positive(flags, ("nb_iter", "nb_restart", "test_size", "batch_size", "max_minutes"))
    return runs, flags


def evaluation_flags(flags: TransferFlags, run: str) -> EvalConfig:
    """The same as flags of the PGD evaluation of one run."""
    shared = {name: value for name, value in asdict(flags).items() if value is not None and name not in OWN_FLAGS}
    return EvalConfig(model=run, **shared)


def shared_radii(flags: TransferFlags, runs: Sequence[str], subjects: Sequence[Subject], teller: Teller) -> list[float]:
    """The radii, ascending, after a look at whether all runs can be compared.

    :raises UserError: naming two runs that differ in data set, norm, images or radii.
    """
    first = subjects[0]
    radii: list[float] = []
    for run, subject in zip(runs, subjects, strict=True):
        for name in ("dataset", "norm"):
            own, others = getattr(subject, name), getattr(first, name)
            if own != others:
                raise UserError(
                    f"--{name}: {others} in {runs[0]}, {own} in {run}: they cannot be compared; leave one out, "
                    f"or add --{name} to attack all in one"
                )
        if subject.images != first.images or not torch.equal(subject.test.numbers, first.test.numbers):
            raise UserError(f"--data_root: {runs[0]} and {run} were trained on other images: name one folder for all")
        plan, notes = make_plan(evaluation_flags(flags, run), subject)
        for note in notes if subject is first else ():
            teller.note(note)
        radii = radii or list(plan.radii)
        if radii != list(plan.radii):
            raise UserError(
                f"--eps: {_listed(radii)} for {runs[0]}, {_listed(plan.radii)} for {run}: give the radii to compare at"
            )
    if len({subject.path.parent.resolve() for subject in subjects}) < len(subjects):
        raise UserError(
            "two of the runs lie in one folder, where each one's adversarial images would be taken for the other's: "
            "name each run once, or copy one checkpoint into a folder of its own"
        )
    return radii


def _listed(radii: Sequence[float]) -> str:
    return " ".join(f"{eps:.5g}" for eps in radii)


def compare(
    flags: TransferFlags,
    runs: Sequence[str],
    subjects: Sequence[Subject],
    radii: Sequence[float],
    teller: Teller,
    deadline: Deadline,
) -> bool:
    """Make the images that are missing, replay all, write and print; False: the deadline stopped it."""
    seeds = []
    for run, subject in zip(runs, subjects, strict=True):
        attack = attack_flags(flags, run, subject, radii)
        seeds.append(attack.seed)
        missing = [eps for eps in radii if eps not in saved_images(subject, radii)]
        if len(missing) < len(radii) and (flags.nb_iter or flags.nb_restart):
            teller.note(f"{run}: of its saved adversarial images --nb_iter and --nb_restart change nothing")
        if missing:
            teller.note(f"{run}: its adversarial images at {_listed(missing)} are made first")
            if not white_box.evaluate(attack, subject, teller, deadline=deadline):
                return False
    field = Field(subjects, [saved_images(subject, radii) for subject in subjects], seeds)
    stored = [subject.rows("transfer") for subject in subjects]
    all_there = all(field.stored(own, rows, eps) for own, rows in enumerate(stored) for eps in radii)
    if all_there and not flags.overwrite:
        teller.say(f"eval_transfer_{subjects[0].norm}.json beside each of them: already done")
        return True
    if deadline.over("replay"):  # one piece: it keeps nothing, and takes a forward pass for each image and network
        return False
    replay(field, radii, BatchSize(flags.batch_size, "--batch_size", tell), teller)
    return True


def replay(field: Field, radii: Sequence[float], batch: BatchSize, teller: Teller) -> None:
    """The same with all images at hand."""
    started = time.monotonic()
    right = replay_all(field, radii, batch, teller)
    clean = [right_on(subject, subject.test.everything().x, batch) for subject in field.subjects]
    seconds = round((time.monotonic() - started) / len(radii), 1)
    for own, subject in enumerate(field.subjects):
        rows = [make_row(field, own, eps, clean[own], right[eps][own], seconds) for eps in radii]
        add_rows(subject.result_file("transfer"), subject.head("transfer"), rows)
    for eps in radii:
        for line in matrix(field, eps, clean, right[eps]):
            teller.say(line)
    teller.say(f"written: eval_transfer_{field.subjects[0].norm}.json beside each of them")


def attack_flags(flags: TransferFlags, run: str, subject: Subject, radii: Sequence[float]) -> EvalConfig:
    """The PGD evaluation that makes the images: with the seed, and unless the flags say otherwise the steps and restarts,
    of the hardest one that is stored for the same images."""
    rows = [row for row in subject.rows("pgd") if (row["n"], row["split"]) == (len(subject.test), subject.split)]
    nothing: Row = {"settings": {}}
    best = max(rows, key=effort, default=nothing)
    options = {name: value for name, value in asdict(flags).items() if value is not None and name not in OWN_FLAGS}
    for name in ("nb_iter", "nb_restart"):
        options.setdefault(name, best["settings"].get(name, getattr(EvalConfig, name)))
    seed = best.get("seed") or EvalConfig.seed
    return EvalConfig(**(options | {"model": run, "eps": tuple(radii), "seed": seed, "save_adv": True}))


if __name__ == "__main__":
    sys.exit(main())
