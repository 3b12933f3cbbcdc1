"""Markdown tables of every evaluation in some run folders, in the paper's form, with the published figures beside ours.

python reports/make_tables.py trained_models/* [--out FILE]

One table for each data set and norm of the attack. Runs that differ in their seed alone are one row: mean ± standard
deviation. AvgAcc is the mean over clean and all eps, AvgRobAcc over all eps.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, exits_on_user_error
from flags import Parser
from reports import published
from reports.results import (
    ATTACKS,
    METHODS,
    NONE,
    NORMS,
    TEST_IMAGES,
    UNIMPORTANT,
    WARNING,
    Run,
    averages,
    eps_key,
    in_255ths,
    read_run,
    spread,
    strongest,
    table_key,
    title,
)


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


class Row(NamedTuple):
    """One line of an accuracy table, as text."""

    label: str
    attack: str
    n: str
    clean: str
    robust: dict[float, str]  # by eps
    avg_acc: str
    avg_robust: str
    autoattack: str = NONE


def accuracy_rows(group: Group) -> list[Row]:
    """Ours by attack; AutoAttack in PGD's row, if there is one."""
    pgd = dict(group.found("pgd"))
    rows = []
    for attack in group.attacks("results"):
        found = group.found(attack)
        if attack == "transfer":
            found = [(run, strongest(e, pgd.get(run))) for run, e in found]
        if attack != "autoattack" or not pgd:
            rows.append(accuracy_row(group, attack, found))
    return rows


def accuracy_row(group: Group, attack: str, found: Sequence[tuple[Run, dict[str, Any]]]) -> Row:
    """Accuracies in per cent, the mean of the seeds."""
    doubted = any(run.doubts(e) for run, e in found)
    radii = sorted({eps_key(row["eps"]) for _, e in found for row in e["results"]})

    def cell(value: Callable[[dict[str, Any]], float | None]) -> str:
        values = [value(e) for _, e in found]
        text = group.cell([None if v is None else 100 * v for v in values])
        return f"{WARNING} {text}" if doubted else text

    robust = {eps: cell(partial(accuracy_at, eps=eps)) for eps in radii}
    title = ATTACKS.get(attack, attack) if is_standard(found) else f"not standard {ATTACKS[attack]}"
    same_radii = all(len(e["results"]) == len(radii) for _, e in found)
    return Row(
        group.label,
        title,
        count(e for _, e in found),
        group.cell([100 * e["clean_acc"] for _, e in found]),
        robust,
        cell(lambda e: averages(e)[0]) if same_radii else NONE,
        cell(lambda e: averages(e)[1]) if same_radii else NONE,
        autoattack=autoattack_cell(group, count(e for _, e in found)) if attack == "pgd" else NONE,
    )


def accuracy_at(evaluation: dict[str, Any], eps: float) -> float | None:
    return next((row["robust_acc"] for row in evaluation["results"] if eps_key(row["eps"]) == eps), None)


def autoattack_cell(group: Group, n: str) -> str:
    """`41.4 at 8/255`, for each eps; with its n where that is not PGD's, and said if it is not the standard ensemble."""
    found = group.found("autoattack")
    if not found:
        return NONE
    row = accuracy_row(group, "autoattack", found)
    text = "; ".join(
        f"{accuracy} at {eps_text(eps, group.dataset, group.norm)}" for eps, accuracy in row.robust.items()
    )
    remarks = ([] if row.n == n else [f"n {row.n}"]) + ([] if is_standard(found) else ["not standard AutoAttack"])
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def is_standard(found: Sequence[tuple[Run, dict[str, Any]]]) -> bool:
    """Whether AutoAttack was run as its authors define it."""
    return all((e.get("settings") or {}).get("standard", True) for _, e in found)


def count(evaluations: Iterable[dict[str, Any]]) -> str:
    """How many test images; of how many, where that is known to be more."""
    evaluations = list(evaluations)
    of = TEST_IMAGES.get(evaluations[0]["dataset"])
    counts = sorted({e["n"] for e in evaluations})
    return ", ".join(map(str, counts)) + (f" of {of}" if of and counts != [of] else "")


def published_row(group: Group, said: published.Accuracies) -> Row:
    values = list(said.robust.values())
    percent = f".{said.decimals}f"
    at = f" at {eps_text(min(said.robust), group.dataset, group.norm)}"  # AutoAttack is cited with one eps
    label = f"{said.method}{f' ({said.of})' if said.of else ''}, published"
    means = [f"{statistics.fmean(some):.1f}" for some in ([said.clean, *values], values)]
    avg_acc, avg_robust = means if len(values) > 1 else (NONE, NONE)
    return Row(
        label,
        said.attack,
        NONE if said.n is None else str(said.n),
        f"{said.clean:{percent}}",
        {eps_key(eps): f"{value:{percent}}" for eps, value in said.robust.items()},
        avg_acc,
        avg_robust,
        autoattack=NONE if said.autoattack is None else f"{said.autoattack:{percent}}{at}",
    )


# --- tables --------------------------------------------------------------------------------------------------------


class Footnotes:
    """Numbered lines under a table; the same text twice is one of them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        return [f"- [{number}] {text}" for number, text in enumerate(self.texts, 1)]


def eps_text(eps: float, dataset: str, norm: str) -> str:
    """`8/255` or `0.3`."""
    return f"{255 * eps:.4g}/255" if in_255ths(dataset, norm) else f"{eps:.4g}"


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table without the columns in which no row says anything."""
    used = [i for i in range(len(header)) if any(row[i] != NONE for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line[i] for i in used) + " |" for line in lines]


def accuracy_table(groups: Sequence[Group], notes: Footnotes) -> list[str]:
    """Method by eps; [] if there is nothing to show."""
    rows: list[tuple[Row, str]] = []
    for group in groups:
        if ours := accuracy_rows(group):
            rows += [(row, sources(group)) for row in ours]
            theirs = [
                (published_row(group, said), said.source + "; averages computed here" * (len(said.robust) > 1))
                for said in group.accuracies
            ]
            rows += [entry for entry in theirs if entry not in rows]
    if not rows:
        return []
    radii = sorted({eps for row, _ in rows for eps in row.robust})
    dataset, norm = groups[0].dataset, groups[0].norm

    def average(row: Row, text: str) -> str:
        some = f" (of {len(row.robust)} ε)" if len(row.robust) < len(radii) and text != NONE else ""
        return text + some

    header = [
        "method",
        "attack",
        "n",
        "clean",
        *(f"ε = {eps_text(eps, dataset, norm)}" for eps in radii),
        "AvgAcc",
        "AvgRobAcc",
        "AutoAttack",
    ]
    cells = [
        [
            f"{row.label} {notes.mark(source)}",
            row.attack,
            row.n,
            row.clean,
            *(row.robust.get(eps, NONE) for eps in radii),
            average(row, row.avg_acc),
            average(row, row.avg_robust),
            row.autoattack,
        ]
        for row, source in rows
    ]
    explained = (
        "Accuracy [%]. AvgAcc: mean over clean and all ε; AvgRobAcc: over all ε (of fewer where said); ±: standard "
        "deviation over seeds."
    )
    return [explained, "", *table_lines(header, cells), ""]


def distance_table(groups: Sequence[Group], notes: Footnotes) -> list[str]:
    """Mean and quartiles of the smallest distance found; [] if there is nothing to show."""
    cells = []
    for group in groups:
        attacks = group.attacks("quartiles")
        for attack in attacks:
            cells.append(distance_row(group, ATTACKS.get(attack, attack), group.found(attack), notes))
            if attack == "cw" and (said := group.distances):
                cells.append(
                    [
                        f"{group.method}, published {notes.mark(published.DISCUSSION)}",
                        ATTACKS["cw"],
                        "1000",
                        f"{said.clean:.1f}",
                        *(f"{v:.2f}" for v in (said.mean, *said.quartiles)),
                        NONE,
                    ]
                )
        if attacks:
            estimated = [
                (run, {**e, "not_found": 0, **e["anpgd"]}) for run, e in group.found(attacks[0]) if e.get("anpgd")
            ]
            if estimated:
                end = short(estimated[0][1].get("search_end", "the end of its search"))
                cells.append(distance_row(group, f"AN-PGD, at most {end}", estimated, notes))
    header = ["method", "attack", "n", "clean [%]", "mean", "25 %", "median", "75 %", "not found"]
    unit = f"Smallest {NORMS[groups[0].norm]} distance found (images in [0, 1]; 0 for a misclassified one)."
    return [unit, "", *table_lines(header, cells), ""] if cells else []


def distance_row(group: Group, attack: str, found: Sequence[tuple[Run, dict[str, Any]]], notes: Footnotes) -> list[str]:
    """The mean of the seeds; no figure where one of them has none because images were not broken."""
    mark = f"{WARNING} " if any(run.doubts(e) for run, e in found) else ""
    values = zip(*([e["mean"], *e["quartiles"]] for _, e in found), strict=True)
    lost = [str(e.get("not_found") or 0) for _, e in found]
    return [
        f"{group.label} {notes.mark(sources(group))}",
        attack,
        count(e for _, e in found),
        group.cell([100 * e["clean_acc"] for _, e in found]),
        *(NONE if None in v else mark + group.cell(v, decimals=3) for v in values),
        NONE if set(lost) == {"0"} else ", ".join(lost),
    ]


def sources(group: Group) -> str:
    """The run folders behind a row, and the settings of every evaluation there."""
    folders: dict[str, list[str]] = {}
    for run in group.runs:
        made = ", ".join(f"`{e['file']}` ({settings_text(run, e)})" for e in group.of(run))
        folders.setdefault((f" ({run.partial})" if run.partial else "") + f": {made}", []).append(f"`{run.shown}`")
    return "; ".join(", ".join(names) + made for made, names in folders.items())


def settings_text(run: Run, evaluation: dict[str, Any]) -> str:
    """How an evaluation was made; of which checkpoint, where that is not the best one."""
    file = run.hashes.get(str(evaluation.get("model_sha256")), "model_best.pt")
    settings = {k: v for k, v in (evaluation.get("settings") or {}).items() if k not in UNIMPORTANT and k != "eps_iter"}
    said = [f"{key} {short(value)}" for key, value in settings.items()]
    return ", ".join([f"n {evaluation['n']}", *said, *([f"of {file}"] if file != "model_best.pt" else [])])


def short(value: object) -> str:
    """A setting without the punctuation of JSON."""
    if isinstance(value, dict):
        return " ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def warnings(group: Group) -> list[str]:
    """Why figures of this row are not to be trusted, a line each."""
    return [
        f"- {WARNING} {group.label}: `{run.shown}/{e['file']}`: {why}"
        for run in group.runs
        for e in group.of(run)
        for why in run.doubts(e)
    ]


def differences(group: Group) -> list[str]:
    """Where the seeds of a row were trained or attacked in different ways, a line each."""
    records = [("training", [(run, {**run.config, "steps done": run.steps}) for run in group.runs])]
    for attack in group.attacks("results") + group.attacks("quartiles"):
        records.append((ATTACKS.get(attack, attack), [(run, protocol(e)) for run, e in group.found(attack)]))
    lines = []
    for what, found in records:
        for key in set.intersection(*(set(record) for _, record in found)) - UNIMPORTANT:
            values = [short(record[key]) for _, record in found]
            if len(set(values)) > 1:
                said = ", ".join(f"{run.seed}: {value}" for (run, _), value in zip(found, values, strict=True))
                lines.append(f"- {group.label}: {what}: {key} differs between seeds ({said})")
    return sorted(lines)


def protocol(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the seeds of a row should have in common."""
    settings = {key: value for key, value in (evaluation.get("settings") or {}).items() if key != "eps_iter"}
    return {"n": evaluation["n"], "ε": [row["eps"] for row in evaluation.get("results", ())], **settings}


# --- the page ------------------------------------------------------------------------------------------------------


def make_page(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """The Markdown, and a line for each file that cannot be read.

    :raises UserError: if a folder is not there.
    """
    runs = [run for run in map(read_run, dict.fromkeys(folders)) if run.folder.is_dir()]
    grouped: dict[tuple[str, str], dict[tuple[Any, ...], list[Run]]] = {}
    for run in runs:
        for key in dict.fromkeys(table_key(run, e) for e in run.evaluations):
            grouped.setdefault(key, {}).setdefault((run.folder.resolve().parent, run.name_without_seed), []).append(run)
    lines = []
    for (dataset, norm), members in sorted(grouped.items()):
        groups = sorted((Group(found, dataset, norm) for found in members.values()), key=lambda group: group.order)
        lines += section(groups)
    damaged = [line for run in runs for line in run.damaged]
    if missing := [run for run in runs if not run.evaluations]:
        lines += ["## Not evaluated", "", *(f"- `{run.shown}`" for run in missing), ""]
    if damaged:
        lines += ["## Damaged", "", *(f"- {WARNING} {line}" for line in damaged), ""]
    return "\n".join(lines).rstrip() + "\n", damaged


def section(groups: Sequence[Group]) -> list[str]:
    """The tables of one data set and norm, with everything that must be said of them."""
    dataset, norm = groups[0].dataset, groups[0].norm
    notes = Footnotes()
    tables = accuracy_table(groups, notes) + distance_table(groups, notes)
    loud = [line for group in groups for line in warnings(group)]
    quiet = [line for group in groups for line in differences(group)]
    return [f"## {title(dataset)}, {NORMS[norm]}", "", *tables, *loud, *quiet, *notes.lines(), ""]


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the tables. Returns the exit status."""
    parser = Parser(description="Markdown tables of the evaluations in run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, e.g. trained_models/*")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    given = parser.parse(argv)
    page, damaged = make_page([Path(run) for run in given["runs"]])
    for line in damaged:
        print(f"warning: {line}", file=sys.stderr)
    if given["out"] is None:
        print(page, end="")
        return 0
    try:
        Path(given["out"]).write_text(page)
    except OSError as error:
        raise UserError(f"--out {given['out']}: cannot be written ({error.strerror}): choose another file") from None
    print(f"written: {given['out']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
