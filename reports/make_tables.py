"""Markdown tables of every evaluation in some run folders, in the paper's form, with the published figures beside ours.

python reports/make_tables.py trained_models/* [--out FILE]

One table for each data set and norm of the attack. Runs that differ in their seed alone are one row: mean ± standard
deviation. AvgAcc is the mean over clean and all eps, AvgRobAcc over all eps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, exits_on_user_error
from evaluations.compare_attacks import GRADIENT_FREE, gaps, stronger
from flags import Parser
from reports.groups import Group
from reports.results import ATTACKS, NORMS, UNIMPORTANT, WARNING, Run, eps_text, read_run, table_key, title
from reports.tables import Footnotes, accuracy_table, distance_table, short, show_or_write


def warnings(group: Group) -> list[str]:
    """Why figures of this row are not to be trusted, a line each."""
    return [
        f"- {WARNING} {group.label}: `{run.shown}/{e['file']}`: {why}"
        for run in group.runs
        for e in group.of(run)
        for why in run.doubts(e)
    ]


def other_attacks(group: Group) -> list[str]:
    """What the other attacks on a network say of its PGD figure, a line each; a warning where they should be weaker."""
    lines = []
    for run, pgd in group.found("pgd"):
        where, dataset = f"{group.label}: `{run.shown}`", pgd["dataset"]
        same = [e for e in group.of(run) if e.get("model_sha256") == pgd.get("model_sha256")]
        rows = {attack: [] for attack in ATTACKS} | {e["attack"]: e.get("results", [e]) for e in same}
        for gap in stronger(dataset, rows["pgd"], rows.__getitem__):
            lines.append(f"- {where}: {gap.text(eps_text(gap.eps, dataset, pgd['norm']))}")
        for attack in GRADIENT_FREE:
            for gap in gaps(attack, dataset, rows["pgd"], rows[attack]):
                if gap.beyond_chance:
                    text = gap.text(eps_text(gap.eps, dataset, pgd["norm"]))
                    lines.append(f"- {WARNING} {where}: masked gradients: {text}")
    return lines


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


def make_page(folders: Sequence[Path]) -> tuple[str, list[str]]:
    """The Markdown, and a line for each file that cannot be read.

    :raises UserError: if a folder is not there, or all are files.
    """
    if not any(
        folder.is_dir() or not folder.exists() for folder in folders
    ):  # files beside folders, as of a *, are left out
        raise UserError(f"run folder {folders[0]}: is a file: name folders that train.py made")
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
    others = [line for group in groups for line in other_attacks(group)]
    return [f"## {title(dataset)}, {NORMS[norm]}", "", *tables, *loud, *quiet, *others, *notes.lines(), ""]


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
    return show_or_write(page, given["out"])


if __name__ == "__main__":
    sys.exit(main())
