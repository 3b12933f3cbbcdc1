"""Everything the page shows, gathered from run folders: runs, and the benchmarks in which they can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from config import SPLITS
from errors import UserError
from evaluations.results import is_standard
from reports import published, report_training
from reports.figures import eps_key
from reports.plot_margins import Margins
from reports.report_compare import all_pairs
from reports.report_examples import Gallery
from reports.report_figures import (
    Figure,
    Quartiles,
    Row,
    averages,
    clean,
    margins_of_test_images,
    margins_of_training_images,
    quoted,
)
from reports.report_missing import Missing, missing
from reports.results import ATTACKS, NORMS, Run, image_name, in_255ths, table_key, title

PERCENT = 100


@dataclass(frozen=True)
class Entry:
    """One of our runs, with all that its folder holds."""

    id: str
    run: Run
    name: str  # short, and no other run's
    rows: list[dict[str, Any]]  # of metrics.jsonl
    cost: report_training.Cost
    margins: Margins | None
    notes: list[str]  # what cannot be used
    gallery: Gallery = Gallery([], "", "")

    @property
    def own(self) -> tuple[str, str] | None:
        """The benchmark of its training."""
        dataset = self.run.config.get("dataset") or (self.run.name and self.run.name["dataset"])
        return (
            (image_name(dataset, self.run.folder.resolve().name), self.run.norm) if dataset and self.run.norm else None
        )

    def evaluations(self, benchmark: tuple[str, str]) -> list[dict[str, Any]]:
        return [e for e in self.run.evaluations if table_key(self.run, e) == benchmark]


class AutoAttack(NamedTuple):
    """At one radius."""

    eps: float
    robust: Figure
    n: int | None
    standard: bool


@dataclass(frozen=True)
class Line:
    """One line of a benchmark's table; `entry` None: published by others."""

    id: str
    name: str
    note: str  # the folder, or the source
    entry: Entry | None = None
    n: int | None = None
    clean: Figure | None = None
    rows: list[Row] = field(default_factory=list)  # under PGD
    attack: str = ""
    averages: tuple[Figure, Figure] | None = None
    autoattack: list[AutoAttack] = field(default_factory=list)
    quartiles: Quartiles | None = None
    doubts: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def split(self) -> str:
        """Said where the images are not the test images."""
        return next((SPLITS[row.split] for row in self.rows if row.split in SPLITS and row.split != "test"), "")

    def at(self, eps: float) -> Row | None:
        return next((row for row in self.rows if row.eps == eps), None)


@dataclass(frozen=True)
class Benchmark:
    """What can be compared: the same images, under the same norm."""

    dataset: str
    norm: str
    lines: list[Line]
    pairs: dict[str, dict[str, list[list[float]]]]  # by attack

    @property
    def key(self) -> str:
        return f"{self.dataset}-{self.norm}"

    @property
    def title(self) -> str:
        return f"{title(self.dataset)}, {NORMS[self.norm]}"

    @property
    def norm_sign(self) -> str:
        return NORMS[self.norm]

    @property
    def scale(self) -> int:
        """Radii are said in units of 1 / scale."""
        return 255 if in_255ths(self.dataset, self.norm) else 1

    @property
    def sources(self) -> list[str]:
        """Of the published lines, each once."""
        return list(dict.fromkeys(line.note for line in self.lines if not line.entry))

    @property
    def radii(self) -> list[float]:
        return sorted({row.eps for line in self.lines for row in line.rows})

    def length(self, value: float, digits: int = 3) -> str:
        """A radius or margin, in the benchmark's unit."""
        return f"{self.scale * value:.{digits}g}"


# --- runs ----------------------------------------------------------------------------------------------------------


def read_entries(runs: Sequence[Run]) -> list[Entry]:
    """The runs that hold anything.

    :raises UserError: if none does.
    """
    entries: list[Entry] = []
    for run, name in zip(runs, short_names(runs), strict=True):
        rows = report_training.rows_of(run.folder)
        margins, wrong = report_training.margins(run)
        if not (run.config or run.evaluations or rows or run.damaged or margins):
            continue
        cost = report_training.cost(run.config, rows)
        notes = run.damaged + ([wrong] if wrong else [])
        entries.append(Entry(f"r{len(entries)}", run, name, rows, cost, margins, notes))
    if not entries:
        named = ", ".join(str(run.folder) for run in runs[:3]) + (", …" if len(runs) > 3 else "")
        raise UserError(f"run folders {named or 'none'}: nothing to report in them: name folders that train.py made")
    return entries


def short_names(runs: Sequence[Run]) -> list[str]:
    """`MMA-0.3 sd0` where the folder's name says so, else the folder's name; longer where two would have the same."""
    names = []
    for run in runs:
        said = run.name
        names.append(f"{said['method']}{said['rest'] or ''} {run.seed}" if said else run.folder.resolve().name)
    for longer in (
        [f"{name} ({run.folder.resolve().parent.name})" for name, run in zip(names, runs, strict=True)],
        [str(run.folder.resolve()) for run in runs],
    ):
        key = [(entry, bench_of(run)) for entry, run in zip(names, runs, strict=True)]
        names = [long if key.count(k) > 1 else name for name, long, k in zip(names, longer, key, strict=True)]
    return names


def bench_of(run: Run) -> tuple[str | None, str | None]:
    return run.config.get("dataset"), run.norm


# --- benchmarks ----------------------------------------------------------------------------------------------------


def benchmarks(entries: Sequence[Entry]) -> list[Benchmark]:
    """One for each data set and norm: of a run's training, and of every attack on it."""
    keys: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        own = [entry.own] if entry.own and entry.own[1] in NORMS else []
        for key in dict.fromkeys([*own, *(table_key(entry.run, e) for e in entry.run.evaluations)]):
            keys.setdefault(key, []).append(entry)
    most_first = sorted(keys.items(), key=lambda item: (-len(item[1]), item[0]))
    return [benchmark(*key, members) for key, members in most_first]


def benchmark(dataset: str, norm: str, members: Sequence[Entry]) -> Benchmark:
    radii = sorted(
        {
            eps_key(row["eps"])
            for entry in members
            for e in entry.evaluations((dataset, norm))
            for row in e.get("results", ())
            if e["attack"] == "pgd"
        }
    )
    ours = [our_line(entry, dataset, norm, radii) for entry in members]
    lines = ours + published_lines(dataset, norm)
    pairs = {}
    for attack in ("pgd", "autoattack"):
        rows = {}
        for number, entry in enumerate(members):
            if found := attacked(entry.evaluations((dataset, norm)), attack):
                rows[number] = quoted(found)
        if made := all_pairs(rows, dataset in ("digits", "mnist", "cifar10")):
            ids = {f"{a}-{b}": f"{members[a].id}-{members[b].id}" for a in rows for b in rows if a < b}
            pairs[attack] = {ids[key]: value for key, value in made.items()}
    return Benchmark(dataset, norm, lines, pairs)


def attacked(evaluations: Sequence[dict[str, Any]], attack: str) -> dict[str, Any] | None:
    return next((e for e in evaluations if e["attack"] == attack), None)


def our_line(entry: Entry, dataset: str, norm: str, radii: Sequence[float]) -> Line:
    run, evaluations = entry.run, entry.evaluations((dataset, norm))
    pgd, auto = attacked(evaluations, "pgd"), attacked(evaluations, "autoattack")
    rows = quoted(pgd) if pgd else []
    first = pgd or auto or (evaluations[0] if evaluations else None)
    quartiles = margins_of_test_images(run, evaluations, ATTACKS)
    if quartiles is None and entry.margins is not None and entry.own == (dataset, norm):
        quartiles = margins_of_training_images(entry.margins.eps[-1])
    standard = {eps_key(row["eps"]): is_standard({**auto, **row}) for row in auto["results"]} if auto else {}
    name = entry.name
    if run.norm not in (None, norm):
        name += f", trained under {NORMS.get(str(run.norm), run.norm)}"
    if entry.own and entry.own[0] != dataset:
        name += f", trained on {title(entry.own[0])}"
    return Line(
        entry.id,
        name,
        str(run.shown),
        entry,
        n=first["n"] if first else None,
        clean=clean(first) if first else None,
        rows=rows,
        attack="PGD",
        averages=averages(pgd, rows) if pgd and rows else None,
        autoattack=[AutoAttack(row.eps, row.robust, row.n, standard[row.eps]) for row in quoted(auto)] if auto else [],
        quartiles=quartiles,
        doubts=[f"{e['file']}: {why}" for e in evaluations for why in run.doubts(e)],
        missing=missing(run, norm, evaluations, radii, entry.margins is not None),
    )


def published_lines(dataset: str, norm: str) -> list[Line]:
    """What others have published on this benchmark; no interval, as none was."""
    lines = []
    for said in published.ACCURACIES.get((dataset, norm), ()):
        rows = [Row(eps_key(eps), Figure(acc / PERCENT), said.n or 0, "") for eps, acc in sorted(said.robust.items())]
        mean = math.fsum(said.robust.values()) / len(rows)
        both = (mean * len(rows) + said.clean) / (len(rows) + 1)
        auto = [AutoAttack(rows[0].eps, Figure(said.autoattack / PERCENT), said.n, True)] if said.autoattack else []
        several = (Figure(both / PERCENT), Figure(mean / PERCENT)) if len(rows) > 1 else None
        name = said.method + (f" ({said.of})" if said.of else "")
        shown = "white-box and transferred PGD" if said.attack == published.STRONGEST else said.attack
        clean_figure = Figure(said.clean / PERCENT)
        lines.append(Line("", name, said.source, None, said.n, clean_figure, rows, shown, several, auto))
    for method, found in published.DISTANCES.get((dataset, norm), {}).items():
        quartiles = Quartiles([Figure(value) for value in found.quartiles], 1000, "Carlini-Wagner ℓ2, n 1000")
        clean_figure = Figure(found.clean / PERCENT)
        attack = "Carlini-Wagner ℓ2"
        lines.append(Line("", method, published.DISCUSSION, None, 1000, clean_figure, [], attack, None, [], quartiles))
    return [Line(**{**vars(line), "id": f"p{number}"}) for number, line in enumerate(lines)]
