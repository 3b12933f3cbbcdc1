"""The runs of one method, a seed each: what they are called, what is published on them, what their seeds say together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reports import published
from reports.figures import spread
from reports.results import ATTACKS, METHODS, NONE, NORMS, Run, table_key


@dataclass(frozen=True)
class Group:
    """The runs of one method in one table, a seed each."""

    runs: list[Run]
    dataset: str
    norm: str  # of the attacks

    @property
    def method(self) -> str | None:
        """The name under which something may be published on these runs."""
        run = self.runs[0]
        return (
            run.name["method"] if run.name and run.norm == self.norm and run.name["dataset"] == self.dataset else None
        )

    @property
    def label(self) -> str:
        """The method; a run's full name where that says more; in what the training is not what the table is about."""
        run, name = self.runs[0], self.runs[0].name
        text = name["method"] if name and not name["rest"] else run.folder.resolve().name
        if len(self.runs) > 1:
            text = f"{text if name and not name['rest'] else run.name_without_seed}, {len(self.runs)} seeds"
        if self.is_cited and run.partial and not (name and name["rest"]):  # a longer name says so itself
            text += f" ({run.partial})"
        if run.norm not in (None, self.norm):
            text += f", trained under {NORMS.get(run.norm, run.norm)}"
        if run.config and run.config.get("dataset") not in (None, "imagefolder", self.dataset):
            text += f", trained on {run.config['dataset']}"
        return text

    @property
    def accuracies(self) -> list[published.Accuracies]:
        """The published ones."""
        return published.accuracies(self.dataset, self.norm, self.method or "")

    @property
    def distances(self) -> published.Distances | None:
        """The published ones, by Carlini-Wagner."""
        return published.distances(self.dataset, self.norm, self.method or "")

    @property
    def is_cited(self) -> bool:
        return bool(self.accuracies) or self.distances is not None

    @property
    def order(self) -> tuple[Any, ...]:
        """By method, then by radius as a number."""
        family, *rest = self.method.split("-") if self.method else [""]
        numbers = [float(part) for part in rest if re.fullmatch(r"\d+(\.\d+)?", part)]
        return (METHODS.index(family) if family in METHODS else len(METHODS), numbers, self.label)

    def of(self, run: Run) -> list[dict[str, Any]]:
        """The run's evaluations in this table."""
        return [e for e in run.evaluations if table_key(run, e) == (self.dataset, self.norm)]

    def found(self, attack: str) -> list[tuple[Run, dict[str, Any]]]:
        """Each run that was attacked so, with the result."""
        return [(run, e) for run in self.runs for e in self.of(run) if e["attack"] == attack]

    def attacks(self, kind: str) -> list[str]:
        """The attacks with a result of this kind (`results` or `quartiles`), in the order of `ATTACKS`."""
        names = {e["attack"] for run in self.runs for e in self.of(run) if kind in e}
        return sorted(names, key=lambda name: (*ATTACKS, name).index(name))

    def cell(self, values: Iterable[float | None], decimals: int = 1) -> str:
        """The mean of what the seeds have, and of how many where some lack it."""
        known = [value for value in values if value is not None]
        some = f" ({len(known)} of {len(self.runs)} seeds)" if len(known) < len(self.runs) else ""
        return spread(known, decimals) + some if known else NONE
