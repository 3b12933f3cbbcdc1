"""Runs against a baseline, on the same images: what each cost, how robust it is, and the paired difference.

python reports/compare_runs.py BASELINE RUN RUN ... [--attack autoattack] [--eps 0.3] [--split val] [--out FILE]

Runs that differ in their seed alone are one row. The difference is over the seeds that a row and the baseline both have, and
its interval over the images: of each image's difference, averaged over those seeds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import SPLITS
from errors import UserError, exits_on_user_error
from evaluations.results import quoted, read_file, same_eps
from flags import Parser, number
from reports.figures import spread
from reports.plotting import read_config
from reports.report_compare import difference_interval
from reports.report_figures import NORMAL, bits
from reports.report_training import Cost, cost, rows_of
from reports.results import NONE, Run, eps_text
from reports.tables import show_or_write, table_lines

Images = tuple[str | None, int]  # a digest of them, and how many
SHORT = {"pgd": "PGD", "autoattack": "AutoAttack"}
EVALUATORS = {"pgd": "evaluate_on_pgd_attacks.py", "autoattack": "evaluate_on_autoattack.py"}


@dataclass(frozen=True)
class Measured:
    """One run, attacked in one way at one radius."""

    cost: Cost
    images: Images
    clean: float
    stands: np.ndarray  # (N,) of 0 and 1: the images that no attack broke


def measured(run: Run, attack: str, eps: float, split: str) -> dict[Images, Measured]:
    """Its evaluations by this attack at this radius, by the images that were attacked, most of them first.

    :raises UserError: if it was not attacked so, or the file is damaged.
    """
    folder, path = run.folder, run.folder / f"eval_{attack}_{run.norm}.json"
    try:
        every = [row for content in read_file(path)[:1] for row in content["results"]]
        counts = sorted({row["n"] for row in every}, reverse=True)
        quotable = [row for n in counts for row in quoted([row for row in every if row["n"] == n], split)]
        rows: list[Any] = [row for row in quotable if same_eps(row.get("eps"), eps) and row.get("flags")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}): delete it and attack the run again") from None
    if not rows:
        radius = eps_text(eps, str(run.config.get("dataset")), str(run.norm))
        command = f"{EVALUATORS[attack]} --model {folder} --eps {radius} --split {split}"
        raise UserError(f"{folder}: not attacked at {radius} on {split} images: run {command}")
    spent = cost(run.config, rows_of(folder))
    found = [Measured(spent, (row["images"], row["n"]), float(row["clean_acc"]), bits(row["flags"])) for row in rows]
    return {one.images: one for one in found}


Seeds = dict[str, Measured]


def paired(first: Seeds, second: Seeds) -> tuple[float, float, float, int]:
    """Mean difference first - second, the ends of its 95 % interval, and the number of seeds that both have.

    :raises UserError: if they have none in common, or were attacked on other images.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise UserError("no seed in common with the baseline: train one of its seeds")
    if len({one[seed].images for one in (first, second) for seed in common}) > 1:
        raise UserError("not attacked on the same images: attack all with the same --split and --test_size")
    each = np.mean([first[seed].stands - second[seed].stands for seed in common], axis=0)
    if len(common) == 1:
        return float(each.mean()), *difference_interval(int((each > 0).sum()), int((each < 0).sum()), len(each)), 1
    half = NORMAL * float(each.std(ddof=1)) / math.sqrt(len(each))
    return float(each.mean()), float(each.mean()) - half, float(each.mean()) + half, len(common)


def row(name: str, runs: Seeds, baseline: Seeds) -> list[str]:
    """A line of the table."""
    costs = [run.cost for run in runs.values()]
    passes = [one.passes / 1e6 for one in costs if one.passes is not None]
    minutes = [one.minutes for one in costs if one.minutes is not None]
    cells = [name, str(len(runs)), spread(passes, 2) if passes else NONE, spread(minutes, 0) if minutes else NONE]
    cells += [spread([100 * value for value in values]) for values in zip(*map(accuracies, runs.values()), strict=True)]
    if runs is baseline:
        return [*cells, NONE]
    mean, low, high, seeds = (100 * value if i < 3 else value for i, value in enumerate(paired(runs, baseline)))
    return [*cells, f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" + (f", {seeds:.0f} seeds" if seeds > 1 else "")]


def accuracies(run: Measured) -> tuple[float, float]:
    """Clean and robust."""
    return run.clean, float(run.stands.mean())


def make_table(folders: Sequence[Path], attack: str, eps: float, split: str) -> str:
    """The Markdown; the first folder's group is the baseline.

    :raises UserError: if a run cannot be compared.
    """
    runs = [Run(folder, read_config(folder), [], []) for folder in folders]
    found = [measured(run, attack, eps, split) for run in runs]
    shared = [images for images in found[0] if all(images in one for one in found)]
    groups: dict[str, Seeds] = {}
    for run, one in zip(runs, found, strict=True):
        groups.setdefault(run.name_without_seed, {})[run.seed] = one[shared[0]] if shared else next(iter(one.values()))
    baseline = next(iter(groups.values()))
    radius = eps_text(eps, str(runs[0].config.get("dataset")), str(runs[0].norm))
    header = ["run", "seeds", "passes [M]", "minutes", "clean", f"{SHORT[attack]} at {radius}", "against the first"]
    n = baseline[next(iter(baseline))].images[1]
    lines = table_lines(header, [row(name, seeds, baseline) for name, seeds in groups.items()])
    return "\n".join([f"{n} {SPLITS[split]} images, accuracy in %:", "", *lines]) + "\n"


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the table. Returns the exit status."""
    parser = Parser(description="Runs against a baseline, image by image.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first one's method is the baseline")
    parser.add_argument("--attack", choices=EVALUATORS, default="pgd", help="by which attack (default: pgd)")
    parser.add_argument("--eps", type=number, default=0.3, help="radius of the attack (default: 0.3)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="images that were attacked (default: test)")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    given = parser.parse(argv)
    folders = [Path(run) for run in given["runs"]]
    return show_or_write(make_table(folders, given["attack"], given["eps"], given["split"]), given["out"])


if __name__ == "__main__":
    sys.exit(main())
