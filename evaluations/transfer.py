"""Adversarial images of several networks replayed on each of them. B batch, N test images, ... any image shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluations.accuracy import accuracy_of, as_flags, clean_accuracy
from evaluations.judge import classified_right
from evaluations.rows import Kind, Row, same_eps
from evaluations.subject import Subject
from hardware.memory import BatchSize
from records.checkpoint import digest
from records.progress import Teller

Images = Mapping[float, Tensor]  # (N, ...) by radius, on the CPU


@dataclass(frozen=True)
class Field:
    """The networks, in the order of rows and columns, each with its own adversarial images."""

    subjects: Sequence[Subject]
    images: Sequence[Images]
    seeds: Sequence[int]  # of the white-box attacks that made them

    @property
    def names(self) -> list[str]:
        """The folders' names, numbered where two are alike."""
        names = [subject.path.resolve().parent.name for subject in self.subjects]
        counts = Counter(names)
        return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, 1)]

    def sources(self, eps: float) -> list[dict[str, Any]]:
        """Whose images are replayed, and which."""
        return [
            {"run": name, "model_sha256": subject.sha256, "images": digest(own[eps])[:16]}
            for name, subject, own in zip(self.names, self.subjects, self.images, strict=True)
        ]

    def settings(self, own: int) -> dict[str, Any]:
        """For the JSON of one network."""
        return {"sources": len(self.subjects), "overrides": self.subjects[own].overrides}

    def stored(self, own: int, rows: Sequence[Row], eps: float) -> Row | None:
        """What the JSON beside one network, `rows`, holds of this very comparison."""
        kind: Kind = self.subjects[own].kind(self.seeds[own], self.settings(own), self.sources(eps))
        return next((row for row in rows if same_eps(row.get("eps"), eps) and kind.covers(row)), None)


def right_on(subject: Subject, images: Tensor, batch: BatchSize) -> Tensor:
    """(N, ...) -> (N,) bool, on the CPU: classified right."""
    y = subject.test.labels

    def in_batches(size: int) -> Tensor:
        parts = torch.arange(len(y)).split(size)
        return torch.cat([classified_right(subject.model, images[rows].to(y.device), y[rows]) for rows in parts])

    return batch.run(in_batches).cpu()


def replay_all(
    field: Field, radii: Sequence[float], batch: BatchSize, teller: Teller
) -> dict[float, list[list[Tensor]]]:
    """By radius, [network][source] -> (N,) bool: whether the network is right on the images made against the source."""
    subjects = field.subjects
    right: dict[float, list[list[Tensor]]] = {eps: [[] for _ in subjects] for eps in radii}
    with teller.bar(len(subjects) ** 2 * len(radii), "replay") as bar:
        for images in field.images:
            for eps in radii:
                for network, row in zip(subjects, right[eps], strict=True):
                    row.append(right_on(network, images[eps], batch))
                    bar.update()
    return right


def transferred(row: Sequence[Tensor], own: int) -> Tensor:
    """(N,) bool: right on the images made against every network but its own."""
    return torch.stack([right for source, right in enumerate(row) if source != own]).all(0)


def make_row(field: Field, own: int, eps: float, clean: Tensor, right: Sequence[Tensor], seconds: float) -> Row:
    """The result of one network. An image is robust if it stands against its own white-box attack and against the images
    made against every other network; `source_accs` are in the order of `sources`, itself among them."""
    subject = field.subjects[own]
    return {
        "eps": eps,
        "n": len(clean),
        "split": subject.split,
        "images": subject.images,
        "seed": field.seeds[own],
        **clean_accuracy(clean),
        **accuracy_of(as_flags(torch.stack(list(right)).all(0) & clean)),
        "whitebox_acc": share(right[own]),
        "transferred_acc": share(transferred(right, own)),
        "source_accs": [share(flags) for flags in right],
        "sources": field.sources(eps),
        "settings": field.settings(own) | {"device": str(subject.test.labels.device)},
        "seconds": seconds,
    }


def share(flags: Tensor) -> float:
    """(N,) bool -> a fraction."""
    return int(flags.sum()) / len(flags)


def matrix(field: Field, eps: float, clean: Sequence[Tensor], right: Sequence[Sequence[Tensor]]) -> list[str]:
    """What to print for one radius."""
    subject, names = field.subjects[0], field.names
    width = max(map(len, names)) + 4
    heads = ["clean", *(f"[{number}]" for number in range(1, len(names) + 1)), "white-box", "transferred", "strongest"]
    lines = [
        f"\naccuracy [%] of the row's network on images made against the column's: {subject.dataset}, "
        f"{subject.images_named}, {subject.norm} PGD at {eps:.5g}",
        " " * width + "".join(f"{head:>13}" for head in heads),
    ]
    for own, (name, row) in enumerate(zip(names, right, strict=True)):
        figures = [clean[own], *row, row[own], transferred(row, own), torch.stack(list(row)).all(0) & clean[own]]
        lines.append(f"[{own + 1}] {name}".ljust(width) + "".join(f"{100 * share(flags):13.2f}" for flags in figures))
    return [*lines, "strongest: right on the image, under white-box PGD and on every network's images"]
