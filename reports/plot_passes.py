"""Draw robust accuracy on validation images against the passes spent so far, for several runs, with 95 % bands.

python reports/plot_passes.py RUN RUN ... [--out PATH]

Reads each run's metrics.jsonl: the checks, and the passes that training had counted by then; writes PATH.png and PATH.pdf. A
pass is one image once through the network, forward or forward and backward.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from errors import UserError, exits_on_user_error
from evaluations.results import wilson
from reports.plotting import common, common_images, labels, picture_command, read_config, style
from reports.report_training import curves, rows_of
from reports.results import NORMS, eps_text, title


def checked_images(config: dict[str, object]) -> int:
    """How many validation images a check saw at least; 1000 where the config does not say."""
    sizes = [size for size in (config.get("check_size"), config.get("val_size")) if isinstance(size, int) and size > 0]
    return min(sizes, default=1000)


def curve(run: Path, config: dict[str, object]) -> np.ndarray:
    """(4, checks): millions of passes, robust accuracy and the ends of its interval in per cent.

    :raises UserError: if the run has no checks with counted passes.
    """
    found = curves(rows_of(run)).get("val robust_acc", {})
    if not found.get("passes"):
        raise UserError(f"run folder {run}: no check with counted passes in its metrics.jsonl: leave it out")
    if not all(0 <= value <= 1 for value in found["value"]):
        raise UserError(f"run folder {run}: an accuracy in its metrics.jsonl is not between 0 and 1: leave it out")
    passes, robust, n = np.array(found["passes"], float), np.array(found["value"], float), checked_images(config)
    ends = np.array([wilson(round(value * n), n) for value in robust]).T
    return np.stack([passes / 1e6, 100 * robust, *(100 * ends)])


def draw(runs: Sequence[Path]) -> tuple[Figure, str]:
    """The picture, and what to call it.

    :raises UserError: if a run has no such figures, or they do not go together.
    """
    configs = {run: read_config(run) for run in runs}
    dataset = common_images(configs)
    norm = common("norm", {run: str(config.get("norm")) for run, config in configs.items()})
    eps = common("test radius", {run: config.get("test_eps") for run, config in configs.items()})
    radius = eps_text(eps, dataset, norm) if isinstance(eps, int | float) else str(eps)
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for number, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        passes, robust, low, high = curve(run, configs[run])
        look = style(number)
        axes.plot(passes, robust, linewidth=1.6, markersize=5, label=name, **look)
        axes.fill_between(passes, low, high, color=look["color"], alpha=0.12, linewidth=0)
    axes.set(
        xlabel="passes in training [millions], an image once through the network each",
        ylabel=f"accuracy under PGD at ε = {radius} [%]",
        xscale="log",
        ylim=(-3, 103),
        title=f"{title(dataset)}, {NORMS.get(norm, norm)}: robust accuracy on validation images against cost",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize="small", ncols=1 if len(runs) < 5 else 2, handlelength=4)
    return figure, f"passes-{dataset}-{norm}".replace(" ", "-")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write. Returns the exit status."""
    return picture_command(
        argv, "Draw robust accuracy against passes for several runs.", "metrics.jsonl", "passes", draw
    )


if __name__ == "__main__":
    sys.exit(main())
