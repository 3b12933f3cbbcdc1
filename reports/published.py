"""Published figures that tables put beside ours, each with its source; no other figure of the paper is cited.

Accuracies in per cent, eps and distances in input units.
"""

from __future__ import annotations

from typing import NamedTuple

from evaluations.results import same_eps
from reports.runs import Run, method_text

LEADERBOARDS = "the authors' released model, on the leaderboards of AutoAttack and RobustBench"
DISCUSSION = "the authors in the paper's discussion on OpenReview (forum HkeryxBtPB, November 2019)"
PGD = "PGD, as its authors report it"


class Accuracies(NamedTuple):
    """What is said of one model: by LEADERBOARDS with a figure under AutoAttack, by DISCUSSION without."""

    method: str
    radius: float | None  # d_max, or ε in training; None: of any
    clean: float
    robust: dict[float, float]  # by eps
    autoattack: float | None = None  # at the only eps in `robust`


class Distances(NamedTuple):
    """Smallest L2 distance found by Carlini-Wagner on the first 1 000 test images, 0 for a misclassified one."""

    method: str
    radius: float | None
    clean: float
    mean: float
    quartiles: tuple[float, float, float]


def _by_255ths(*accuracies: float) -> dict[float, float]:
    return {4 * i / 255: accuracy for i, accuracy in enumerate(accuracies, 1)}


ACCURACIES = {
    ("mnist", "Linf"): (
        Accuracies("mma", 0.45, 98.95, {0.3: 92.59}, autoattack=91.40),
        Accuracies("mma", 0.45, 98.9, {0.1: 97.9, 0.2: 96.0, 0.3: 92.6, 0.4: 85.2}),
        Accuracies("trades", None, 99.5, {0.1: 98.8, 0.2: 97.3, 0.3: 94.1, 0.4: 0.1}),
    ),
    ("cifar10", "Linf"): (
        Accuracies("mma", 32 / 255, 84.36, {8 / 255: 47.18}, autoattack=41.44),
        Accuracies("mma", 32 / 255, 84.4, _by_255ths(64.8, 47.2, 31.5, 18.9, 10.2, 4.8, 2.0, 0.8)),
        Accuracies("trades", None, 84.9, _by_255ths(71.0, 52.9, 33.0, 18.2, 8.3, 3.6, 1.4, 0.7)),
    ),
    ("cifar10", "L2"): (Accuracies("mma", 1.0, 88.02, {0.5: 66.18}, autoattack=66.09),),
}

# Networks trained under L2; source: DISCUSSION.
DISTANCES = {
    ("mnist", "L2"): (
        Distances("std", None, 99.0, 1.57, (1.19, 1.57, 1.95)),
        Distances("pgd", 1.0, 99.2, 1.95, (1.58, 1.95, 2.33)),
        Distances("pgd", 2.0, 98.6, 2.32, (1.85, 2.43, 2.82)),
        Distances("pgd", 3.0, 96.8, 2.54, (1.79, 2.76, 3.39)),
        Distances("pgd", 4.0, 91.8, 2.53, (1.38, 2.75, 3.75)),
        Distances("pgdls", 1.0, 99.3, 1.88, (1.53, 1.88, 2.24)),
        Distances("pgdls", 2.0, 99.3, 2.23, (1.82, 2.30, 2.68)),
        Distances("mma", 2.0, 99.3, 2.15, (1.81, 2.22, 2.58)),
        Distances("mma", 4.0, 98.5, 2.67, (1.86, 2.72, 3.52)),
        Distances("mma", 6.0, 97.7, 2.76, (1.84, 2.72, 3.61)),
    ),
    ("cifar10", "L2"): (
        Distances("std", None, 95.1, 0.09, (0.05, 0.08, 0.13)),
        Distances("pgd", 0.5, 89.2, 0.80, (0.32, 0.76, 1.21)),
        Distances("pgd", 1.0, 83.8, 1.01, (0.30, 0.91, 1.62)),
        Distances("pgd", 1.5, 76.0, 1.11, (0.04, 0.96, 1.87)),
        Distances("pgd", 2.0, 71.6, 1.16, (0.00, 0.96, 2.03)),
        Distances("pgd", 2.5, 65.2, 1.19, (0.00, 0.88, 2.10)),
        Distances("pgdls", 1.0, 83.8, 1.00, (0.30, 0.91, 1.59)),
        Distances("mma", 1.0, 88.4, 0.85, (0.32, 0.80, 1.27)),
        Distances("mma", 2.0, 84.2, 1.03, (0.26, 0.92, 1.62)),
        Distances("mma", 3.0, 81.2, 1.09, (0.21, 0.92, 1.73)),
    ),
}


def is_of(said: Accuracies | Distances, run: Run) -> bool:
    """Whether the run is of the method that was published on; its data set and norm are asked for elsewhere."""
    return said.method == run.method and (said.radius is None or same_eps(said.radius, run.radius))


def name(said: Accuracies | Distances, images: str, norm: str) -> str:
    """`MMA, d_max 0.45`, `TRADES (its authors' model)`."""
    whose = " (its authors' model)" if said.method == "trades" else ""
    return method_text(said.method, said.radius, images, norm) + whose
