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
from records import checkpoint

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


def save_images(subject: Subject, images: Mapping[float, Tensor]) -> Path:
    """Write (N, ...) images by radius, labels and image numbers, with what the file holds at other radii.

    The name is `adv_pgd_<norm>.pt`; where that holds other images of this checkpoint, the split and N are added.
    """
    path = subject.path.parent / f"adv_pgd_{subject.norm}.pt"
    if (other := _of_checkpoint(path, subject)) is not None and not _same_images(other, subject):
        path = path.with_name(f"adv_pgd_{subject.norm}_{subject.split}{len(subject.test)}.pt")
    kept = {eps: x_adv for eps, x_adv in _fitting(path, subject).items() if eps not in images}
    content = {
        "x_adv": kept | {eps: x_adv.cpu().contiguous() for eps, x_adv in images.items()},
        "labels": subject.test.labels.cpu(),
        "numbers": subject.test.numbers.cpu(),
        "split": subject.split,
        "model_sha256": subject.sha256,
    }
    try:
        checkpoint.save(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room") from None
    return path


def _of_checkpoint(path: Path, subject: Subject) -> dict[str, Any] | None:
    """The file's content; None if it is missing, damaged or of another checkpoint."""
    try:
        saved = checkpoint.load(path, needed=KEYS)
    except UserError:
        return None
    return saved if saved["model_sha256"] == subject.sha256 else None


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
