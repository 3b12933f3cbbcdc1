"""What the evaluations by other attacks beside a model say of its PGD figure, on the images that both saw.

Whichever came first: everything here is read from the files as they are. AutoAttack and transfer are expected to be
stronger than PGD, and by how much is reported, as it is of a search for the nearest adversarial image, which breaks an image
at every radius beyond its distance; a gradient-free attack that is stronger is a sign of masked gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from errors import UserError
from evaluations.flags import SEARCHES
from evaluations.results import Row, accuracy_curve, quoted, same_eps, wilson
from evaluations.subject import Subject
from utils import radius_text, write_atomically

GRADIENT_FREE = ("square", "spsa")
STRONGER = ("strong", "autoattack", "transfer")
NAMES = {
    "pgd": "PGD",
    "strong": "strong PGD",
    "autoattack": "AutoAttack",
    "transfer": "transfer",
    "square": "Square",
    "spsa": "SPSA",
    "cw": "Carlini-Wagner",
    "ddn": "DDN",
    "fmn": "FMN",
    "apgd": "APGD in a search on ε",
    "apgdt": "targeted APGD in a search on ε",
    "anpgd": "AN-PGD",
    "anpgd_projected": "AN-PGD with projection and targets",
}


class Gap(NamedTuple):
    """PGD, by the paper's or the strong protocol, and another attack at one radius, on the same images."""

    attack: str
    eps: float
    pgd: float  # robust accuracy, a fraction
    other: float
    n: int  # images
    base: str = "pgd"  # or "strong"

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
            f"{NAMES[self.base]} overestimates by {self.points:.1f} points at {radius or radius_text(self.eps)}: "
            f"{NAMES[self.attack]} leaves {self.other:.1%}, {NAMES[self.base]} {self.pgd:.1%}, of the same {self.n} images"
        )


def gaps(attack: str, dataset: str, pgd: Sequence[Row], other: Sequence[Row]) -> Iterator[Gap]:
    """Between rows of one checkpoint by PGD and by `attack`: at each radius of both, of the test images of both."""
    for ours in quoted(pgd):
        for theirs in quoted(other):
            first, second = ours["flags"], theirs.get("flags", "") if same_eps(ours["eps"], theirs.get("eps")) else ""
            if "distances" in theirs:  # of a search
                far = (math.inf if distance is None else distance for distance in theirs["distances"])
                second = "".join("0" if distance <= ours["eps"] else "1" for distance in far)
            count = min(len(first), len(second))
            # A part of an image folder is drawn, not its first images, and their size may differ.
            alike = len(first) == len(second) and ours.get("images") == theirs.get("images")
            if count and (dataset != "imagefolder" or alike):
                left, left_by_other = (flags[:count].count("1") / count for flags in (first, second))
                yield Gap(attack, ours["eps"], left, left_by_other, count)


def of_same_images(row: Row, like: Row, dataset: str) -> bool:
    """Whether the first images of a row are those of another; of a folder of pictures a selection is drawn."""
    same = row["n"] == like["n"] and row.get("images") == like.get("images")
    return bool(row["split"] == like["split"] and (same or dataset != "imagefolder"))


def nearest(rows: Iterable[Row], like: Row, dataset: str) -> list[float]:
    """(N,): of each image of the row `like` the distance of its nearest adversarial image in `rows` of one checkpoint, inf
    where there is none. A search gives it, and an attack at one eps this eps, so that the stronger counts."""
    best = [math.inf] * like["n"]
    for row in (row for row in rows if of_same_images(row, like, dataset)):
        found = row.get("distances") or [row["eps"] if flag == "0" else None for flag in row["flags"]]
        for place, distance in enumerate(found[: like["n"]]):
            best[place] = min(best[place], math.inf if distance is None else distance)
    return best


def write_curve(subject: Subject) -> Path:
    """Robust accuracy at every eps, by all that lies beside the model, as `curve_<norm>.csv`; the file."""
    rows = [row for attack in NAMES for row in rows_by(subject, attack)]
    points = accuracy_curve(nearest(rows, subject.row(0, {}), subject.dataset))
    lines = ["eps,robust_acc,low,high", *(",".join(map(str, point)) for point in points)]
    path = subject.path.parent / f"curve_{subject.norm}.csv"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def stronger(dataset: str, pgd: Sequence[Row], rows_of: Callable[[str], Sequence[Row]]) -> list[Gap]:
    """Where PGD overestimates: by each of `STRONGER`, and by that of the searches with most images, then the largest gap.

    rows_of: an attack's rows of the same checkpoint.
    """
    found: dict[tuple[str, float], Gap] = {}
    for attack in (*STRONGER, *SEARCHES):
        for gap in gaps(attack, dataset, pgd, rows_of(attack)):
            key = ("a search" if attack in SEARCHES else attack, gap.eps)
            if gap.points > 0:
                found[key] = max(gap, found.get(key, gap), key=lambda gap: (gap.n, gap.points))
    return list(found.values())


def overestimates(subject: Subject) -> list[str]:
    """By how much PGD overestimates this network's robust accuracy, a line for each `stronger` attack and radius; of the
    strong protocol against AutoAttack alone."""
    rows = {attack: rows_by(subject, attack) for attack in ("pgd", *STRONGER, *SEARCHES)}
    found = stronger(subject.dataset, rows["pgd"], rows.__getitem__)
    of_strong = gaps("autoattack", subject.dataset, rows["strong"], rows["autoattack"])
    found += [gap._replace(base="strong") for gap in of_strong if gap.points > 0]
    return [gap.text() for gap in found]


def rows_by(subject: Subject, attack: str) -> list[Row]:
    """Of this checkpoint; none where the file is damaged, which the attack's own command says."""
    try:
        return subject.rows(attack)
    except UserError:
        return []
