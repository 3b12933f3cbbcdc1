"""Runs against a baseline, on the same images: what each cost, how robust it is, and the paired difference.

python reports/compare_runs.py BASELINE RUN RUN ... [--attack autoattack] [--eps 0.3] [--split val] [--out FILE]

Runs that differ in their seed alone are one line. The difference is over the seeds that a line and the baseline both have, and
its interval over the images: of each image's difference, averaged over those seeds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from config import SPLITS
from errors import UserError, exits_on_user_error
from evaluations.compare_attacks import NAMES
from evaluations.results import Row, function_of, quoted, same_eps
from flags import Parser, number
from reports.runs import Run, eps_text, labels, read_runs, spread
from reports.tables import Table, cost_cells, show_or_write

NORMAL = 1.959964  # standard deviations on each side of a 95 % interval
EVALUATORS = {
    "pgd": "evaluate_on_pgd_attacks.py",
    "strong": "evaluate_on_pgd_attacks.py --protocol strong",
    "autoattack": "evaluate_on_autoattack.py",
}
Images = tuple[str | None, int]  # a digest of them, where it was stored, and how many
Seeds = dict[int, Row]  # a run's row by its seed


def rows_at(run: Run, attack: str, eps: float, split: str) -> dict[Images, Row]:
    """The rows of this attack at this radius, by the images that were attacked, most of them first.

    :raises UserError: if it was not attacked so.
    """
    every = [row for row in run.evaluations.get(f"eval_{attack}_{run.norm}.json", []) if row["split"] == split]
    at_eps = [row for row in every if same_eps(row["eps"], eps)]
    counts = sorted({row["n"] for row in at_eps}, reverse=True)
    found = [row for n in counts for row in quoted([row for row in at_eps if row["n"] == n], split)]
    if not found:
        why = "; ".join(line for line in run.damaged if attack in line)
        radius = eps_text(eps, run.images, str(run.norm))
        command = f"{EVALUATORS[attack]} --model {run.folder} --eps {radius} --split {split}"
        there = ", ".join(eps_text(other, run.images, str(run.norm)) for other in sorted({row["eps"] for row in every}))
        instead = f" (but at {there}: --eps)" if there else ""
        raise UserError(why or f"{run.folder}: not attacked at {radius} on {split} images{instead}: run {command}")
    by_images = {(row.get("images"), row["n"]): row for row in found}
    if len(by_images) < len(found):
        ways = sorted({function_of(row)[1] or "not given" for row in found})
        said = f"{run.folder}: attacked at {eps_text(eps, run.images, str(run.norm))} as several networks"
        raise UserError(f"{said} (--standardise: {', '.join(ways)}): keep the rows of one of them beside it")
    return by_images


def difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """95 % interval of the paired difference: Wald's after half an image in each of the four cells (Agresti and Min 2005)."""
    b, c, count = only_first + 0.5, only_second + 0.5, n + 2
    middle = (b - c) / count
    half = NORMAL * math.sqrt(b + c - (b - c) ** 2 / count) / count
    return max(middle - half, -1.0), min(middle + half, 1.0)


def paired(first: Seeds, second: Seeds) -> tuple[float, float, float, int]:
    """Mean difference first - second, the ends of its 95 % interval, and the number of seeds that both have.

    :raises UserError: if they have none in common, or were attacked on other images.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise UserError("no seed in common with the baseline: train one of its seeds")
    if len({(one[seed].get("images"), one[seed]["n"]) for one in (first, second) for seed in common}) > 1:
        raise UserError("not attacked on the same images: attack all with the same --split and --test_size")
    # (seeds, images) of 0 and 1: the images that no attack broke.
    stand, baseline = (np.array([[*map(int, one[seed]["flags"])] for seed in common]) for one in (first, second))
    each = (stand - baseline).mean(axis=0)
    mean = float(each.mean())
    if len(common) == 1:
        return mean, *difference_interval(int((each > 0).sum()), int((each < 0).sum()), len(each)), 1
    half = NORMAL * float(each.std(ddof=1)) / math.sqrt(len(each))
    return mean, mean - half, mean + half, len(common)


def make_table(runs: Sequence[Run], attack: str, eps: float | None, split: str) -> str:
    """The Markdown; the first run's seeds are the baseline. eps: None is the test radius of the baseline's training.

    :raises UserError: if a run cannot be compared.
    """
    eps = runs[0].trained.test_eps if eps is None else eps
    for run in runs:
        if (run.images, run.trained.norm) != (runs[0].images, runs[0].norm):
            raise UserError(f"run folder {run.folder}: of another data set or norm than the first: leave it out")
    found = [rows_at(run, attack, eps, split) for run in runs]
    shared = [images for images in found[0] if all(images in one for one in found)]
    groups: dict[str, tuple[list[Run], Seeds]] = {}
    for run, label, one in zip(runs, labels(runs), found, strict=True):
        members, seeds = groups.setdefault(label, ([], {}))
        members.append(run)
        seeds[run.seed] = one[shared[0]] if shared else next(iter(one.values()))
    _, baseline = next(iter(groups.values()))
    at, lines = f"{NAMES[attack]} at {eps_text(eps, runs[0].images, str(runs[0].norm))}", []
    for label, (members, seeds) in groups.items():
        clean = spread([100 * row["clean_acc"] for row in seeds.values()])
        robust = spread([100 * row["robust_acc"] for row in seeds.values()])
        line = {"run": label, "seeds": str(len(seeds)), **cost_cells(members), "clean": clean, at: robust}
        if seeds is not baseline:
            *ends, common = paired(seeds, baseline)
            mean, low, high = (100 * end for end in ends)
            several = f", {common} seeds" if common > 1 else ""
            line["against the first"] = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{several}"
        lines.append(line)
    header = ["run", "seeds", "passes [M]", "minutes", "clean", at, "against the first"]
    n = next(iter(baseline.values()))["n"]
    return "\n".join([f"{n} {SPLITS[split]} images, accuracy in %:", "", *Table.of(header, lines).markdown()]) + "\n"


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the table. Returns the exit status."""
    parser = Parser(description="Runs against a baseline, image by image.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first one's method is the baseline")
    parser.add_argument("--attack", choices=EVALUATORS, default="pgd", help="by which attack (default: pgd)")
    parser.add_argument("--eps", type=number, help="radius of the attack (default: the test radius of the training)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="images that were attacked (default: test)")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    given = parser.parse(argv)
    runs = read_runs([Path(run) for run in given["runs"]])
    return show_or_write(make_table(runs, given["attack"], given["eps"], given["split"]), given["out"])


if __name__ == "__main__":
    sys.exit(main())
