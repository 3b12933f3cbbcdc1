"""Two runs attacked on the same images, compared image by image: McNemar's test and the interval of the difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binom

from reports.report_figures import NORMAL, Row, bits


class Pair(NamedTuple):
    """At one radius, on the n images that both were attacked on; differences are first - second."""

    eps: float
    n: int
    first: float  # robust accuracy
    second: float
    only_first: int  # images that stand in the first run alone
    only_second: int
    low: float  # ends of the 95 % interval of the difference
    high: float
    p: float  # McNemar, exact, two-sided


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value: how unlikely so uneven a split of the images that differ is, were both runs alike."""
    differ = only_first + only_second
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), differ, 0.5))) if differ else 1.0


def difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of the paired difference: Wald's after half an image in each of the four cells (Agresti and Min 2005)."""
    b, c, count = only_first + 0.5, only_second + 0.5, n + 2
    middle = (b - c) / count
    half = NORMAL * math.sqrt(b + c - (b - c) ** 2 / count) / count
    return max(middle - half, -1.0), min(middle + half, 1.0)


def same_images(one: Row, other: Row, same_order: bool) -> bool:
    """Whether the images of the shorter row are the first of the longer one's.

    same_order: whether a smaller set of images is the larger one's beginning.
    """
    if one.split != other.split:
        return False
    return same_order if one.n != other.n else None in (one.images, other.images) or one.images == other.images


def compare(first: Sequence[Row], second: Sequence[Row], same_order: bool) -> list[Pair]:
    """At every radius that both have flags for, on the images that both saw; `same_order` as in `same_images`."""
    others = {row.eps: row for row in second if row.flags}
    pairs = []
    for row in first:
        other = others.get(row.eps)
        if not row.flags or other is None or not same_images(row, other, same_order):
            continue
        n = min(row.n, other.n)
        a, b = bits(row.flags[:n]), bits(other.flags[:n])
        only = int((a > b).sum()), int((b > a).sum())
        ends = difference_interval(*only, n)
        pairs.append(Pair(row.eps, n, float(a.mean()), float(b.mean()), *only, *ends, mcnemar(*only)))
    return pairs


def all_pairs(rows: dict[int, list[Row]], same_order: bool) -> dict[str, list[list[float]]]:
    """`3-5` -> the pairs of runs 3 and 5, rounded, as the page needs them; no entry where they have no radius in common."""
    found = {}
    for one, other in itertools.combinations(sorted(rows), 2):
        if pairs := compare(rows[one], rows[other], same_order):
            found[f"{one}-{other}"] = [
                [float(f"{value:.4g}") if i > 1 else value for i, value in enumerate(pair)] for pair in pairs
            ]
    return found
