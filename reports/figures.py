"""Figures that the tables and the report make of several: means over eps and over seeds, the strongest of two attacks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evaluations.results import wilson


def averages(evaluation: dict[str, Any]) -> tuple[float, float]:
    """(AvgAcc, AvgRobAcc): the means over clean and all eps, and over all eps."""
    robust = [row["robust_acc"] for row in evaluation["results"]]
    return statistics.fmean([evaluation["clean_acc"], *robust]), statistics.fmean(robust)


def strongest(transfer: dict[str, Any], pgd: dict[str, Any] | None) -> dict[str, Any]:
    """The transfer evaluation, which counts the white-box attack already, less what PGD's own, if of these images, or of more,
    and of the same checkpoint, breaks beyond it."""
    if pgd is None or transfer.get("model_sha256") != pgd.get("model_sha256"):
        return transfer
    # A part of an image folder is drawn, not its first images.
    if transfer["dataset"] == "imagefolder" and transfer["n"] != pgd["n"]:
        return transfer
    others = {eps_key(row["eps"]): row.get("flags", "") for row in pgd["results"]}
    results = []
    for row in transfer["results"]:
        flags, other = row.get("flags", ""), others.get(eps_key(row["eps"]), "")
        if len(other) >= len(flags) > 0:
            left = sum(a == b == "1" for a, b in zip(flags, other, strict=False))
            row = {**row, "robust_acc": left / len(flags), "ci95": list(wilson(left, len(flags)))}
        results.append(row)
    return {**transfer, "results": results, "sanity": {**(pgd.get("sanity") or {}), **(transfer.get("sanity") or {})}}


def eps_key(eps: float) -> float:
    """The same number for radii that differ by rounding only."""
    return round(eps, 6)


def spread(values: Sequence[float], decimals: int = 1) -> str:
    """`mean`, or `mean ± standard deviation` of several."""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"
