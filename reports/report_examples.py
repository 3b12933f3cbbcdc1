"""Images with the shortest perturbation that AN-PGD finds: those with the smallest, median and largest margins."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from errors import UserError
from evaluations.flags import PgdFlags
from evaluations.subject import Subject, load_subject
from reports.plot_examples import Examples, find
from reports.results import NORMS, Run, eps_text

EACH = 3  # images a group
GROUPS = ("smallest", "median", "largest")
# Where a data set lies that would be downloaded if it were not there: a report downloads nothing.
DATA_FOLDERS = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py"}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Picture(NamedTuple):
    """One image, its perturbation and their sum, as PNG in data URIs; the margin in input units."""

    group: str
    margin: float
    label: str
    predicted: str  # of the perturbed image
    original: str
    difference: str
    perturbed: str
    factor: float  # by which the difference is multiplied: grey is 0


class Gallery(NamedTuple):
    """Of one run; `why` says why there is none."""

    pictures: list[Picture]
    said: str  # how they were found
    why: str = ""


def gallery(run: Run, count: int, device: torch.device, data_root: str | None) -> Gallery:
    """The pictures of a run, chosen among `count` test images spread evenly over the test set."""
    if not (run.folder / "model_best.pt").exists():
        return Gallery([], "", "there is no model_best.pt in the folder")
    root = data_root or run.config.get("data_root") or "data"
    dataset = run.config.get("dataset")
    if dataset in DATA_FOLDERS and not (Path(root) / DATA_FOLDERS[dataset]).exists():
        return Gallery([], "", f"the images are not in {root}; name their folder with --data_root")
    try:
        flags = PgdFlags(model=str(run.folder), device=str(device), data_root=data_root)
        subject = load_subject(flags, device)
        found = find(subject, count)
    except UserError as error:
        return Gallery([], "", str(error))
    return Gallery(pictures(found, subject), said(found, subject))


def said(found: Examples, subject: Subject) -> str:
    """Of how many images these are the smallest, median and largest."""
    wrong, safe = int((found.length == 0).sum()), int(found.length.isinf().sum())
    end = length_text(subject.training.search_maxeps, subject.dataset, subject.norm)
    return (
        f"Chosen by the length of the shortest perturbation that AN-PGD finds for {len(found.x)} test images spread evenly "
        f"over the test set. {wrong} of them are misclassified as they are; {safe} withstand it up to {end}."
    )


def pictures(found: Examples, subject: Subject) -> list[Picture]:
    """EACH of a group, or fewer where not that many were broken; no image twice."""
    broken = ((found.length > 0) & found.length.isfinite()).nonzero().flatten()
    order = broken[found.length[broken].argsort()].tolist()
    middle = max((len(order) - EACH) // 2, 0)
    chosen = dict.fromkeys(order[:EACH], GROUPS[0])
    for rows, group in ((order[-EACH:], GROUPS[2]), (order[middle : middle + EACH], GROUPS[1])):
        for row in rows:
            chosen.setdefault(row, group)
    rows = sorted(chosen, key=order.index)
    return [picture(found, row, chosen[row], subject.dataset) for row in rows]


def picture(found: Examples, row: int, group: str, dataset: str) -> Picture:
    delta = found.x_adv[row] - found.x[row]
    factor = 0.5 / float(delta.abs().max())
    return Picture(
        group,
        float(found.length[row]),
        class_name(int(found.labels[row]), dataset),
        class_name(int(found.predicted[row]), dataset),
        png(found.x[row]),
        png(delta * factor + 0.5),
        png(found.x_adv[row]),
        factor,
    )


def class_name(number: int, dataset: str) -> str:
    return CIFAR10[number] if dataset == "cifar10" else str(number)


def length_text(length: float, dataset: str, norm: str) -> str:
    """`ℓ∞ 0.123`, `ℓ∞ 8/255`."""
    return f"{NORMS[norm]} {eps_text(length, dataset, norm, 3)}"


def png(image: Tensor) -> str:
    """(C, H, W) in [0, 1] -> a data URI."""
    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
