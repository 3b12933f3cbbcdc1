"""Markdown tables of accuracies and of smallest distances, with the run folders behind each row as footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from reports import published
from reports.accuracy_rows import Row, accuracy_rows, count, published_row
from reports.groups import Group
from reports.results import ATTACKS, NONE, NORMS, UNIMPORTANT, WARNING, Run, eps_text


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


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table without the columns in which no row says anything."""
    used = [i for i in range(len(header)) if any(row[i] != NONE for row in rows)]
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line[i] for i in used) + " |" for line in lines]


def show_or_write(text: str, out: str | None) -> int:
    """Print it, or write it to the file `out`; 0, the exit status.

    :raises UserError: if the file cannot be written.
    """
    if out is None:
        print(text, end="")
        return 0
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another file") from None
    print(f"written: {out}")
    return 0


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
