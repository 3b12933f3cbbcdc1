"""Draw the margins of several MMA or OMMA runs: their distribution at the end, and how it moved over training.

python reports/plot_margins.py RUN RUN ... [--out PATH]

Reads each run's margins.npy, the radius that AN-PGD found for each training image; writes PATH.png and PATH.pdf. A run
without margins is left out, and a line says why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from errors import UserError, exits_on_user_error
from records import reading
from records.reading import parse_json
from reports.plotting import HATCHES, common, common_images, labels, picture_command, read_config, style
from reports.results import NORMS, in_255ths, title

BINS = 40


@dataclass(frozen=True)
class Margins:
    """What a run recorded: E checks, one after each epoch; N training images."""

    eps: np.ndarray  # (E, N) in input units; 0 where an image was wrong when last seen, or not seen yet
    epochs: np.ndarray  # (E,) epochs done at each check; the last may be a part of one
    d_max: float


def read_margins(run: Path, config: dict[str, Any]) -> Margins:
    """:raises UserError: if the run has none, or the file is damaged."""
    path = run / "margins.npy"
    recorded = config.get("method", "mma") in ("mma", "omma")
    reason = "this copy of the run is without it" if recorded else "only MMA and OMMA training record margins"
    try:
        eps = reading.read_margins(path).astype(np.float32)
    except FileNotFoundError:
        raise UserError(f"{path}: not there, {reason}: name another run, or train it anew") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): leave this run out") from None
    if not eps.size:
        raise UserError(f"{path}: of shape {eps.shape}, not (checks, training images): leave this run out")
    if not eps.any():
        raise UserError(
            f"{path}: every margin in it is 0, as no image was right when it was trained on: name another run, or train it longer"
        )
    return Margins(eps, epochs_of_checks(run, config, *eps.shape), config.get("hinge_maxeps") or np.nan)


def epochs_of_checks(run: Path, config: dict[str, Any], checks: int, images: int) -> np.ndarray:
    """(checks,) epochs done at each check, from the steps in metrics.jsonl; 1, 2, … where it does not say."""
    path, steps = run / "metrics.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = parse_json(line)
            steps += [int(row["step"])] if row["kind"] == "eval" and row["split"] == "val" else []
        except (ValueError, TypeError, KeyError, OverflowError):  # a half-written last line
            continue
    if len(steps) != checks or not config.get("batch_size"):
        return np.arange(1, checks + 1)
    epochs: np.ndarray = np.array(steps) / -(-images // config["batch_size"])
    return epochs


def draw_end(panels: Sequence[Axes], found: dict[str, Margins], scale: float) -> None:
    """The distribution at the last check, a panel for each run on common axes, with d_max where the hinge begins."""
    top = scale * max(margins.eps[-1].max() for margins in found.values())
    for number, (panel, (name, margins)) in enumerate(zip(panels, found.items(), strict=True)):
        last = scale * margins.eps[-1]
        panel.hist(
            last,
            np.linspace(0, top, BINS + 1).tolist(),
            weights=np.full(len(last), 100 / len(last)),
            color="0.85",
            edgecolor="0.2",
            linewidth=0.6,
            hatch=HATCHES[number % len(HATCHES)],
        )
        panel.axvline(scale * margins.d_max, color="0", linestyle=":", linewidth=1.5)
        panel.set_title(f"{name}: {len(last)} images, median {np.median(last):.3g}", fontsize="small", loc="left")
        panel.set_ylabel("images [%]", fontsize="small")


def draw_training(panel: Axes, found: dict[str, Margins], scale: float) -> None:
    """The median after each epoch, and the band from 10 to 90 % between thin lines."""
    for number, (name, margins) in enumerate(found.items()):
        low, median, high = scale * np.percentile(margins.eps, (10, 50, 90), axis=1)
        look = style(number)
        every = max(1, len(median) // 10)
        panel.plot(margins.epochs, median, linewidth=1.8, markersize=5, markevery=every, label=name, **look)
        panel.fill_between(margins.epochs, low, high, color=look["color"], alpha=0.06, linewidth=0)
        for edge in (low, high):
            panel.plot(margins.epochs, edge, linewidth=0.7, color=look["color"], linestyle=look["linestyle"])


def those_with_margins(configs: dict[Path, dict[str, Any]]) -> dict[Path, Margins]:
    """The runs that have margins; of each other one a line says why it is left out.

    :raises UserError: if none has.
    """
    found, reasons = {}, []
    for run, config in configs.items():
        try:
            found[run] = read_margins(run, config)
        except UserError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    for reason in reasons:
        print(f"warning: left out: {reason}", file=sys.stderr)
    return found


def draw(runs: Sequence[Path]) -> tuple[Figure, str]:
    """The picture, and what to call it.

    :raises UserError: if no run has margins, or they do not go together.
    """
    configs = {run: read_config(run) for run in runs}
    names = dict(zip(runs, labels(runs), strict=True))
    margins = those_with_margins(configs)
    dataset = common_images(configs)
    norm = common("norm", {run: str(config.get("norm")) for run, config in configs.items()})
    found = {names[run]: of_run for run, of_run in margins.items()}
    scale = 255 if in_255ths(dataset, norm) else 1
    figure = plt.figure(figsize=(11, max(4.8, 1.5 + 1.5 * len(found))), layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    panels = left.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    draw_end(panels, found, scale)
    training = right.subplots()
    draw_training(training, found, scale)
    unit = "1/255 of the range of pixel values" if scale == 255 else "images in [0, 1]"
    axis = f"margin: {NORMS.get(norm, norm)} distance ({unit})"
    panels[-1].set(xlabel=axis, xlim=(0, None))
    training.set(xlabel="epoch", ylabel=axis, ylim=(0, None))
    training.legend(loc="upper left", bbox_to_anchor=(0, -0.12), fontsize="small", handlelength=4)
    left.suptitle("At the last check (0: wrong when last seen; dotted: d_max)", fontsize="medium")
    right.suptitle("Over training: median, and 10 and 90 % as thin lines", fontsize="medium")
    figure.suptitle(f"{title(dataset)}: margins of the training images, as AN-PGD found them in training")
    return figure, f"margins-{dataset}-{norm}".replace(" ", "-")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write. Returns the exit status."""
    return picture_command(argv, "Draw the margins that MMA runs recorded.", "margins.npy", "margins", draw)


if __name__ == "__main__":
    sys.exit(main())
