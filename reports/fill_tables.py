"""Write the tables of published figures beside ours into README.md and docs/results.md, between their markers.

python reports/fill_tables.py [RUN ...]     run folders, by default all in trained_models/
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, exits_on_user_error
from evaluations.minimum_norm import summary
from flags import Parser
from reports import published
from reports.accuracy_rows import row_at
from reports.figures import eps_key, strongest
from reports.results import ATTACKS, NONE, NORMS, TEST_IMAGES, WARNING, Run, eps_text, read_run, table_key, title
from utils import write_atomically

PAGES = ("README.md", "docs/results.md")
NOT_RUN = "not run yet"
NEAREST = ("cw", "ddn", "fmn")
Key = tuple[str, str]  # data set and norm


class Ours(NamedTuple):
    """A run of ours of a published method, with its evaluations in the table's norm by attack."""

    run: Run
    found: dict[str, dict[str, Any]]

    @property
    def label(self) -> str:
        """What it is called beside the published one; in what it falls short."""
        rest = self.run.name["rest"] if self.run.name else None
        name = f"ours, `{self.run.folder.name}`" if rest else "ours"
        return name + (f" ({self.run.partial})" if self.run.partial else "")

    def clean(self, evaluation: dict[str, Any] | None, decimals: int = 2) -> str:
        return NOT_RUN if evaluation is None else self._percent(evaluation, evaluation, "clean_acc", decimals)

    def robust(self, evaluation: dict[str, Any] | None, eps: float, decimals: int = 2) -> str:
        row = None if evaluation is None else row_at(evaluation, eps_key(eps))
        return NOT_RUN if evaluation is None or row is None else self._percent(evaluation, row, "robust_acc", decimals)

    def _percent(self, evaluation: dict[str, Any], row: dict[str, Any], name: str, decimals: int) -> str:
        """An accuracy; marked where it is doubted, with the number of images where not all were attacked."""
        mark = f"{WARNING} " if self.run.doubts(evaluation) else ""
        part = f" (n {row['n']})" if row["n"] != TEST_IMAGES[evaluation["dataset"]] else ""
        return f"{mark}{100 * row[name]:.{decimals}f}{part}"


def ours(runs: Sequence[Run], key: Key, method: str) -> list[Ours]:
    """The evaluated runs of this method (TRADES at any radius), shortest name first."""
    found = []
    for run in runs:
        evaluations = {e["attack"]: e for e in run.evaluations if table_key(run, e) == key}
        if run.name and evaluations and method in (run.name["method"], run.name["method"].split("-")[0]):
            found.append(Ours(run, evaluations))
    return sorted(found, key=lambda one: (len(one.run.folder.name), one.run.folder.name))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


# --- the tables ----------------------------------------------------------------------------------------------------


def released(runs: Sequence[Run]) -> list[str]:
    """The authors' released networks, *published / ours*; a row for each run of ours."""
    rows = []
    for (dataset, norm), said in _said(published.PGD):
        (eps,) = said.robust
        label = f"{title(dataset)} {NORMS[norm]} {said.method}"
        theirs = [f"{value:.2f}" for value in (said.clean, said.robust[eps], said.autoattack or 0.0)]
        made = [
            (label + one.label.removeprefix("ours"), _figures(one, eps))
            for one in ours(runs, (dataset, norm), said.method)
        ]
        for name, figures in made or [(label, [NOT_RUN] * 3)]:
            both = [f"{a} / {b}" for a, b in zip(theirs, figures, strict=True)]
            script = "fast" if "-fast" in name else "training"
            rows.append([name, eps_text(eps, dataset, norm), *both, f"`scripts/run_{dataset}_{script}.sh`"])
    return table(["run", "ε", "clean", "PGD", "AutoAttack", "our command"], rows)


def _figures(one: Ours, eps: float) -> list[str]:
    """Clean, PGD, AutoAttack."""
    pgd, autoattack = one.found.get("pgd"), one.found.get("autoattack")
    return [one.clean(pgd), one.robust(pgd, eps), one.robust(autoattack, eps)]


def by_eps(runs: Sequence[Run]) -> list[str]:
    """Strongest of white-box and transferred PGD by radius, a table for each data set."""
    lines: list[str] = []
    for key in dict.fromkeys(key for key, _ in _said(published.STRONGEST)):
        said = [row for other, row in _said(published.STRONGEST) if other == key]
        radii = sorted({eps_key(eps) for row in said for eps in row.robust})
        rows = []
        for row in said:
            of = f" ({row.of})" if row.of else ""
            values = {eps_key(eps): f"{value:.1f}" for eps, value in row.robust.items()}
            rows.append([f"{row.method}{of}, published", f"{row.clean:.1f}", *(values.get(e, NONE) for e in radii)])
            rows += [made for one in ours(runs, key, row.method) for made in _by_eps_rows(one, row.method, radii)] or [
                [f"{row.method}, ours", NOT_RUN, *[NONE] * len(radii)]
            ]
        header = [f"{title(key[0])} {NORMS[key[1]]}", "clean", *(eps_text(eps, *key) for eps in radii)]
        lines += [*table(header, rows), ""]
    return lines[:-1]


def _by_eps_rows(one: Ours, method: str, radii: Sequence[float]) -> list[list[str]]:
    """White-box and transferred PGD together; white-box alone if that is all there is, or is of more images."""
    pgd, transfer = one.found.get("pgd"), one.found.get("transfer")
    used = [("", strongest(transfer, pgd))] if transfer else []
    if pgd and (transfer is None or pgd["n"] > transfer["n"]):
        used.append((", white-box only", pgd))
    return [
        [f"{method}, {one.label}{only}", one.clean(found, 1)]
        + [text if (text := one.robust(found, eps, 1)) != NOT_RUN else NONE for eps in radii]
        for only, found in used
    ] or [[f"{method}, {one.label}", NOT_RUN, *[NONE] * len(radii)]]


def distances(runs: Sequence[Run]) -> list[str]:
    """Smallest distances, published by Carlini-Wagner and ours, a table for each data set."""
    lines: list[str] = []
    for (dataset, norm), methods in published.DISTANCES.items():
        rows = []
        for method, said in methods.items():
            figures = [f"{value:.2f}" for value in (said.mean, *said.quartiles)]
            rows.append([f"{method}, published", f"{said.clean:.1f}", *figures])
            for one in ours(runs, (dataset, norm), method):
                if one.run.name and one.run.name["method"] == method and (row := _distance_row(one, method)):
                    rows.append(row)
        lines += [*table([f"{title(dataset)} {NORMS[norm]}", "clean", "mean", "25 %", "median", "75 %"], rows), ""]
    return lines[:-1]


def _distance_row(one: Ours, method: str) -> list[str] | None:
    """Of each image the nearest that the attacks found; None if there was none."""
    found = {name: one.found[name] for name in NEAREST if (one.found.get(name) or {}).get("distances")}
    if not found:
        return None
    most = max(found.values(), key=lambda evaluation: evaluation["n"])
    columns = ([math.inf if d is None else d for d in e["distances"]] for e in found.values())
    best = summary([min(of_image) for of_image in itertools.zip_longest(*columns, fillvalue=math.inf)])
    values = [NONE if value is None else f"{value:.2f}" for value in (best["mean"], *best["quartiles"])]
    names = ", ".join(f"{ATTACKS[name]} n {evaluation['n']}" for name, evaluation in found.items())
    return [f"{method}, {one.label}, {names}", f"{100 * most['clean_acc']:.1f}", *values]


def _said(attack: str) -> list[tuple[Key, published.Accuracies]]:
    rows = [(key, row) for key, rows in published.ACCURACIES.items() for row in rows if row.attack == attack]
    return sorted(rows, key=lambda entry: (entry[0][0] != "mnist", entry[0][1] != "Linf"))


# --- the pages -----------------------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[Sequence[Run]], list[str]]] = {
    "results": released,
    "by-eps": by_eps,
    "distances": distances,
}


def filled(text: str, runs: Sequence[Run]) -> str:
    """The page with every marked table made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        lines = "".join(f"{line}\n" for line in make(runs))
        pieces = re.split(f"{begin}.*?{end}", text, flags=re.DOTALL)
        text = (begin + lines + end).join(pieces)
    return text


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages. Returns the exit status."""
    parser = Parser(description="Fill the tables in README.md and docs/results.md.", allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: all in trained_models/)")
    given = parser.parse(argv).get("runs")
    folders = [Path(run) for run in given or sorted((ROOT / "trained_models").iterdir())]
    runs = [read_run(folder) for folder in folders if given or folder.is_dir()]
    for page in PAGES:
        path = ROOT / page
        try:
            write_atomically(path, filled(path.read_text(), runs).encode())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): make it writable") from None
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
