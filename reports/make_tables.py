"""Markdown tables of every evaluation in some run folders, in the paper's form, with the published figures beside ours.

python reports/make_tables.py trained_models/* [--out FILE]
python reports/make_tables.py --fill [RUN ...]   the tables in README.md and docs/, between their markers

One table for each data set and norm of the attack. Runs that differ in their seed alone are one line.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import reports

reports.require("pandas")

import numpy as np
import pandas as pd

from errors import UserError, exits_on_user_error
from flags import Parser
from reports import published
from reports.runs import ATTACKS, NORMS, TEST_IMAGES, Run, eps_text, frame, read_runs, title
from reports.tables import (
    ACCURACIES,
    NONE,
    WARNING,
    Footnotes,
    Table,
    accuracy_table,
    code,
    distance_table,
    remarks,
    show_or_write,
)
from utils import write_atomically

PAGES = ("README.md", "docs/results.md", "docs/experiments.md")
NOT_RUN = "not run yet"
SEARCHES = ("cw", "ddn", "fmn")
FAR = 1e30  # stands for a distance that was not found; a mean or quartile with one in it is far, too


def make_page(runs: Sequence[Run]) -> str:
    """The Markdown of all tables."""
    found = frame(runs)
    lines = []
    for (images, norm), rows in found.groupby(["images", "norm"]):
        notes = Footnotes()
        accuracies, distances = accuracy_table(rows, notes), distance_table(rows, notes)
        lines += [f"## {title(images)}, {NORMS[norm]}", ""]
        if accuracies.lines:
            lines += [ACCURACIES, "", *accuracies.markdown(), ""]
        if distances.lines:
            unit = f"Smallest {NORMS[norm]} distance found (images in [0, 1]; 0 for a misclassified one)."
            lines += [unit, "", *distances.markdown(), ""]
        lines += [*remarks(rows), *(f"- [{number}] {text}" for number, text in enumerate(notes.texts, 1)), ""]
    evaluated = set(found["run"])
    if missing := [run for run in runs if run not in evaluated]:
        lines += ["## Not evaluated", "", *(f"- {code(run.shown)}" for run in missing), ""]
    if damaged := [line for run in runs for line in run.damaged]:
        lines += ["## Damaged", "", *(f"- {WARNING} {' '.join(line.split())}" for line in damaged), ""]
    return "\n".join(lines).rstrip() + "\n"


# --- README.md and docs/results.md ---------------------------------------------------------------------------------


def ours(found: pd.DataFrame, key: tuple[str, str], said: published.Accuracies | published.Distances) -> list[Any]:
    """(run, its rows in the table of data set and norm `key`) of each run of ours of a published method."""
    rows = found[(found["images"] == key[0]) & (found["norm"] == key[1])]
    mine = [(run, of_run) for run, of_run in rows.groupby("run", sort=False) if published.is_of(said, run)]
    return sorted(mine, key=lambda one: (len(one[0].name), one[0].name))


def figure(row: pd.Series, column: str, decimals: int) -> str:
    """An accuracy; marked where it is doubted, with the number of images where not all were attacked."""
    part = "" if row["n"] == TEST_IMAGES[row["images"]] else f" (n {row['n']})"
    mark = f"{WARNING} " if column == "robust" and row["doubted"] else ""
    return f"{mark}{row[column]:.{decimals}f}{part}"


def at(rows: pd.DataFrame, attack: str, eps: float, decimals: int) -> str:
    """The accuracy under an attack at one radius."""
    hit = rows[(rows["attack"] == attack) & np.isclose(rows["eps"], eps, atol=1e-6)]
    return NOT_RUN if hit.empty else figure(hit.iloc[0], "robust", decimals)


def clean(rows: pd.DataFrame, attack: str, decimals: int) -> str:
    """On clean images, as many as this attack saw at most."""
    seen = rows[rows["attack"] == attack].sort_values("n")
    return NOT_RUN if seen.empty else figure(seen.iloc[-1], "clean", decimals)


def _said(attack: str) -> list[tuple[tuple[str, str], published.Accuracies]]:
    return [(key, said) for key, of_key in published.ACCURACIES.items() for said in of_key if said.attack == attack]


def released(found: pd.DataFrame) -> list[str]:
    """The authors' released networks, *published / ours*; a line for each run of ours."""
    lines = []
    for key, said in _said(published.PGD):
        (eps,) = said.robust
        place = f"{title(key[0])} {NORMS[key[1]]}"
        theirs = [f"{value:.2f}" for value in (said.clean, said.robust[eps], said.autoattack or 0.0)]
        made = [
            (
                f"{place}: {run.words_and_settings}, {code(run.name)}",
                [clean(rows, "pgd", 2), at(rows, "pgd", eps, 2), at(rows, "autoattack", eps, 2)],
                run,
            )
            for run, rows in ours(found, key, said)
        ]
        for label, figures, run in made or [(f"{place}: {published.name(said, *key)}", [NOT_RUN] * 3, None)]:
            both = [f"{a} / {b}" for a, b in zip(theirs, figures, strict=True)]
            script = "fast" if run and run.config.recipe == "fast" else "training"
            lines.append([label, eps_text(eps, *key), *both, f"`scripts/run_{key[0]}_{script}.sh`"])
    return Table(["run", "ε", "clean", "PGD", "AutoAttack", "our command"], lines).markdown()


def by_eps(found: pd.DataFrame) -> list[str]:
    """Strongest of white-box and transferred PGD by radius, a table for each data set."""
    pages: list[str] = []
    for key in dict.fromkeys(key for key, _ in _said(published.STRONGEST)):
        said = [one for other, one in _said(published.STRONGEST) if other == key]
        radii, lines = sorted({eps for one in said for eps in one.robust}), []
        for one in said:
            name = published.name(one, *key)
            theirs = [f"{one.robust[eps]:.1f}" if eps in one.robust else NONE for eps in radii]
            lines.append([f"{name}, published", f"{one.clean:.1f}", *theirs])
            mine = [line for run, rows in ours(found, key, one) for line in _by_eps_lines(run, rows, radii)]
            lines += mine or [[f"{name.partition(' (')[0]}, ours", NOT_RUN, *[NONE] * len(radii)]]
        pages += [
            *Table(
                [f"{title(key[0])} {NORMS[key[1]]}", "clean", *(eps_text(e, *key) for e in radii)], lines
            ).markdown(),
            "",
        ]
    return pages[:-1]


def _by_eps_lines(run: Run, rows: pd.DataFrame, radii: Sequence[float]) -> list[list[str]]:
    """White-box and transferred PGD together; white-box alone if that is all there is, or is of more images."""
    n = rows.groupby("attack")["n"].max()
    used = [("transfer", "")] if "transfer" in n else []
    used += [("pgd", ", white-box only")] if "pgd" in n and n["pgd"] > n.get("transfer", 0) else []
    cells = [(only, attack, [at(rows, attack, eps, 1) for eps in radii]) for attack, only in used]
    return [
        [
            f"{run.words_and_settings}, ours, {code(run.name)}{only}",
            clean(rows, attack, 1),
            *(NONE if t == NOT_RUN else t for t in texts),
        ]
        for only, attack, texts in cells
    ]


def distances(found: pd.DataFrame) -> list[str]:
    """Smallest distances, published by Carlini-Wagner and ours, a table for each data set."""
    pages: list[str] = []
    for key, of_key in published.DISTANCES.items():
        lines = []
        for said in of_key:
            name = published.name(said, *key)
            figures = [f"{value:.2f}" for value in (said.mean, *said.quartiles)]
            lines.append([f"{name}, published", f"{said.clean:.1f}", *figures])
            lines += [
                line for run, rows in ours(found, key, said) if run.norm == key[1] and (line := _nearest(run, rows))
            ]
        pages += [
            *Table([f"{title(key[0])} {NORMS[key[1]]}", "clean", "mean", "25 %", "median", "75 %"], lines).markdown(),
            "",
        ]
    return pages[:-1]


def _nearest(run: Run, rows: pd.DataFrame) -> list[str] | None:
    """Of each image the nearest that the attacks found; None if there was none."""
    stored = [row for attack in SEARCHES for row in rows[rows["attack"] == attack]["row"]]
    if not stored:
        return None
    most = max(stored, key=lambda row: row["n"])
    columns = ([FAR if d is None else d for d in row["distances"]] for row in stored)
    best = [min(of_image) for of_image in itertools.zip_longest(*columns, fillvalue=FAR)]
    values = [np.mean(best), *np.quantile(best, (0.25, 0.5, 0.75))]
    names = ", ".join(f"{ATTACKS[row['attack']]} n {row['n']}" for row in stored)
    figures = [f"{value:.2f}" if value < FAR / len(best) else NONE for value in values]
    return [f"{run.words_and_settings}, ours, {code(run.name)}, {names}", f"{100 * most['clean_acc']:.1f}", *figures]


BLOCKS: dict[str, Callable[[pd.DataFrame], list[str]]] = {
    "results": released,
    "by-eps": by_eps,
    "distances": distances,
}


def filled(text: str, runs: Sequence[Run]) -> str:
    """A page with every marked table made anew."""
    found = frame(runs)
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin in text:
            lines = "".join(f"{line}\n" for line in make(found))
            text = (begin + lines + end).join(re.split(f"{begin}.*?{end}", text, flags=re.DOTALL))
    return text


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the tables. Returns the exit status."""
    parser = Parser(description="Markdown tables of the evaluations in run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: all in trained_models/)")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument(
        "--fill", action="store_true", help="write the tables in README.md and docs/, between their markers"
    )
    given = parser.parse(argv)
    if given["fill"] and given["out"]:
        raise UserError("--out: --fill writes README.md and pages of docs/: leave one out")
    runs = read_runs([Path(run) for run in given["runs"] or sorted((ROOT / "trained_models").iterdir())])
    for line in [line for run in runs for line in run.damaged]:
        print(f"warning: {' '.join(line.split())}", file=sys.stderr)
    if not given["fill"]:
        return show_or_write(make_page(runs), given["out"])
    for path in (ROOT / page for page in PAGES):
        try:
            write_atomically(path, filled(path.read_text(), runs).encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): make it writable") from None
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
