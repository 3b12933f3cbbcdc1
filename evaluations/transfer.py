"""Adversarial images beside each network, by radius, and each network's replayed on every other.

N images of the split, ... any image shape; images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from evaluations.results import Row, alone_in, finished, same_eps, says_where
from evaluations.subject import Subject
from losses import logit_margin
from pgd import GEOMETRY
from records import checkpoint
from records.progress import Teller
from utils import per_row

KEYS = {"x_adv": dict, "labels": Tensor, "numbers": Tensor, "model_sha256": str}
EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection


# --- the images beside a network -----------------------------------------------------------------------------------


def saved_images(subject: Subject, radii: Sequence[float]) -> dict[float, Tensor]:
    """(N, ...) float32 by radius, on the CPU: those of `radii` that are at hand, whole, and of this checkpoint and these
    images."""
    found: dict[float, Tensor] = {}
    for path in sorted(subject.path.parent.glob(f"adv_pgd_{subject.norm}*.pt")):
        for own, x_adv in _fitting(_of_checkpoint(path, subject), subject).items():
            for eps in radii:
                if same_eps(own, eps) and _within(subject, x_adv, eps):
                    found[eps] = x_adv
    return found


def save_images(subject: Subject, images: Mapping[float, Tensor], batch_size: int) -> Path:
    """Write (N, ...) images by radius, labels and image numbers, with what the file holds at other radii; at the same
    radius an image that breaks the network gives way only to another one that does, so that no weak attack undoes a strong one.

    The name is `adv_pgd_<norm>.pt`; where that holds other images of this checkpoint, the split and N are added.

    :raises UserError: if the folder cannot be written.
    """
    path = subject.path.parent / f"adv_pgd_{subject.norm}.pt"
    with alone_in(path.parent):
        stored = _of_checkpoint(path, subject)
        if stored is not None and not _same_images(stored, subject):
            path = path.with_name(f"adv_pgd_{subject.norm}_{subject.split}{len(subject.test)}.pt")
            stored = _of_checkpoint(path, subject)
        before = saved_images(subject, list(images))
        new = {eps: _stronger(subject, before.get(eps), x_adv.cpu(), batch_size) for eps, x_adv in images.items()}
        remaining = {
            eps: x_adv
            for eps, x_adv in _fitting(stored, subject).items()
            if not any(same_eps(eps, other) for other in new)
        }
        content = {
            "x_adv": remaining | new,
            "labels": subject.test.labels.cpu(),
            "numbers": subject.test.numbers.cpu(),
            "split": subject.split,
            "model_sha256": subject.sha256,
            "network": subject.overrides.get("network"),
        }
        with says_where(path):
            checkpoint.save(path, content)
    return path


def _stronger(subject: Subject, before: Tensor | None, new: Tensor, batch_size: int) -> Tensor:
    """(N, ...): the new images, but those before where they break the network and the new ones do not."""
    if before is None:
        return new.contiguous()
    better = right_on(subject, new, batch_size) & ~right_on(subject, before, batch_size)
    return torch.where(per_row(better, new), before, new)


def _of_checkpoint(path: Path, subject: Subject) -> dict[str, Any] | None:
    """The file's content; None if it is missing, damaged or of another checkpoint or network code."""
    try:
        saved = checkpoint.load(path, needed=KEYS)
    except UserError:
        return None
    same_code = saved.get("network") == subject.overrides.get("network")
    return saved if same_code and saved["model_sha256"] == subject.sha256 else None


def _same_images(saved: Mapping[str, Any], subject: Subject) -> bool:
    return (
        saved.get("split") == subject.split
        and torch.equal(saved["numbers"], subject.test.numbers.cpu())
        and torch.equal(saved["labels"], subject.test.labels.cpu())
    )


def _fitting(saved: Mapping[str, Any] | None, subject: Subject) -> dict[float, Tensor]:
    return {} if saved is None or not _same_images(saved, subject) else dict(saved["x_adv"])


def _within(subject: Subject, x_adv: Tensor, eps: float) -> bool:
    """Whether every perturbation (N, ...) is at most eps long."""
    x = subject.test.everything().x.cpu()
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        return False
    return bool((GEOMETRY[subject.norm].length(x_adv - x) <= eps + EPS_TOLERANCE).all())


# --- replayed ------------------------------------------------------------------------------------------------------


def right_on(subject: Subject, images: Tensor, batch_size: int) -> Tensor:
    """(N, ...) -> (N,) bool, on the CPU: classified right."""
    y = subject.test.labels
    parts = torch.arange(len(y)).split(batch_size)
    with torch.no_grad():
        margins = [logit_margin(subject.model(images[rows].to(y.device)), y[rows]) for rows in parts]
    return (torch.cat(margins) < 0).cpu()


def names_of(subjects: Sequence[Subject]) -> list[str]:
    """The folders' names, numbered where two are alike."""
    names = [subject.path.resolve().parent.name for subject in subjects]
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, 1)]


def rows_asked(
    subjects: Sequence[Subject], images: Sequence[Mapping[float, Tensor]], seeds: Sequence[int], eps: float
) -> list[Row]:
    """For each network what its row says before the replay; seeds: of the white-box attacks that made the images."""
    sources = [
        {"run": name, "model_sha256": subject.sha256, "images": checkpoint.digest(own[eps])[:16]}
        for name, subject, own in zip(names_of(subjects), subjects, images, strict=True)
    ]
    settings = {"sources": len(subjects)}
    return [subject.row(seed, settings, eps, sources=sources) for subject, seed in zip(subjects, seeds, strict=True)]


def replay(
    subjects: Sequence[Subject],
    images: Sequence[Mapping[float, Tensor]],
    rows: Mapping[float, Sequence[Row]],
    batch_size: int,
    teller: Teller,
) -> None:
    """Replay all images on all networks, write a row for each network and radius, and print a matrix for each radius.

    images: (N, ...) of each network by radius. rows: `rows_asked` by radius. An image is robust if it stands against its own
    white-box attack and against the images made against every other network.

    :raises UserError: if a folder cannot be written.
    """
    clean = [right_on(subject, subject.test.everything().x, batch_size) for subject in subjects]
    for eps, asked in rows.items():
        started = time.monotonic()
        with teller.bar(len(subjects) ** 2, "replay") as bar:
            right: list[list[Tensor]] = [[] for _ in subjects]  # [network][source] -> (N,) bool
            for source in images:
                for subject, answers in zip(subjects, right, strict=True):
                    answers.append(right_on(subject, source[eps], batch_size))
                    bar.update(1)
        seconds = time.monotonic() - started
        lines = []
        for own, (subject, row) in enumerate(zip(subjects, asked, strict=True)):
            transferred = torch.stack([flags for source, flags in enumerate(right[own]) if source != own]).all(0)
            robust = transferred & right[own][own] & clean[own]
            source_accs, transferred_acc = [_share(flags) for flags in right[own]], _share(transferred)
            whole = finished(row, clean[own], robust, seconds, device=str(subject.device))
            accuracies = {"whitebox_acc": source_accs[own], "transferred_acc": transferred_acc}
            # In the order of `sources`, itself among them.
            subject.add_rows("transfer", [{**whole, **accuracies, "source_accs": source_accs}])
            lines.append([_share(clean[own]), *source_accs, source_accs[own], transferred_acc, _share(robust)])
        for line in _matrix(subjects, eps, lines):
            teller.say(line)
    teller.say(f"written: eval_transfer_{subjects[0].norm}.json beside each of them")


def _share(flags: Tensor) -> float:
    """(N,) bool -> a fraction."""
    return int(flags.sum()) / len(flags)


def _matrix(subjects: Sequence[Subject], eps: float, figures: Sequence[Sequence[float]]) -> list[str]:
    """What to print for one radius; figures: of each network, fractions."""
    subject, names = subjects[0], names_of(subjects)
    width = max(map(len, names)) + 4
    heads = ["clean", *(f"[{number}]" for number in range(1, len(names) + 1)), "white-box", "transferred", "strongest"]
    return [
        f"\naccuracy [%] of the row's network on images made against the column's: {subject.dataset}, "
        f"{subject.images_named}, {subject.norm} PGD at {eps:.5g}",
        " " * width + "".join(f"{head:>13}" for head in heads),
        *(
            f"[{number}] {name}".ljust(width) + "".join(f"{100 * share:13.2f}" for share in shares)
            for number, (name, shares) in enumerate(zip(names, figures, strict=True), 1)
        ),
        "strongest: right on the image, under white-box PGD and on every network's images",
    ]
