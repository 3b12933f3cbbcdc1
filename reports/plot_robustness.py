"""Draw accuracy under repeated PGD against eps for several runs, with the 95 % interval as error bars.

python reports/plot_robustness.py RUN RUN ... [--norm L2] [--out PATH]

Reads each run's eval_pgd_<norm>.json; writes PATH.png and PATH.pdf.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from errors import UserError, exits_on_user_error
from flags import Parser
from reports.plotting import common, labels, save, style
from reports.results import NORMS, Run, in_255ths, read_run, table_key, title


def evaluation(run: Run, norm: str | None) -> dict[str, Any]:
    """Its PGD evaluation under `norm`, by default that of its training.

    :raises UserError: if there is none.
    """
    norm = norm or run.norm
    found = [e for e in run.evaluations if e["attack"] == "pgd" and norm in (None, e["norm"])]
    if not found:
        file = f"eval_pgd_{norm or '*'}.json"
        why = "; ".join(run.damaged) or "not there"
        raise UserError(f"{run.folder / file}: {why}: run evaluate_on_pgd_attacks.py --model {run.folder}")
    return found[0]


def curve(evaluation: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """(eps, accuracy, low, high) from the clean images on, accuracies in per cent."""
    points = [(0.0, evaluation["clean_acc"], evaluation.get("clean_ci95"))]
    points += sorted((row["eps"], row["robust_acc"], row.get("ci95")) for row in evaluation["results"])
    return [
        (eps, *(100 * v for v in (accuracy, *(interval or (accuracy, accuracy))))) for eps, accuracy, interval in points
    ]


def images(evaluation: dict[str, Any]) -> str:
    """How many test images were attacked: `1000`, or `1000, 10000` where that differs by radius."""
    return ", ".join(map(str, sorted({row.get("n", evaluation["n"]) for row in evaluation["results"]})))


def draw(runs: Sequence[Run], norm: str | None) -> tuple[Figure, str]:
    """The picture, and what to call it.

    :raises UserError: if a run has no such evaluation, or they do not go together.
    """
    found = {run: evaluation(run, norm) for run in runs}
    dataset = common("data set", {run.folder: table_key(run, e)[0] for run, e in found.items()})
    norm = common("norm", {run.folder: e["norm"] for run, e in found.items()})
    scale = 255 if in_255ths(dataset, norm) else 1
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    names = labels([run.folder for run in runs])
    widest = max(row["eps"] for e in found.values() for row in e["results"])
    for number, ((run, e), name) in enumerate(zip(found.items(), names, strict=True)):
        eps, accuracy, low, high = zip(*curve(e), strict=True)
        doubted = "".join("\n" + textwrap.fill(f"⚠ {doubt}", 48) for doubt in run.doubts(e))
        errors = np.maximum([np.subtract(accuracy, low), np.subtract(high, accuracy)], 0)
        # Sideways by up to a hundredth of the axis, so that no bar hides another.
        aside = 0.02 * widest * (number - (len(runs) - 1) / 2) / len(runs)
        axes.errorbar(
            [scale * (v + aside) for v in eps],
            accuracy,
            errors,
            capsize=3,
            elinewidth=1,
            linewidth=1.6,
            markersize=5,
            label=f"{name} (n {images(e)}){doubted}",
            **style(number),
        )
    unit = "in 1/255 of the range of pixel values" if scale == 255 else "images in [0, 1]"
    axes.set(
        xlabel=f"ε: {NORMS[norm]} radius of the attack ({unit})",
        ylabel="accuracy [%]",
        ylim=(-3, 103),
        title=f"{title(dataset)}: accuracy under repeated PGD, 95 % intervals",
    )
    axes.grid(alpha=0.3)
    figure.legend(
        loc="outside lower center", fontsize="small", ncols=1 if len(runs) < 5 else 2, handlelength=3, columnspacing=1
    )
    return figure, f"robustness-{dataset}-{norm}".replace(" ", "-")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write. Returns the exit status."""
    parser = Parser(description="Draw accuracy against eps for several runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders with an eval_pgd_<norm>.json")
    parser.add_argument("--norm", choices=list(NORMS), help="norm of the attack (default: the training's)")
    parser.add_argument("--out", metavar="PATH", help="file without .png (default: runs/robustness-<dataset>-<norm>)")
    given = parser.parse(argv)
    figure, name = draw([read_run(Path(run)) for run in given["runs"]], given["norm"])
    print("\n".join(str(path) for path in save(figure, given["out"], name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
