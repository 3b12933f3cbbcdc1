"""Every network's adversarial images replayed on every other.

    python evaluate_on_transfer.py RUN RUN ... [--eps 0.1 0.2]

The images are those that `evaluate_on_pgd_attacks.py --save_adv` left beside each network; where there are none that fit,
that program makes them first. In the matrix stands the accuracy of the row's network on the images made against the column's.
B batch, N test images, ... any image shape; images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate_on_pgd_attacks
from config import DATASETS, NORMS, EvalConfig, opt, require_positive
from errors import UserError, exits_on_user_error
from evaluations.evaluation import (
    Subject,
    load_subject,
    refuse_to_shrink,
    result_row,
    stored_result,
    wilson,
    write_result,
)
from flags import Radii, build_parser
from hardware.memory import BatchSize
from losses import logit_margin
from processes.distributed import one_process_only
from records import checkpoint
from utils import row_norms, use_device

EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection


@dataclass(frozen=True)
class TransferFlags:
    """The flags, which are passed on where adversarial images have to be made."""

    eps: Radii | None = opt(None, "one or more radii, or grid (default: the test radius of the runs' training)")
    test_size: int | None = opt(None, "test images (default: all)")
    nb_iter: int | None = opt(None, "PGD steps, where images must be made (default: as in their JSON, else 100)")
    nb_restart: int | None = opt(None, "restarts, where images must be made (default: as in their JSON, else 10)")
    batch_size: int = opt(200, "images a batch")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    dataset: str | None = opt(None, "data set (default: the checkpoints')", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoints')", NORMS)
    network: str | None = opt(None, "network of all runs (default: each checkpoint's); your own must be named here")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoints', else data)")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Replay, print and write a JSON beside each network. Returns the exit status."""
    runs, flags = parse(argv)
    one_process_only("transfer.py")
    device = use_device(flags.device, False)
    subjects = [load_subject(evaluation_flags(flags, run), device) for run in runs]
    radii = shared_radii(flags, runs, subjects)
    refuse_to_shrink_any(subjects)
    for run, subject in zip(runs, subjects, strict=True):
        if saved_images(subject, radii) is None:
            print(f"{run}: its adversarial images are made first", flush=True)
            status = evaluate_on_pgd_attacks.main(attack_command(flags, run, subject, radii))
            if status:
                return status  # it has said why
            if saved_images(subject, radii) is None:
                raise UserError(f"{images_file(subject)}: not of these images and radii although just made: look at it")

    names, started = short_names(subjects), time.monotonic()
    batch = BatchSize(flags.batch_size, "--batch_size", tqdm.write)
    right = replay_all(subjects, radii, batch)
    clean = [classified_right(subject, subject.test.everything().x, batch) for subject in subjects]
    seconds = round(time.monotonic() - started, 1)
    for row, subject in enumerate(subjects):
        write_result(subject, "transfer", content(subjects, names, row, clean[row], right, seconds))
    for eps in radii:
        for line in matrix(subjects[0], eps, names, clean, right[eps]):
            print(line)
    print("written: eval_transfer_" + subjects[0].norm + ".json beside each of them")
    return 0


# --- what is compared ----------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None = None) -> tuple[list[str], TransferFlags]:
    """The command line: run folders or checkpoint files, and flags.

    :raises UserError: for a wrong flag or value.
    """
    parser = build_parser(TransferFlags, "Replay every network's adversarial images on every other.", "default: ")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder or checkpoint file", default=[])
    given = parser.parse(argv)
    runs = given.pop("runs")
    if "eps" in given:
        given["eps"] = tuple(given["eps"])
    flags = TransferFlags(**given)
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run folders: transfer needs two or more: name them before the flags")
    require_positive(flags, ("nb_iter", "nb_restart", "test_size", "batch_size"))
    return runs, flags


def evaluation_flags(flags: TransferFlags, run: str) -> EvalConfig:
    """The same as flags of the PGD evaluation of one run."""
    shared = {name: value for name, value in asdict(flags).items() if value is not None}
    return EvalConfig(model=run, **shared)


def shared_radii(flags: TransferFlags, runs: Sequence[str], subjects: Sequence[Subject]) -> list[float]:
    """The radii, ascending, after a look at whether all runs can be compared.

    :raises UserError: naming two runs that differ in data set, norm, images or radii.
    """
    first, radii = subjects[0], []
    for run, subject in zip(runs, subjects, strict=True):
        for name in ("dataset", "norm"):
            own, others = getattr(subject, name), getattr(first, name)
            if own != others:
                raise UserError(
                    f"--{name}: {others} in {runs[0]}, {own} in {run}: they cannot be compared; leave one out, "
                    f"or add --{name} to attack all in one"
                )
        if not (
            torch.equal(subject.test.images, first.test.images)
            and torch.equal(subject.test.numbers, first.test.numbers)
        ):
            raise UserError(f"--data_root: {runs[0]} and {run} were trained on other images: name one folder for all")
        _, own, notes = evaluate_on_pgd_attacks.settle_radii(evaluation_flags(flags, run), subject)
        for note in notes if subject is first else ():
            print(note)
        radii = radii or own
        if radii != own:
            raise UserError(
                f"--eps: {_listed(radii)} for {runs[0]}, {_listed(own)} for {run}: give the radii to compare at"
            )
    if len({subject.path.parent.resolve() for subject in subjects}) < len(subjects):
        raise UserError(
            "two of the runs lie in one folder, and their results would overwrite each other: name each run once, "
            "or copy one checkpoint into a folder of its own"
        )
    return radii


def _listed(radii: Sequence[float]) -> str:
    return " ".join(f"{eps:.5g}" for eps in radii)


def refuse_to_shrink_any(subjects: Sequence[Subject]) -> None:
    """:raises UserError: if a result on more images would be replaced."""
    for subject in subjects:
        refuse_to_shrink(subject, "transfer")
        stored_result(subject, "pgd")  # read at the end: better refused now


# --- adversarial images --------------------------------------------------------------------------------------------


def images_file(subject: Subject) -> Path:
    """Where the PGD evaluation leaves its images."""
    return subject.path.parent / f"adv_pgd_{subject.norm}.pt"


def saved_images(subject: Subject, radii: Sequence[float]) -> dict[float, Tensor] | None:
    """(N, ...) float32 by radius, on the CPU; None unless they are whole and of this checkpoint, these images, these radii."""
    try:
        kinds = {"x_adv": dict, "labels": Tensor, "numbers": Tensor, "model_sha256": str}
        saved = checkpoint.load(images_file(subject), needed=kinds)
    except UserError:  # missing or damaged
        return None
    x, y, _ = subject.test.everything()
    x, y, numbers = x.cpu(), y.cpu(), subject.test.numbers.cpu()
    if (
        saved["model_sha256"] != subject.sha256
        or not torch.equal(saved["numbers"], numbers)
        or not torch.equal(saved["labels"], y)
    ):
        return None
    found = {
        eps: x_adv
        for eps in radii
        for own, x_adv in saved["x_adv"].items()
        if isinstance(own, float) and isinstance(x_adv, Tensor) and math.isclose(own, eps, rel_tol=1e-9)
    }
    return (
        found
        if set(found) == set(radii) and all(within(x, x_adv, eps, subject.norm) for eps, x_adv in found.items())
        else None
    )


def within(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> bool:
    """Whether every perturbation (N, ...) is at most eps long."""
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        return False
    delta = (x_adv - x).flatten(1)
    length = row_norms(delta) if norm == "L2" else delta.abs().amax(1)
    return bool((length <= eps + EPS_TOLERANCE).all())


def attack_command(flags: TransferFlags, run: str, subject: Subject, radii: Sequence[float]) -> list[str]:
    """The PGD evaluation that makes the images; it also covers every radius that its JSON beside the model holds, which it
    replaces, with the same seed, and the same steps and restarts unless the flags say otherwise."""
    stored = stored_result(subject, "pgd")
    settings = stored.get("settings", {})
    options = {name: value for name, value in asdict(flags).items() if value is not None and name != "eps"}
    for name in ("nb_iter", "nb_restart"):
        options.setdefault(name, settings.get(name, getattr(EvalConfig, name)))
    options["seed"] = stored.get("seed", EvalConfig.seed)
    all_radii = sorted({*radii, *(row["eps"] for row in stored.get("results", []))})
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["--model", run, "--eps", *map(repr, all_radii), "--save_adv", *words]


# --- replaying -----------------------------------------------------------------------------------------------------


def classified_right(subject: Subject, images: Tensor, batch: BatchSize) -> Tensor:
    """(N, ...) -> (N,) bool, on the CPU. An output that is not a number is not right."""
    y = subject.test.labels

    def in_batches(size: int) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    logit_margin(subject.model(images[rows].to(y.device)), y[rows]) < 0
                    for rows in torch.arange(len(y)).split(size)
                ]
            )

    return batch.run(in_batches).cpu()


def replay_all(
    subjects: Sequence[Subject], radii: Sequence[float], batch: BatchSize
) -> dict[float, list[list[Tensor]]]:
    """By radius, [network][source] -> (N,) bool: whether the network is right on the images made against the source."""
    right = {eps: [[] for _ in subjects] for eps in radii}
    with tqdm(total=len(subjects) ** 2 * len(radii), unit="replay", dynamic_ncols=True) as bar:
        for source in subjects:
            for eps, x_adv in saved_images(source, radii).items():
                for network, row in zip(subjects, right[eps], strict=True):
                    row.append(classified_right(network, x_adv, batch))
                    bar.update()
    return right


def transferred(row: Sequence[Tensor], own: int) -> Tensor:
    """(N,) bool: right on the images made against every network but its own."""
    return torch.stack([right for source, right in enumerate(row) if source != own]).all(0)


def short_names(subjects: Sequence[Subject]) -> list[str]:
    """The folders' names, numbered where two are alike."""
    names = [subject.path.resolve().parent.name for subject in subjects]
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, 1)]


def content(
    subjects: Sequence[Subject],
    names: Sequence[str],
    own: int,
    clean: Tensor,
    right: dict[float, list[list[Tensor]]],
    seconds: float,
) -> dict:
    """The JSON of one network without its head. An image is robust if it stands against its own white-box attack and against
    the images made against every other network; `source_accs` are in the order of `sources`, itself among them."""
    n, standing, subject = len(clean), int(clean.sum()), subjects[own]
    results = []
    for eps, rows in right.items():
        results.append(
            {
                **result_row(eps, torch.stack(rows[own]).all(0) & clean),
                "whitebox_acc": acc(rows[own][own]),
                "transferred_acc": acc(transferred(rows[own], own)),
                "source_accs": [acc(r) for r in rows[own]],
            }
        )
    sources = [{"run": name, "model_sha256": source.sha256} for name, source in zip(names, subjects, strict=True)]
    stored = stored_result(subject, "transfer")
    if (stored.get("sources"), stored.get("n")) == (sources, n):  # the rows at other radii are still good
        results = sorted(
            results + [row for row in stored["results"] if row["eps"] not in right], key=lambda row: row["eps"]
        )
    settings = {"sources": len(sources), "overrides": subject.overrides, "device": str(subject.test.labels.device)}
    return {
        "clean_acc": standing / n,
        "clean_ci95": wilson(standing, n),
        "seed": stored_result(subject, "pgd").get("seed", EvalConfig.seed),
        "settings": settings,
        "seconds": seconds,
        "sources": sources,
        "results": results,
    }


def acc(flags: Tensor) -> float:
    """(N,) bool -> a fraction."""
    return int(flags.sum()) / len(flags)


def matrix(
    subject: Subject, eps: float, names: Sequence[str], clean: Sequence[Tensor], right: list[list[Tensor]]
) -> list[str]:
    """What to print for one radius."""
    width = max(map(len, names)) + 4
    heads = ["clean", *(f"[{number}]" for number in range(1, len(names) + 1)), "white-box", "transferred", "strongest"]
    lines = [
        f"\naccuracy [%] of the row's network on images made against the column's: {subject.dataset}, {len(subject.test)} "
        f"test images, {subject.norm} PGD at {eps:.5g}",
        " " * width + "".join(f"{head:>13}" for head in heads),
    ]
    for own, (name, row) in enumerate(zip(names, right, strict=True)):
        figures = [clean[own], *row, row[own], transferred(row, own), torch.stack(row).all(0) & clean[own]]
        lines.append(f"[{own + 1}] {name}".ljust(width) + "".join(f"{100 * acc(flags):13.2f}" for flags in figures))
    return [*lines, "strongest: right on the image, under white-box PGD and on every network's images"]


if __name__ == "__main__":
    sys.exit(main())
