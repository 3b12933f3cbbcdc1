"""Adversarial images beside a network, by radius, for the transfer attack. N test images, ... any image shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from evaluations.judge import EPS_TOLERANCE, lengths
from evaluations.subject import Subject
from evaluations.transfer import right_on
from hardware.memory import BatchSize
from records import checkpoint
from utils import per_row

KEYS = {"x_adv": dict, "labels": Tensor, "numbers": Tensor, "model_sha256": str}


def saved_images(subject: Subject, radii: Sequence[float]) -> dict[float, Tensor]:
    """(N, ...) float32 by radius, on the CPU: those of `radii` that are at hand, whole, and of this checkpoint and these
    images."""
    found: dict[float, Tensor] = {}
    for path in sorted(subject.path.parent.glob(f"adv_pgd_{subject.norm}*.pt")):
        for own, x_adv in _fitting(path, subject).items():
            for eps in radii:
                if isinstance(own, float) and math.isclose(own, eps, rel_tol=1e-9) and _within(subject, x_adv, eps):
                    found[eps] = x_adv
    return found


def save_images(subject: Subject, images: Mapping[float, Tensor], batch: BatchSize) -> Path:
    """Write (N, ...) images by radius, labels and image numbers, with what the file holds at other radii; at the same
    radius an image that breaks the network gives way only to another one that does, so that no weak attack undoes a strong one.

    The name is `adv_pgd_<norm>.pt`; where that holds other images of this checkpoint, the split and N are added.
    """
    path = subject.path.parent / f"adv_pgd_{subject.norm}.pt"
    if (other := _of_checkpoint(path, subject)) is not None and not _same_images(other, subject):
        path = path.with_name(f"adv_pgd_{subject.norm}_{subject.split}{len(subject.test)}.pt")
    before = saved_images(subject, list(images))
    stronger = {eps: _stronger(subject, before.get(eps), x_adv.cpu(), batch) for eps, x_adv in images.items()}
    kept = {
        eps: x_adv
        for eps, x_adv in _fitting(path, subject).items()
        if not any(math.isclose(eps, new, rel_tol=1e-9) for new in images)
    }
    content = {
        "x_adv": kept | stronger,
        "labels": subject.test.labels.cpu(),
        "numbers": subject.test.numbers.cpu(),
        "split": subject.split,
        "model_sha256": subject.sha256,
        "network": subject.overrides.get("network"),
    }
    try:
        checkpoint.save(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room") from None
    return path


def _stronger(subject: Subject, before: Tensor | None, new: Tensor, batch: BatchSize) -> Tensor:
    """(N, ...): the new images, but those before where they break the network and the new ones do not."""
    if before is None:
        return new.contiguous()
    better = right_on(subject, new, batch) & ~right_on(subject, before, batch)
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
        saved.get("split", "test") == subject.split
        and torch.equal(saved["numbers"], subject.test.numbers.cpu())
        and torch.equal(saved["labels"], subject.test.labels.cpu())
    )


def _fitting(path: Path, subject: Subject) -> dict[float, Tensor]:
    saved = _of_checkpoint(path, subject)
    if saved is None or not _same_images(saved, subject):
        return {}
    return {eps: x_adv for eps, x_adv in saved["x_adv"].items() if isinstance(x_adv, Tensor)}


def _within(subject: Subject, x_adv: Tensor, eps: float) -> bool:
    """Whether every perturbation (N, ...) is at most eps long."""
    x = subject.test.everything().x.cpu()
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        return False
    return bool((lengths(x_adv - x, subject.norm) <= eps + EPS_TOLERANCE).all())
