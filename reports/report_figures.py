"""The figures of one run that the page shows, each with its 95 % interval where the stored results give one.

N test images; accuracies in [0, 1], radii and margins in input units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from evaluations.results import wilson
from reports.figures import eps_key
from reports.results import Run

NORMAL = 1.959964  # standard deviations on each side of a 95 % interval
QUARTILES = (0.25, 0.5, 0.75)


class Figure(NamedTuple):
    """A value between the ends of its 95 % interval; these are None where nothing stored gives one."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """Robust accuracy at one radius, of the row that is to be quoted."""

    eps: float
    robust: Figure
    n: int
    flags: str  # one character an image, "1" where it stands; "" where they were not stored
    split: str = "test"
    images: str | None = None  # a digest of them, where it was stored


def interval(value: float, ends: Sequence[float] | None, n: int) -> Figure:
    """A proportion of n with the interval that is stored, else with Wilson's."""
    low, high = ends or wilson(round(value * n), n)
    return Figure(value, low, high)


def clean(evaluation: dict[str, Any]) -> Figure:
    """Accuracy on clean images."""
    return interval(evaluation["clean_acc"], evaluation.get("clean_ci95"), evaluation["n"])


def images_of(evaluation: dict[str, Any], row: dict[str, Any]) -> int:
    """How many images a row is of: its own number, else the evaluation's."""
    own = row.get("n")
    return own if type(own) is int and own > 0 else int(evaluation["n"])


def quoted(evaluation: dict[str, Any]) -> list[Row]:
    """Its rows, one a radius, ascending."""
    rows = []
    for row in sorted(evaluation.get("results", ()), key=lambda row: row["eps"]):
        n = images_of(evaluation, row)
        flags = row.get("flags") or ""
        figure = interval(row["robust_acc"], row.get("ci95"), n)
        split, images = (row.get(key) or evaluation.get(key) for key in ("split", "images"))
        rows.append(Row(eps_key(row["eps"]), figure, n, flags if len(flags) == n else "", str(split or "test"), images))
    return rows


def averages(evaluation: dict[str, Any], rows: Sequence[Row]) -> tuple[Figure, Figure]:
    """(AvgAcc, AvgRobAcc): means over clean and all radii, and over all radii.

    The interval is that of the mean over images of each one's own average, so it needs the flags: the radii share their
    images. An image that stands somewhere is right when clean; of the others as many are as the clean accuracy says.
    """
    robust = [row.robust.value for row in rows]
    all_values = (np.mean([evaluation["clean_acc"], *robust]), np.mean(robust))
    if not all(row.flags for row in rows) or len({row.n for row in rows}) > 1 or rows[0].n != evaluation["n"]:
        return Figure(float(all_values[0])), Figure(float(all_values[1]))
    stands = np.sum([bits(row.flags) for row in rows], axis=0)
    right = np.argsort(-stands, kind="stable")[: round(evaluation["clean_acc"] * evaluation["n"])]
    with_clean = stands.copy()
    with_clean[right] += 1
    return mean_of(with_clean / (len(rows) + 1)), mean_of(stands / len(rows))


def mean_of(values: np.ndarray) -> Figure:
    """(N,) -> their mean with its normal interval."""
    mean = float(values.mean())
    half = NORMAL * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Figure(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def bits(flags: str) -> np.ndarray:
    """(N,) of 0 and 1."""
    return np.array(np.frombuffer(flags.encode(), np.uint8) == ord("1"), np.int64)


# --- margins -------------------------------------------------------------------------------------------------------


class Quartiles(NamedTuple):
    """Of the margins of n images, and where they come from; None where more images than that were not broken."""

    figures: list[Figure | None]
    n: int
    source: str
    doubted: bool = False


def quartiles_of(distances: Sequence[float | None]) -> list[Figure | None]:
    """25, 50 and 75 % with the intervals that order statistics give; a distance that was not found is None or inf."""
    values = np.sort([math.inf if value is None else value for value in distances])
    return [quantile(values, q) for q in QUARTILES]


def quantile(values: np.ndarray, q: float) -> Figure | None:
    """The q-quantile of sorted values (N,), between the order statistics that enclose it in 95 % of samples."""
    n = len(values)
    with np.errstate(invalid="ignore"):  # between two infinities
        value = float(np.quantile(values, q))
    if not math.isfinite(value):
        return None
    first, last = int(binom.ppf(0.025, n, q)), int(binom.ppf(0.975, n, q))
    low, high = float(values[max(first - 1, 0)]), float(values[min(last, n - 1)])
    return Figure(value, low, high if math.isfinite(high) else None)


def margins_of_test_images(run: Run, evaluations: Sequence[dict[str, Any]], titles: dict[str, str]) -> Quartiles | None:
    """By the attack for the nearest adversarial image that saw most images; None if there was none."""
    found = [evaluation for evaluation in evaluations if "quartiles" in evaluation]
    if not found:
        return None
    best = max(found, key=lambda evaluation: evaluation["n"])
    if best.get("distances"):
        figures = quartiles_of(best["distances"])
    else:
        figures = [None if value is None else Figure(value) for value in best["quartiles"]]
    source = f"{titles.get(best['attack'], best['attack'])}, n {best['n']}"
    return Quartiles(figures, best["n"], source, bool(run.doubts(best)))


def margins_of_training_images(eps: np.ndarray) -> Quartiles:
    """(N,) radii of the last check, as AN-PGD found them in training."""
    return Quartiles(quartiles_of(eps.tolist()), len(eps), f"training images, n {len(eps)}")
