"""A proportion of images: its interval, as a row of results, for people."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest
from torch import Tensor

from evaluations.rows import Row


def wilson(successes: int, count: int) -> list[float]:
    """The 95 % Wilson interval of a proportion, [low, high]."""
    interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return [interval.low, interval.high]


def as_flags(robust: Tensor) -> str:
    """(N,) bool -> one character an example, "1": robust."""
    return "".join("1" if flag else "0" for flag in robust.tolist())


def accuracy_of(flags: str) -> Row:
    """The part of a row that follows from one character an example."""
    standing = flags.count("1")
    return {"robust_acc": standing / len(flags), "ci95": wilson(standing, len(flags)), "flags": flags}


def clean_accuracy(right: Tensor) -> Row:
    """(N,) bool, classified right without a perturbation -> the part of a row that says so."""
    standing, count = int(right.sum()), len(right)
    return {"clean_acc": standing / count, "clean_ci95": wilson(standing, count)}


def interval(ci: Sequence[float]) -> str:
    """For people."""
    return f"95 % interval [{ci[0]:.2%}, {ci[1]:.2%}]"
