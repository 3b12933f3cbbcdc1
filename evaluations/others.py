"""What the evaluations by other attacks beside a model say of its PGD figure, on the images that both saw.

Whichever came first: everything here is read from the files as they are. AutoAttack and transfer are expected to be
stronger than PGD, and by how much is reported; a gradient-free attack that is stronger is a sign of masked gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from errors import UserError
from evaluations.accuracy import as_flags, wilson
from evaluations.findings import Finding
from evaluations.rows import Row, quoted, same_eps
from evaluations.subject import Subject

GRADIENT_FREE = ("square", "spsa")
STRONGER = ("autoattack", "transfer")
NAMES = {"autoattack": "AutoAttack", "transfer": "transfer", "square": "Square", "spsa": "SPSA"}


class Gap(NamedTuple):
    """PGD and another attack at one radius, on the same images."""

    attack: str
    eps: float
    pgd: float  # robust accuracy, a fraction
    other: float
    n: int  # images

    @property
    def points(self) -> float:
        """By how many points PGD overestimates the robust accuracy, against this attack."""
        return 100 * (self.pgd - self.other)

    @property
    def beyond_chance(self) -> bool:
        """Whether the other attack lies below the interval of PGD's figure."""
        return self.other < wilson(round(self.pgd * self.n), self.n)[0]

    def text(self, radius: str = "") -> str:
        """In words; `radius` is how the reader writes eps, where not as a decimal."""
        return (
            f"PGD overestimates by {self.points:.1f} points at {radius or f'{self.eps:.4g}'}: {NAMES[self.attack]} leaves "
            f"{self.other:.1%}, PGD {self.pgd:.1%}, of the same {self.n} images"
        )


def gaps(attack: str, dataset: str, pgd: Sequence[Row], others: Sequence[Row]) -> Iterator[Gap]:
    """Between rows of one checkpoint by PGD and by `attack`: at each radius of both, of the test images of both."""
    for ours in quoted(pgd):
        for theirs in quoted(others):
            first, second = ours.get("flags") or "", theirs.get("flags") or ""
            count = min(len(first), len(second))
            # A part of an image folder is drawn, not its first images.
            same_images = count and (dataset != "imagefolder" or len(first) == len(second))
            if same_images and same_eps(ours["eps"], theirs.get("eps")):
                left, left_by_other = (flags[:count].count("1") / count for flags in (first, second))
                yield Gap(attack, ours["eps"], left, left_by_other, count)


def overestimates(subject: Subject) -> list[str]:
    """By how much PGD overestimates this network's robust accuracy, a line for each stronger attack and radius where it does."""
    pgd = _rows(subject, "pgd")
    found = [gap for attack in STRONGER for gap in gaps(attack, subject.dataset, pgd, _rows(subject, attack))]
    return [gap.text() for gap in found if gap.points > 0]


def not_stronger(subject: Subject, attack: str, eps: float, robust: Tensor) -> Finding:
    """Whether the other attack's figure beside the model, if any, does not lie below the interval of this one."""
    row = {"eps": eps, "n": len(robust), "split": "test", "settings": {}, "flags": as_flags(robust)}
    others = _rows(subject, attack) if subject.split == "test" else []
    for gap in gaps(attack, subject.dataset, [row], others):
        return Finding(not gap.beyond_chance, f"{gap.other:.1%}, PGD {gap.pgd:.1%}, on {gap.n} images")
    return Finding(None, "not run on these images, at this eps, on this checkpoint")


def _rows(subject: Subject, attack: str) -> list[Row]:
    """Of this checkpoint; none where the file is damaged, which the attack's own command says."""
    try:
        return subject.rows(attack)
    except UserError:
        return []
