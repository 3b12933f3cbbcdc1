"""The lines of an accuracy table, as text: ours by attack, and the published ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from evaluations.results import EFFORTS, effort, is_standard, way
from reports import published
from reports.figures import averages, eps_key, strongest
from reports.groups import Group
from reports.results import ATTACKS, NONE, TEST_IMAGES, WARNING, Run, eps_text


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

    apart = {eps: apart_from_line(found, eps) for eps in radii}
    robust = {eps: cell(partial(accuracy_at, eps=eps)) + apart[eps] for eps in radii}
    title = ATTACKS.get(attack, attack) if all_standard(found) else f"not standard {ATTACKS[attack]}"
    same_radii = all(len(e["results"]) == len(radii) for _, e in found) and not any(apart.values())
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


def rows_of(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Its figures by radius, each with its number of images and its settings."""
    shared = {"n": evaluation["n"], "settings": evaluation.get("settings") or {}}
    return [{**shared, **row} for row in evaluation["results"]]


def row_at(evaluation: dict[str, Any], eps: float) -> dict[str, Any] | None:
    """Its figures at one radius."""
    return next((row for row in rows_of(evaluation) if eps_key(row["eps"]) == eps), None)


def lead(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The row that the line speaks of: of most images, and attacked hardest."""
    return max(rows_of(evaluation), key=lambda row: (row["n"], effort(row)))


def accuracy_at(evaluation: dict[str, Any], eps: float) -> float | None:
    row = row_at(evaluation, eps)
    return None if row is None else row["robust_acc"]


def apart_from_line(found: Sequence[tuple[Run, dict[str, Any]]], eps: float) -> str:
    """` (n 1000, nb_iter 40)` where this radius was attacked on other images, or in another way, than the line says."""
    pairs = [(lead(e), row) for _, e in found if (row := row_at(e, eps))]
    counts = sorted({row["n"] for line, row in pairs if row["n"] != line["n"]})
    said = [f"n {', '.join(map(str, counts))}"] if counts else []
    for line, row in pairs:
        usual, own = way(line), way(row)
        said += [
            f"{name} {row['settings'].get(name)}" for name in (*EFFORTS, "eps_iter") if own.get(name) != usual.get(name)
        ]
        said += ["not standard"] if is_standard(line) and not is_standard(row) else []
    return f" ({', '.join(dict.fromkeys(said))})" if said else ""


def autoattack_cell(group: Group, n: str) -> str:
    """`41.4 at 8/255`, for each eps; with its n where that is not PGD's, and said if it is not the standard ensemble."""
    found = group.found("autoattack")
    if not found:
        return NONE
    row = accuracy_row(group, "autoattack", found)
    text = "; ".join(
        f"{accuracy} at {eps_text(eps, group.dataset, group.norm)}" for eps, accuracy in row.robust.items()
    )
    remarks = ([] if row.n == n else [f"n {row.n}"]) + ([] if all_standard(found) else ["not standard AutoAttack"])
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def all_standard(found: Sequence[tuple[Run, dict[str, Any]]]) -> bool:
    """Whether AutoAttack was run as its authors define it, at one radius at least; the others are marked."""
    return all(is_standard(lead(e)) for _, e in found)


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
