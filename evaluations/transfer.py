"""Adversarial images beside each network, by radius, and each network's replayed on every other.

N images of the split, ... any image shape; images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from errors import UserError
from evaluations.repeated_pgd import clean_logits
from evaluations.results import Row, alone_in, finished, same_eps
from evaluations.subject import Subject
from losses import logit_margin
from records import checkpoint
from records.progress import Teller
from utils import per_row, radius_text

# --- the images beside a network -----------------------------------------------------------------------------------


def saved_images(subject: Subject, radii: Sequence[float]) -> dict[float, Tensor]:
    """(N, ...) float32 by radius, on the CPU: those of `radii` at hand, of this checkpoint and these images."""
    found: dict[float, Tensor] = {}
    for path in sorted(subject.path.parent.glob(f"adv_pgd_{subject.norm}*.pt")):
        for own, x_adv in (_stored(path, subject) or {}).items():
            found |= {eps: x_adv for eps in radii if same_eps(own, eps)}
    return found


def save_images(subject: Subject, images: Mapping[float, Tensor], batch_size: int) -> Path:
    """Write (N, ...) images by radius, labels and image numbers, with what the file holds at other radii; at the same
    radius an image that breaks the network gives way only to another one that does, so that no weak attack undoes a strong one.

    The name is `adv_pgd_<norm>.pt`; where that holds other images of this checkpoint, the split and N are added.

    :raises OSError: if the folder cannot be written.
    """
    path = subject.path.parent / f"adv_pgd_{subject.norm}.pt"
    with alone_in(path.parent):
        if (stored := _stored(path, subject)) is None:
            path = path.with_name(f"adv_pgd_{subject.norm}_{subject.split}{len(subject.test)}.pt")
            stored = _stored(path, subject) or {}
        new = {eps: x_adv.cpu().contiguous() for eps, x_adv in images.items()}
        for eps, strong in saved_images(subject, list(new)).items():
            better = right_on(subject, new[eps], batch_size) & ~right_on(subject, strong, batch_size)
            new[eps] = torch.where(per_row(better, strong), strong, new[eps])
        remaining = {eps: x_adv for eps, x_adv in stored.items() if not any(same_eps(eps, other) for other in new)}
        test = {"labels": subject.test.labels.cpu(), "numbers": subject.test.numbers.cpu()}
        checkpoint.save(path, {"x_adv": remaining | new, **test, **_about(subject)})
    return path


def _about(subject: Subject) -> dict[str, str | None]:
    """Of which images, and against what they were made: of one checkpoint, flags make different functions
    (`results.function_of`)."""
    network, standardise = (subject.overrides.get(name) for name in ("network", "standardise"))
    of_network = {"model_sha256": subject.sha256, "network": network, "standardise": standardise}
    return {**of_network, "split": subject.split, "images": subject.images}


def _stored(path: Path, subject: Subject) -> dict[float, Tensor] | None:
    """The file's (N, ...) images by radius; none if it is missing, damaged or of another checkpoint, network code or
    standardisation; None if it holds other images of this one."""
    try:
        saved = checkpoint.load(path, needed={"x_adv": dict})
    except UserError:
        return {}
    other = {name for name, value in _about(subject).items() if saved.get(name, False) != value}
    if not other:
        return dict(saved["x_adv"])
    return None if other <= {"split", "images"} else {}


# --- replayed ------------------------------------------------------------------------------------------------------


def right_on(subject: Subject, images: Tensor, batch_size: int) -> Tensor:
    """(N, ...) -> (N,) bool, on the CPU: classified right."""
    y = subject.test.labels
    logits = clean_logits(subject.model, images.to(y.device), min(batch_size, len(y)))
    return (logit_margin(logits, y) < 0).cpu()


def rows_asked(subjects: Sequence[Subject], images: Sequence[Tensor], seeds: Sequence[int], eps: float) -> list[Row]:
    """What each network's row says before the replay of (N, ...) images of each; seeds: of the attacks that made them."""
    sources = [
        {"run": subject.run, "model_sha256": subject.sha256, "images": checkpoint.digest(own)[:16]}
        for subject, own in zip(subjects, images, strict=True)
    ]
    settings = {"sources": len(subjects)}
    return [subject.row(seed, settings, eps, sources=sources) for subject, seed in zip(subjects, seeds, strict=True)]


def replay(
    subjects: Sequence[Subject], images: Sequence[Tensor], rows: Sequence[Row], batch_size: int, teller: Teller
) -> None:
    """Replay (N, ...) images of each network on all, and write the row of each.

    rows: `rows_asked` at one radius. An image is robust if it stands against its own white-box attack and against the images
    made against every other network.

    :raises OSError: if a folder cannot be written.
    """
    started, count = time.monotonic(), len(subjects)
    right = torch.ones(count, count, len(subjects[0].test), dtype=torch.bool)  # by network and source
    with teller.bar(count**2, "replay") as bar:
        for source, own in itertools.product(range(count), repeat=2):
            right[own, source] = right_on(subjects[own], images[source], batch_size)
            bar.update(1)
    seconds = time.monotonic() - started
    for own, (subject, row) in enumerate(zip(subjects, rows, strict=True)):
        clean = right_on(subject, subject.test.everything().x, batch_size)
        transferred = right[own, [source for source in range(count) if source != own]].all(0)
        robust, source_accs = right[own].all(0) & clean, right[own].double().mean(1).tolist()
        accuracies = {"whitebox_acc": source_accs[own], "transferred_acc": float(transferred.double().mean())}
        whole = finished(row, clean, robust, seconds, device=str(subject.device))
        # In the order of `sources`, itself among them.
        subject.add_rows("transfer", [{**whole, **accuracies, "source_accs": source_accs}])


def matrix(subjects: Sequence[Subject], rows: Sequence[Row]) -> list[str]:
    """What to say of each network's row of transfer at one radius."""
    first, count, width = subjects[0], len(subjects), max(len(subject.run) for subject in subjects) + 4
    heads = ["clean", *(f"[{number}]" for number in range(1, count + 1)), "white-box", "transferred", "strongest"]
    lines = [
        f"\naccuracy [%] of the row's network on images made against the column's: {first.dataset}, "
        f"{first.images_named}, {first.norm} PGD at {radius_text(rows[0]['eps'])}",
        " " * width + "".join(f"{head:>13}" for head in heads),
    ]
    for number, (subject, row) in enumerate(zip(subjects, rows, strict=True), 1):
        shares = [row["clean_acc"], *row["source_accs"], row["whitebox_acc"], row["transferred_acc"], row["robust_acc"]]
        lines.append(f"[{number}] {subject.run}".ljust(width) + "".join(f"{100 * share:13.2f}" for share in shares))
    return [*lines, "strongest: right on the image, under white-box PGD and on every network's images"]
