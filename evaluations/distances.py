"""Figures of smallest distances: mean, quartiles, the best known, beside AN-PGD's margins. N test images.

A distance is 0 for a misclassified image and inf where nothing was found; None says so in a JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from evaluations.accuracy import interval, wilson
from evaluations.rows import Row
from evaluations.subject import Subject

Figures = dict[str, Any]


def summary(values: Sequence[float]) -> Figures:
    """Mean and quartiles (linear between neighbours); None, that is, not found, where they are infinite or of nothing."""
    ordered = sorted(values)

    def quantile(share: float) -> float | None:
        low, part = divmod(share * (len(ordered) - 1), 1)
        value = ordered[int(low)] + (part * (ordered[int(low) + 1] - ordered[int(low)]) if part else 0)
        return value if math.isfinite(value) else None

    if not ordered:
        return {"mean": None, "quartiles": [None] * 3}
    mean = fmean(ordered)
    return {"mean": mean if math.isfinite(mean) else None, "quartiles": [quantile(q) for q in (0.25, 0.5, 0.75)]}


def shown(value: float | None) -> str:
    """A figure of the table."""
    return "not found" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Measured:
    """What one start of the program measured on the N images."""

    subject: Subject
    right: Tensor  # (N,) bool on the CPU: classified right without a perturbation
    margins: Tensor  # (N,) float64 on the CPU: AN-PGD's
    distances: Mapping[str, Sequence[float]]  # (N,) by attack
    attacks: Sequence[str]  # that the norm has

    def best_known(self) -> tuple[list[float], list[str]]:
        """(N,) shortest distance by attacks of this run and by JSON beside the model, inf where there is none; their
        names."""
        known = {}
        for attack in self.attacks:
            columns = [column for row in self.subject.rows(attack) if (column := self._column(row)) is not None]
            columns += [list(self.distances[attack])] if attack in self.distances else []
            if columns:
                known[attack] = [min(column) for column in zip(*columns, strict=True)]
        return [min(column) for column in zip(*known.values(), strict=True)], sorted(known)

    def _column(self, row: Row) -> list[float] | None:
        """(N,) a row's distances, inf where it has none; None if they are of other images."""
        n, distances = len(self.right), row.get("distances") or []
        same = row.get("images") in (None, self.subject.images) and row["n"] == n
        same_order = self.subject.dataset != "imagefolder"  # the first ones, whichever size; else a selection
        if not distances or row["split"] != self.subject.split or not (same or same_order):
            return None
        cut = [math.inf if d is None else d for d in distances[:n]]
        return cut + [math.inf] * (n - len(cut))

    def compared(self) -> Figures:
        """AN-PGD's margins, and their ratio to the best known distances.

        The ratio is over the images that are classified right, that an attack broke, and whose margin is not the end of
        AN-PGD's search, where nothing was found.
        """
        training = self.subject.training
        end, bracket = training.search_maxeps, training.search_maxeps / 2**training.check_search_steps
        at_end = (self.margins >= end - bracket).tolist()
        best, attacks = self.best_known()
        ratios = [
            margin / distance
            for margin, distance, right, stuck in zip(
                self.margins.tolist(), best, self.right.tolist(), at_end, strict=True
            )
            if right and not stuck and 0 < distance < math.inf
        ]
        return {
            **summary(self.margins.tolist()),
            "search_end": end,
            "at_search_end": sum(at_end),
            "ratio": {**summary(ratios), "n": len(ratios), "below_1": sum(r < 1 for r in ratios), "best_of": attacks},
            "distances": self.margins.tolist(),
        }


def figures_of(distances: Sequence[float]) -> Figures:
    """The part of a row that follows from the distances."""
    stored = [d if math.isfinite(d) else None for d in distances]
    broken = [d for d in stored if d is not None]
    return {
        **summary(distances),
        "not_found": len(stored) - len(broken),
        "mean_of_found": summary(broken)["mean"],
        "distances": stored,
    }


def table(measured: Measured, seconds: Mapping[str, float]) -> list[str]:
    """What to print at the end; seconds: by attack."""
    subject, n, right = measured.subject, len(measured.right), int(measured.right.sum())
    anpgd, (best, attacks) = measured.compared(), measured.best_known()

    def row(name: str, figures: Figures, *rest: str) -> str:
        return (
            f"{name:22}" + "".join(f"{shown(v):>11}" for v in (figures["mean"], *figures["quartiles"])) + "".join(rest)
        )

    def missing(values: Sequence[float]) -> str:
        return f"{sum(math.isinf(value) for value in values):>11}"

    end = f"   (margins at the search's end, {anpgd['search_end']:.4g})"
    ratio = anpgd["ratio"]
    heads = ("mean", "25 %", "50 %", "75 %", "not found")
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, on {subject.test.labels.device}",
        f"clean accuracy {right / n:.2%}   {interval(wilson(right, n))}",
        f"{f'smallest {subject.norm} distance':22}" + "".join(f"{head:>11}" for head in heads),
        *[row(name, summary(d), missing(d), f"   {seconds[name]:g} s") for name, d in measured.distances.items()],
        row("best known", summary(best), missing(best), f"   of {', '.join(attacks)}"),
        row("AN-PGD", anpgd, f"{anpgd['at_search_end']:>11}", end),
        row("AN-PGD / best known", ratio, f"{'':11}   over {ratio['n']} images; below 1 in {ratio['below_1']}"),
    ]
