"""Every network's adversarial images replayed on every other.

    python evaluate_on_transfer.py RUN RUN ... [--eps 0.1 0.2]

The images are those that `evaluate_on_pgd_attacks.py --save_adv` left beside each network; where there are none that fit,
they are made first. In the matrix stands the accuracy of the row's network on the images made against the column's.
Images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from config import opt
from errors import UserError, exits_on_user_error
from evaluations import pgd_attacks, transfer
from evaluations.flags import PgdFlags, SharedFlags, checked_flags
from evaluations.results import Row, effort, require_writable, same_eps, stored_row
from evaluations.subject import Subject, load_subject
from flags import Radii, build_parser
from networks.names import is_built_in, is_own
from processes.distributed import launched_size
from records.checkpoint import load_model_file
from records.commands import command
from records.progress import Teller
from utils import radius_text, use_device


@dataclass(frozen=True)
class TransferFlags(SharedFlags):
    """Replay every network's adversarial images on every other."""

    network: str | None = opt(None, "network (default: each file's); your own is for the files that name none of ours")
    eps: Radii | None = opt(None, "one or more radii, or grid (default: the test radius of the runs' training)")
    nb_iter: int | None = opt(None, "PGD steps, where images must be made (default: as in their JSON, else 100)")
    nb_restart: int | None = opt(None, "restarts, where images must be made (default: as in their JSON, else 10)")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print and write a JSON beside each network. Returns the exit status."""
    runs, flags = parse(argv)
    if launched_size() > 1:
        raise UserError("evaluate_on_transfer.py: works on one process: start it with python instead of torchrun")
    device = use_device(flags.device, flags.deterministic)
    teller = Teller(quiet=flags.quiet)
    subjects, notes = load_all(flags, runs, device)
    teller.note(*dict.fromkeys(notes))
    radii = shared_radii(flags, subjects, teller)
    for subject in subjects:
        subject.rows("transfer")  # read at the end: better refused now
        require_writable(subject.path.parent)
    compare(flags, subjects, radii, teller)
    folders = (str(subject.path.parent) for subject in subjects)
    teller.say(f"look at it with: {command('reports/make_report.py', *folders)}")
    return 0


def parse(argv: Sequence[str] | None = None) -> tuple[list[str], TransferFlags]:
    """The command line: run folders or checkpoint files, and flags.

    :raises UserError: for a wrong flag or value.
    """
    needed = "RUN RUN ...", "runs/first runs/second --eps 0.2"
    parser = build_parser(TransferFlags, str(TransferFlags.__doc__), "default: ", needed)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder or checkpoint file", default=[])
    given = parser.parse_with_file(argv)
    runs = given.pop("runs")
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run folders: transfer needs two or more: name them before the flags")
    return runs, checked_flags(TransferFlags, given)


def load_all(flags: TransferFlags, runs: Sequence[str], device: torch.device) -> tuple[list[Subject], list[str]]:
    """The networks, and what the user should be told. Beside code of one's own in `--network` a file that names a network of
    ours keeps it, with its own standardisation; where all do, the flags count."""
    ours = [is_built_in(str((load_model_file(run).config or {}).get("network"))) for run in runs]
    apart = is_own(flags.network or "") and not all(ours)
    subjects, notes = [], []
    for run, of_ours in zip(runs, ours, strict=True):
        kept = {"network": None, "standardise": None} if apart and of_ours else {}
        subject = load_subject(pgd_flags(flags, run, **kept), device)
        notes += [f"{run}: has a network of ours: --network and --standardise are not for it"] if kept else []
        notes += [*subject.notes, *(f"{run}: --{name}: {what}" for name, what in subject.overrides.items())]
        subjects.append(subject)
    return subjects, notes


def pgd_flags(flags: TransferFlags, run: str, **more: Any) -> PgdFlags:
    """The same as flags of the PGD evaluation of one run, which computes nothing anew that is done."""
    given = {name: value for name, value in asdict(flags).items() if value is not None}
    return PgdFlags(**{**given, "model": run, "overwrite": False, **more})


def shared_radii(flags: TransferFlags, subjects: Sequence[Subject], teller: Teller) -> list[float]:
    """The radii, ascending, after a look at whether all runs can be compared.

    :raises UserError: naming two runs that differ in data set, norm, images or radii.
    """
    first = subjects[0]
    radii, notes = first.radii(flags.eps)
    teller.note(*notes)
    for subject in subjects[1:]:
        for name in ("dataset", "norm"):
            if (own := getattr(subject, name)) != (shared := getattr(first, name)):
                said = f"{shared} in {first.path.parent}, {own} in {subject.path.parent}"
                remedy = f"leave one out, or add --{name} to attack all in one"
                raise UserError(f"--{name}: {said}: they cannot be compared; {remedy}")
        if subject.images != first.images:
            said = f"{first.path.parent} and {subject.path.parent}"
            if flags.split != "test":
                raise UserError(f"--split {flags.split}: {said} drew other images for it: leave --split out")
            raise UserError(f"--data_root: {said} were trained on other images: name one folder for all")
        own_radii, _ = subject.radii(flags.eps)
        if len(radii) != len(own_radii) or not all(map(same_eps, radii, own_radii)):
            said = f"{_listed(radii)} for {first.path.parent}, {_listed(own_radii)} for {subject.path.parent}"
            raise UserError(f"--eps: {said}: give the radii to compare at")
    if len({subject.path.parent.resolve() for subject in subjects}) < len(subjects):
        raise UserError(
            "two of the runs lie in one folder, where each one's adversarial images would be taken for the other's: "
            "name each run once, or copy one checkpoint into a folder of its own"
        )
    return radii


def _listed(radii: Sequence[float]) -> str:
    return " ".join(map(radius_text, radii))


def compare(flags: TransferFlags, subjects: Sequence[Subject], radii: Sequence[float], teller: Teller) -> None:
    """Make the images that are missing, replay all, write and print."""
    seeds = []
    for subject in subjects:
        same = (row for row in subject.rows("pgd") if (row["n"], row["split"]) == (len(subject.test), subject.split))
        best: Row = max(same, key=effort, default={"settings": {}})  # its steps, restarts and seed make further images
        seeds.append(best.get("seed") or 0)
        missing = [eps for eps in radii if eps not in transfer.saved_images(subject, radii)]
        folder = subject.path.parent
        if len(missing) < len(radii) and (flags.nb_iter or flags.nb_restart):
            teller.note(f"{folder}: of its saved adversarial images --nb_iter and --nb_restart change nothing")
        if missing:
            teller.note(f"{folder}: its adversarial images at {_listed(missing)} are made first")
            unsaid = [name for name in ("nb_iter", "nb_restart") if getattr(flags, name) is None]
            how = {name: best["settings"][name] for name in unsaid if name in best["settings"]}
            attack = pgd_flags(flags, str(subject.path), **how, eps=tuple(missing), seed=seeds[-1], save_adv=True)
            pgd_attacks.evaluate(attack, subject, teller)
    saved = [transfer.saved_images(subject, radii) for subject in subjects]
    images = {eps: [own[eps] for own in saved] for eps in radii}
    rows = {eps: transfer.rows_asked(subjects, images[eps], seeds, eps) for eps in radii}
    files = f"eval_transfer_{subjects[0].norm}.json beside each of them"

    def stored(eps: float) -> list[Row]:
        pairs = zip(subjects, rows[eps], strict=True)
        return [row for subject, like in pairs if (row := stored_row(subject.rows("transfer"), like))]

    done = not flags.overwrite and all(len(stored(eps)) == len(subjects) for eps in radii)
    for eps in radii:
        if not done:
            transfer.replay(subjects, images[eps], rows[eps], flags.batch_size or len(subjects[0].test), teller)
        teller.say(*transfer.matrix(subjects, stored(eps)))
    teller.say(f"{files}: already done" if done else f"written: {files}")


if __name__ == "__main__":
    sys.exit(main())
