"""A row of results, one attack on one set of images at one radius: its kind, how hard its attack tried, which to quote.

docs/evaluation.md says what each key means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

Row = dict[str, Any]
SAME_EPS = 1e-6  # relative: radii that differ by rounding only
# Where and in what portions it was made; two results that differ in these alone are of the same kind.
PORTIONS = ("device", "processes", "batch_size", "batch_size_asked")
EFFORTS = ("nb_restart", "nb_iter", "nb_sample", "queries", "steps", "searches", "targets")


@dataclass(frozen=True)
class Kind:
    """What two results must share to be of the same kind: the images, the seed, and how they were attacked."""

    n: int
    split: str
    images: str  # a digest of them
    seed: int
    settings: Mapping[str, Any]  # less where and in what portions
    sources: Sequence[Mapping[str, Any]] | None = field(default=None)  # of transferred images

    def covers(self, row: Row, apart_from: Sequence[str] = ()) -> bool:
        """Whether the row is of this kind; `apart_from`: settings that may differ. Old rows do not say which images."""
        found = row["settings"]
        return (
            (row["n"], row["split"], row.get("seed")) == (self.n, self.split, self.seed)
            and row.get("images") in (None, self.images)
            and row.get("sources") == (None if self.sources is None else list(self.sources))
            and all(
                _agrees(found.get(f"{name}_asked", found.get(name)), value)
                for name, value in self.settings.items()
                if name not in apart_from
            )
        )


def _agrees(found: object, value: object) -> bool:
    if isinstance(value, Mapping):
        if not isinstance(found, dict) or found.keys() != value.keys():
            return False
        return all(_agrees(found[name], part) for name, part in value.items())
    if isinstance(found, float) and isinstance(value, float):  # of a radius that differs by rounding only
        return math.isclose(found, value, rel_tol=SAME_EPS)
    return found == value


def same_eps(one: float | None, other: float | None) -> bool:
    """Whether two radii are one; None is no radius."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=SAME_EPS)


def is_standard(row: Row) -> bool:
    """Whether AutoAttack was run as its authors define it; true of every other attack."""
    return (row.get("settings") or {}).get("standard") is not False


def effort(row: Row) -> tuple[bool, float]:
    """How hard a row's attack tried: standard AutoAttack before others, then restarts x steps or what corresponds."""
    settings = row["settings"]
    numbers = [settings[name] for name in EFFORTS if isinstance(settings.get(name), int | float)]
    attacks = settings.get("attacks")
    several = len(attacks) if isinstance(attacks, list) else 1
    return is_standard(row), math.prod(numbers) * several


def _weight(row: Row) -> tuple[Any, ...]:
    """By which of several rows at one radius the one to quote is chosen. A robust accuracy is an upper bound, so that of
    the same images the lowest figure counts, and a weak attack never hides what a stronger one found."""
    return row["n"], is_standard(row), -row.get("robust_acc", 0.0), effort(row)


def quoted(rows: Sequence[Row], split: str = "test") -> list[Row]:
    """Of each radius the row to quote, ascending: most images, then standard AutoAttack, then the lowest robust accuracy,
    then most restarts x steps, then the latest listed."""
    best: list[Row] = []
    for row in (row for row in rows if row["split"] == split):
        rival = next((k for k, other in enumerate(best) if same_eps(row.get("eps"), other.get("eps"))), None)
        if rival is None:
            best.append(row)
        elif _weight(row) >= _weight(best[rival]):
            best[rival] = row
    return sorted(best, key=lambda row: row.get("eps") or 0.0)


def way(row: Row) -> dict[str, Any]:
    """How a row's images were attacked, less what goes with the radius and what changes nothing: `eps_iter` is over eps."""
    own = {name: value for name, value in row["settings"].items() if name not in PORTIONS}
    if row.get("eps") and isinstance(own.get("eps_iter"), float):
        own["eps_iter"] = float(f"{own['eps_iter'] / row['eps']:.4g}")
    return own


def average_accuracies(clean: float, robust: Sequence[float]) -> dict[str, float]:
    """AvgAcc, the mean over clean and every radius, and AvgRobAcc, the mean over every radius."""
    return {"avg_acc": fmean([clean, *robust]), "avg_rob_acc": fmean(robust)}


def joined_checks(rows: Sequence[Row]) -> dict[str, Any]:
    """The sanity checks of several rows by name: the first that failed, else the first."""
    joined: dict[str, Any] = {}
    for row in rows:
        for name, outcome in (row.get("sanity") or {}).items():
            if name not in joined or (_failed(outcome) and not _failed(joined[name])):
                joined[name] = outcome
    return joined


def _failed(outcome: object) -> bool:
    return isinstance(outcome, dict) and outcome.get("ok") is False
