"""Markdown tables of every evaluation in some run folders, in the paper's form, with the published figures beside ours.

python reports/make_tables.py trained_models/* [--eps 0.25 ...] [--out FILE]
python reports/make_tables.py --fill [RUN ...]   the tables in README.md and docs/, between their markers

One table for each data set and norm of the attack. Runs that differ in their seed alone are one line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from errors import UserError, exits_on_user_error
from evaluations.flags import SEARCHES
from flags import Parser, number
from reports import published
from reports.runs import (
    ATTACKS,
    NORMS,
    TEST_IMAGES,
    Rows,
    Run,
    eps_text,
    frame,
    nearest_known,
    read_runs,
    spread,
    title,
)
from reports.tables import (
    ACCURACIES,
    NONE,
    WARNING,
    Table,
    accuracy_table,
    by_method,
    code,
    cost_cells,
    distance_table,
    remarks,
    show_or_write,
)
from utils import write_atomically

PAGES = ("README.md", "docs/results.md", "docs/experiments.md")
NOT_RUN = "not run yet"
FAR = 1e30  # stands for a distance that was not found; a mean or quartile with one in it is far, too
Key = tuple[str, str]  # data set and norm


def make_page(runs: Sequence[Run], radii: Sequence[float] = ()) -> str:
    """The Markdown of all tables; radii: further ones to show, from smallest distances."""
    found = frame(runs)
    lines = []
    for (images, norm), rows in found.groupby(["images", "norm"]):
        notes: list[str] = []
        distance = f"Smallest {NORMS[norm]} distance found (images in [0, 1]; 0 for a misclassified one)."
        lines += [f"## {title(images)}, {NORMS[norm]}", ""]
        for said, table in ((ACCURACIES, accuracy_table(rows, notes, radii)), (distance, distance_table(rows, notes))):
            lines += [said, "", *table.markdown(), ""] if table.lines else []
        below = [*remarks(rows), *(f"[{number}] {text}" for number, text in enumerate(notes, 1))]
        lines += [*(f"- {line}" for line in below), ""]
    evaluated = set(found["run"])
    if missing := [run for run in runs if run not in evaluated]:
        lines += ["## Not evaluated", "", *(f"- {code(run.shown)}" for run in missing), ""]
    if damaged := [line for run in runs for line in run.damaged]:
        lines += ["## Damaged", "", *(f"- {WARNING} {' '.join(line.split())}" for line in damaged), ""]
    return "\n".join(lines).rstrip() + "\n"


# --- README.md and docs/results.md ---------------------------------------------------------------------------------


def ours(found: Rows, key: Key, said: published.Accuracies | published.Distances) -> list[tuple[Run, Rows]]:
    """Each run of ours of a published method, with its rows in the table of data set and norm `key`."""
    rows = found[(found["images"] == key[0]) & (found["norm"] == key[1])]
    mine = [(run, of_run) for run, of_run in rows.groupby("run", sort=False) if published.is_of(said, run)]
    return sorted(mine, key=lambda one: (len(one[0].name), one[0].name))


def place(key: Key) -> str:
    """`MNIST ℓ∞`."""
    return f"{title(key[0])} {NORMS[key[1]]}"


def named(run: Run) -> str:
    """`MMA, d_max 0.45, recipe fast, ours`, and its folder."""
    settings = (f"{name} {value}" for name, value in run.settings.items())
    return ", ".join([run.words, *settings, "ours", code(run.name)])


def accuracy(rows: Rows, attack: str, eps: float | None, decimals: int = 2, missing: str = NOT_RUN) -> str:
    """The mean over seeds on the first images that all were attacked on, robust at eps or clean, with their number where it
    is not all; marked where doubted. decimals: of one seed; several have one."""
    seen = rows[(rows["attack"] == attack) & (eps is None or rows["eps"] == round(eps or 0, 6))]
    if seen.empty or seen["run"].nunique() < rows["run"].nunique():
        return missing
    n = seen.groupby("run", sort=False)["n"].max().min()
    each = seen[seen["n"] >= n]  # of clean images a row has no flags, so the nearest number counts
    each = (each.sort_values("n", kind="stable") if eps is None else each).drop_duplicates("run")
    shares = [row["clean_acc"] if eps is None else row["flags"][:n].count("1") / n for row in each["row"]]
    counts = ", ".join(map(str, sorted(set(each["n"])) if eps is None else [n]))
    part = "" if counts == str(TEST_IMAGES[each["images"].iloc[0]]) else f" (n {counts})"
    warning = f"{WARNING} " if eps is not None and each["doubted"].any() else ""
    return warning + spread([100 * share for share in shares], decimals if len(shares) == 1 else 1) + part


def released(found: Rows) -> list[Table]:
    """The authors' released networks, *published / ours*: of our settings those with most seeds."""
    lines = []
    for key, said in ((key, said) for key, of_key in published.ACCURACIES.items() for said in of_key):
        if said.autoattack is None:
            continue
        ((eps, pgd),) = said.robust.items()
        mine = [row for _, rows in ours(found, key, said) for row in rows.index]
        alike = by_method(found.loc[mine])
        name, runs, rows = max(alike, key=lambda one: len(one[1]), default=(published.name(said, *key), [], found[:0]))
        figures = [(said.clean, "pgd", None), (pgd, "pgd", eps), (said.autoattack, "autoattack", eps)]
        cells = [f"{theirs:.2f} / {accuracy(rows, attack, at)}" for theirs, attack, at in figures]
        script = f"`scripts/run_{key[0]}_{'fast' if runs and runs[0].trained.recipe == 'fast' else 'training'}.sh`"
        lines.append([f"{place(key)}: {name}", eps_text(eps, *key), *cells, *cost_cells(runs).values(), script])
    header = ["network", "ε", "clean", "PGD", "AutoAttack", "million passes", "minutes of one core", "our command"]
    return [Table(header, lines)]


def by_eps(found: Rows) -> list[Table]:
    """Strongest of white-box and transferred PGD by radius, a table for each data set; white-box PGD alone if that is all
    there is of a run, or is of more images."""
    tables = []
    for key, of_key in published.ACCURACIES.items():
        strongest = [said for said in of_key if said.autoattack is None]
        radii, lines = sorted({eps for said in strongest for eps in said.robust}), []
        for said in strongest:
            name = published.name(said, *key)
            theirs = [f"{said.robust[eps]:.1f}" if eps in said.robust else NONE for eps in radii]
            lines.append([f"{name}, published", f"{said.clean:.1f}", *theirs])
            used = []
            for run, rows in ours(found, key, said):
                n = rows.groupby("attack")["n"].max()
                used += [(run, rows, "transfer")] if "transfer" in n else []
                used += [(run, rows, "pgd")] if n.get("pgd", 0) > n.get("transfer", 0) else []
            for run, rows, attack in used:
                label = named(run) + ", white-box only" * (attack == "pgd")
                figures = [accuracy(rows, attack, eps, 1, NONE) for eps in radii]
                lines.append([label, accuracy(rows, attack, None, 1), *figures])
            if not used:
                lines.append([f"{name.partition(' (')[0]}, ours", NOT_RUN, *[NONE] * len(radii)])
        tables += [Table([place(key), "clean", *(eps_text(eps, *key) for eps in radii)], lines)] if lines else []
    return tables


def distances(found: Rows) -> list[Table]:
    """Smallest distances, published by Carlini-Wagner and ours, of each image the nearest that is known (`nearest_known`); a
    table for each data set."""
    tables = []
    for key, of_key in published.DISTANCES.items():
        lines = []
        for said in of_key:
            figures = [f"{value:.2f}" for value in (said.mean, *said.quartiles)]
            lines.append([f"{published.name(said, *key)}, published", f"{said.clean:.1f}", *figures])
            for run, of_run in ours(found, key, said):
                rows = list(of_run[of_run["attack"].isin(SEARCHES)]["row"])
                if not rows or run.norm != key[1]:
                    continue
                most = max(rows, key=lambda row: row["n"])
                best = [min(far, FAR) for far in nearest_known(of_run)]
                values = [np.mean(best), *np.quantile(best, (0.25, 0.5, 0.75))]
                names = ", ".join(f"{ATTACKS[row['attack']]} n {row['n']}" for row in rows)
                figures = [f"{value:.2f}" if value < FAR / len(best) else NONE for value in values]
                lines.append([f"{named(run)}, {names}", f"{100 * most['clean_acc']:.1f}", *figures])
        tables.append(Table([place(key), "clean", "mean", "25 %", "median", "75 %"], lines))
    return tables


BLOCKS = {"results": released, "by-eps": by_eps, "distances": distances}


def filled(text: str, runs: Sequence[Run]) -> str:
    """A page with every marked table made anew."""
    found = frame(runs)
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin in text:
            lines = "\n\n".join("\n".join(table.markdown()) for table in make(found)) + "\n"
            text = (begin + lines + end).join(re.split(f"{begin}.*?{end}", text, flags=re.DOTALL))
    return text


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the tables. Returns the exit status."""
    parser = Parser(description="Markdown tables of the evaluations in run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: all in trained_models/)")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    asked = "further radii, as 0.25 or 8/255, at which smallest distances say who stands"
    parser.add_argument("--eps", nargs="+", type=number, default=(), metavar="EPS", help=asked)
    fills = "write the tables in README.md and docs/, between their markers"
    parser.add_argument("--fill", action="store_true", help=fills)
    given = parser.parse(argv)
    if given["fill"] and given["out"]:
        raise UserError("--out: --fill writes README.md and pages of docs/: leave one out")
    for eps in given["eps"]:
        if eps <= 0 or given["fill"]:
            raise UserError(f"--eps {eps:g}: a radius above 0, as 0.25 or 8/255, and without --fill")
    runs = read_runs([Path(run) for run in given["runs"] or sorted((ROOT / "trained_models").iterdir())])
    for line in [line for run in runs for line in run.damaged]:
        print(f"warning: {' '.join(line.split())}", file=sys.stderr)
    if not given["fill"]:
        return show_or_write(make_page(runs, [round(eps, 6) for eps in given["eps"]]), given["out"])
    for path in (ROOT / page for page in PAGES):
        write_atomically(path, filled(path.read_text(encoding="utf-8"), runs).encode())
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
