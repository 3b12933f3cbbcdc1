"""Pictures of run folders, each written as PATH.png and PATH.pdf. A run is named in words, a method has one colour, a seed one
line style.

python reports/plots.py robustness RUN RUN ... [--norm L2] [--out PATH]   accuracy under repeated PGD against ε
python reports/plots.py margins RUN RUN ... [--out PATH]     margins of the training images at the end, and over training
python reports/plots.py examples RUN [--count 8] [--max_eps EPS] [--out PATH]   images, and their shortest perturbation
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a $ in a run's name is a dollar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from config import DATASETS
from config import NORMS as NORM_NAMES
from errors import UserError, exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import margins
from evaluations.repeated_pgd import clean_logits
from evaluations.results import function_of
from evaluations.subject import Subject, load_subject
from flags import Parser, number, whole
from reports.runs import NORMS, Rows, Run, eps_text, frame, in_255ths, labels, read_run, read_runs, title
from reports.tables import by_method
from utils import spread_rows

# Okabe and Ito's colours, which people with any colour vision tell apart; a grey in place of their yellow and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
OWNERS = ("std", "pgd", "trades", "mma", "omma", "ddn", "pgdls")  # the methods to which they belong, in this order
# Each as matplotlib calls it, and as plotly does.
MARKERS = dict(
    zip("os^DvPX", ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"), strict=True)
)
LINES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
BINS = 40
NEAR_THE_TOP = 80  # per cent, where several curves are told apart in a panel of its own


# --- what the pictures share ---------------------------------------------------------------------------------------


class Look(NamedTuple):
    """How a run is drawn and called."""

    name: str
    method: int  # number of its colour and marker, see `colours`
    seed: int  # of its seed among those of the method

    @property
    def style(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib's `plot`; two methods that share a colour differ in their marker."""
        return {
            "color": COLOURS[self.method % len(COLOURS)],
            "marker": list(MARKERS)[(self.method + self.method // len(COLOURS)) % len(MARKERS)],
            "linestyle": list(LINES)[self.seed % len(LINES)],
        }


def looks(runs: Sequence[Run]) -> dict[Run, Look]:
    """Of each run its name, its colour by method and its line by seed; the seed is named where a method has several."""
    names = {run: (label, run.images, run.norm) for run, label in zip(runs, labels(runs), strict=True)}
    numbers = colours({name: run.method for run, name in names.items()})
    found = {}
    for run, name in names.items():
        seeds = [other.seed for other, same in names.items() if same == name]
        text = name[0] + (f", seed {run.seed}" if len(seeds) > 1 else "")
        found[run] = Look(text, numbers[name], seeds.index(run.seed))
    return found


def colours(methods: Mapping[Any, str | None]) -> dict[Any, int]:
    """Of names and their methods, the number of each one's colour: the method's own for the first name that has it, so that
    pictures agree; for others the next that is free."""
    found: dict[Any, int] = {}
    for name, method in methods.items():
        if method in OWNERS and OWNERS.index(method) not in found.values():
            found[name] = OWNERS.index(method)
    free = (number for number in itertools.count() if number not in found.values())
    return found | {name: next(free) for name in methods if name not in found}


def common(kinds: Iterable[tuple[Run, str, str]]) -> tuple[str, str]:
    """The data set and norm of all; kinds: runs with theirs.

    :raises UserError: if they differ.
    """
    found = {(images, norm): run.folder for run, images, norm in kinds}
    if len(found) > 1:
        said = ", ".join(f"{folder} of {title(images)} and {NORMS[norm]}" for (images, norm), folder in found.items())
        raise UserError(f"run folders {said}: of another data set or norm: draw them in two pictures")
    return next(iter(found))


def radius_axis(images: str, norm: str) -> tuple[int, str]:
    """(scale, text) of an axis of radii: in 255ths or in input units."""
    return (255, "in 1/255 of the range of pixel values") if in_255ths(images, norm) else (1, "images in [0, 1]")


def default_name(said: str, paths: Iterable[Path]) -> str:
    """`robustness-mnist-Linf-1a2b3c`; its end is that of no picture of other runs, so that none replaces it."""
    text = "\n".join(sorted(str(path.resolve()) for path in paths))
    return f"{said}-{hashlib.sha256(text.encode()).hexdigest()[:6]}".replace(" ", "-")


def save(figure: Figure, out: str | None, default: str) -> list[Path]:
    """Write `<out>.png` and `<out>.pdf`, with or without such an ending in `out`; by default in runs/."""
    base = out or f"runs/{default}"
    base = base[:-4] if base.endswith((".png", ".pdf")) else base
    paths = [Path(base + ending) for ending in (".png", ".pdf")]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


# --- accuracy against eps ------------------------------------------------------------------------------------------


def curve(rows: Rows) -> np.ndarray:
    """(eps, accuracy, low, high) from the clean images on, accuracies in per cent: (4, 1 + radii)."""
    most = rows.loc[rows["n"].idxmax(), "row"]
    points = [(row["eps"], row["robust_acc"], *row["ci95"]) for row in rows["row"]]
    points.insert(0, (0.0, most["clean_acc"], *most["clean_ci95"]))
    return np.array(points).T * [[1], [100], [100], [100]]


def draw_robustness(runs: Sequence[Run], norm: str | None = None) -> tuple[Figure, str]:
    """Accuracy under repeated PGD against eps, and what to call the picture. Runs that differ in their seed alone are one
    line, at the radii that all have; bars: the standard deviation over seeds, of one seed the 95 % interval.

    norm: of the attack; None: that of each run's training.

    :raises UserError: if a run has no such evaluation, or they do not go together.
    """
    found = frame(runs)
    wanted = [norm or run.norm or own for run, own in zip(found["run"], found["norm"], strict=True)]
    found = found[(found["attack"] == "pgd") & (found["norm"] == np.array(wanted, object))]
    for run in runs:
        if run not in set(found["run"]):
            file = f"eval_pgd_{norm or run.norm or '*'}.json"
            why = "; ".join(line for line in run.damaged if file in line) or "not there"
            raise UserError(f"{run.folder / file}: {why}: run evaluate_on_pgd_attacks.py --model {run.folder}")
    images, norm = common(zip(found["run"], found["images"], found["norm"], strict=True))
    scale, unit = radius_axis(images, norm)
    methods = list(by_method(found))
    high_up = found[(found["eps"] > 0) & (found["robust"] >= NEAR_THE_TOP)]["label"].nunique() > 1
    figure, panels = plt.subplots(1, 1 + high_up, figsize=(7 + 4 * high_up, 4.6), layout="constrained", squeeze=False)
    numbers = colours({name: seeds[0].method for name, seeds, _ in methods})
    for place, (name, seeds, rows) in enumerate(methods):
        of_runs = list(rows.groupby("run", sort=False))
        label = f"{name} (n {', '.join(map(str, sorted(set(rows['n']))))})"
        doubts = [
            doubt
            for run, of_run in of_runs
            for doubt in run.doubts(of_run["row"].iloc[0]["file"], of=function_of(of_run["row"].iloc[0]))
        ]
        for doubt in dict.fromkeys(doubts):
            label += "\n" + textwrap.fill(f"⚠ {doubt}", 48)
        curves = [curve(of_run) for _, of_run in of_runs]
        shared = reduce(np.intersect1d, [one[0] for one in curves])
        eps, accuracy, low, high = np.stack([one[:, np.isin(one[0], shared)] for one in curves], 1)
        middle = accuracy.mean(0)
        bars = [accuracy.std(0, ddof=1)] * 2 if len(seeds) > 1 else np.maximum([middle - low[0], high[0] - middle], 0)
        # Sideways by up to a hundredth of the axis, so that no bar hides another.
        aside = 0.02 * found["eps"].max() * (place - (len(methods) - 1) / 2) / len(methods)
        style = Look(label, numbers[name], 0).style | {"capsize": 3, "elinewidth": 1, "linewidth": 1.6, "markersize": 5}
        for axes in panels[0]:
            axes.errorbar(scale * (eps[0] + aside), middle, bars, label=label, **style)
    for axes, (least, most) in zip(panels[0], ((-3, 103), (NEAR_THE_TOP, 100)), strict=False):
        axes.set(xlabel=f"ε: {NORMS[norm]} radius of the attack ({unit})", ylabel="accuracy [%]", ylim=(least, most))
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{title(images)}: accuracy under repeated PGD; bars: ± standard deviation of seeds, of one the 95 % interval"
    )
    columns = 1 if len(methods) < 5 and not high_up else 2
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", fontsize="small", ncols=columns, handlelength=3, columnspacing=1
    )
    return figure, default_name(f"robustness-{images}-{norm}", [run.folder for run in runs])


def quantiles(eps: np.ndarray, end: float) -> np.ndarray:
    """(E, N) margins of N images at E checks -> (3, E): 10, 50 and 90 %; `end`, of the search, where none was found."""
    found: np.ndarray = np.minimum(np.percentile(eps, (10, 50, 90), axis=1, method="nearest"), end)
    return found


def draw_margins(runs: Sequence[Run]) -> tuple[Figure, str]:
    """The margins that MMA and OMMA runs recorded: at the last check, and over training; and what to call the picture.
    A run without margins is left out, and a line says why.

    :raises UserError: if no run has margins, or they do not go together.
    """
    found: dict[Run, tuple[np.ndarray, np.ndarray]] = {}
    reasons = []
    for run in runs:
        try:
            found[run] = run.margins()
        except UserError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    for reason in reasons:
        print(f"warning: left out: {reason}", file=sys.stderr)
    images, norm = common((run, run.images, run.trained.norm) for run in found)
    scale, unit = radius_axis(images, norm)
    figure = plt.figure(figsize=(11, max(4.8, 1.5 + 1.5 * len(found))), layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    panels = left.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    training = right.subplots()
    top = scale * max(np.max(eps[-1], initial=0, where=np.isfinite(eps[-1])) for _, eps in found.values())
    for panel, (run, look) in zip(panels, looks(list(found)).items(), strict=True):
        epochs, eps = found[run]
        last, colour = scale * eps[-1], look.style["color"]
        bins, there = np.linspace(0, top, BINS + 1).tolist(), last[np.isfinite(last)]
        bars: dict[str, Any] = {"color": colour, "alpha": 0.5, "edgecolor": colour, "linewidth": 0.6}
        panel.hist(there, bins, weights=np.full(len(there), 100 / len(last)), **bars)
        if run.radius is not None:
            panel.axvline(scale * run.radius, color="0", linestyle=":", linewidth=1.5)
        none, end = np.isinf(last).mean(), scale * run.trained.search_maxeps
        median = f"above {end:.3g}" if none >= 0.5 else f"{np.median(last):.3g}"
        beyond = f"; {none:.1%} none up to {end:.3g}" if none else ""
        panel.set_title(f"{look.name}: {len(last)} images, median {median}{beyond}", fontsize="small", loc="left")
        panel.set_ylabel("images [%]", fontsize="small")
        low, middle, high = scale * quantiles(eps, run.trained.search_maxeps)
        training.axhline(end, color="0.4", linestyle=(0, (1, 3)), linewidth=1)
        every = max(1, len(middle) // 10)
        training.plot(epochs, middle, linewidth=1.8, markersize=5, markevery=every, label=look.name, **look.style)
        training.fill_between(epochs, low, high, color=colour, alpha=0.08, linewidth=0)
        for edge in (low, high):
            training.plot(epochs, edge, linewidth=0.7, color=colour, linestyle=look.style["linestyle"])
    axis = f"margin: {NORMS[norm]} distance to the decision boundary\n({unit})"
    panels[-1].set(xlabel=axis, xlim=(0, None))
    training.set(xlabel="epoch", ylabel=axis, ylim=(0, None))
    training.legend(loc="upper left", bbox_to_anchor=(0, -0.12), fontsize="small", handlelength=4)
    left.suptitle("At the last check (0: wrong when last seen; dotted: d_max)", fontsize="medium")
    right.suptitle("Over training: median; thin: 10, 90 %; dots: end of the search", fontsize="medium")
    figure.suptitle(f"{title(images)}: margins of the training images, upper bounds by AN-PGD in training")
    return figure, default_name(f"margins-{images}-{norm}", [run.folder for run in found])


# --- images and their shortest perturbation ------------------------------------------------------------------------


class Examples(NamedTuple):
    """K images; an image that is misclassified as it is has length 0, one for which nothing was found x_adv = x and inf."""

    x: Tensor  # (K, C, H, W) in [0, 1]
    labels: Tensor  # (K,)
    x_adv: Tensor  # (K, C, H, W) in [0, 1]
    predicted: Tensor  # (K,) of x_adv
    length: Tensor  # (K,) in the run's norm
    max_eps: float  # where the search ended, in input units


def find_examples(subject: Subject, count: int, max_eps: float | None = None) -> Examples:
    """The nearest adversarial images that AN-PGD finds, with one projection and nine targets, of `count` images spread evenly
    over the test set. Each length is an upper bound of the margin.

    max_eps: how far to search, in input units; None: as the run's own check, 1.05 d_max.

    :raises UserError: if the network cannot be attacked.
    """
    config, test = subject.training, subject.test
    if max_eps is None:
        max_eps = min(config.search_maxeps, 1.0) if subject.norm == "Linf" else config.search_maxeps
    x, labels, _ = test.batch(spread_rows(len(test), count))
    try:
        measure = margins(subject.norm, max_eps, steps=config.check_steps, projections=1, targets=9, batch_size=200)
        found = measure(subject.model, x, labels)
    except ValueError as error:
        raise UserError(str(error)) from None
    predicted = clean_logits(subject.model, found.x_adv, min(200, len(x))).argmax(1)
    return Examples(x, labels, found.x_adv, predicted, found.eps, max_eps)


def draw_examples(given: dict[str, Any]) -> tuple[Figure, str]:
    """Three rows: images, their perturbations on one scale, and their sum; and what to call the picture. given: the flags.

    :raises UserError: if the network cannot be attacked.
    """
    if not 1 <= given["count"] <= 40:
        raise UserError(f"--count {given['count']}: a picture holds 1 to 40 images")
    flags = {flag: given[flag] for flag in ("data_root", "dataset", "norm", "network")}
    subject = load_subject(EvaluationFlags(model=given["run"], **flags), torch.device("cpu"))
    folder = subject.path.resolve().parent
    run = read_run(folder) if (folder / "config.json").is_file() else None
    found = find_examples(subject, given["count"], given["max_eps"])
    count, norm = len(found.x), subject.norm
    images = run.images if run and subject.dataset == "imagefolder" else subject.dataset
    delta = found.x_adv - found.x
    largest = float(delta.abs().max()) or 1.0
    figure, panels = plt.subplots(3, count, figsize=(max(7, 1.35 * count), 5.6), squeeze=False, layout="constrained")
    for column in range(count):
        length = length_text(float(found.length[column]), images, norm, found.max_eps)
        shown = (found.x[column], delta[column] / (2 * largest) + 0.5, found.x_adv[column])
        names = (subject.class_name(one[column]) for one in (found.labels, found.predicted))
        # So that they fit above a picture, with no sign that matplotlib would take for mathematics.
        label, predicted = (name if len(name) <= 16 else name[:15] + "…" for name in names)
        captions = (f"label {label}", length, f"predicted\n{predicted}")
        for panel, image, caption in zip(panels[:, column], shown, captions, strict=True):
            # (C, H, W) -> (H, W, C), of which matplotlib takes one channel as grey; values outside [0, 1] are cut off.
            channels_last = image.clamp(0, 1).permute(1, 2, 0).numpy()
            panel.imshow(channels_last, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(caption, fontsize="small")
            panel.set(xticks=[], yticks=[])
    scale = eps_text(largest, images, norm, 3)
    perturbation = f"perturbation\n(grey 0, white +{scale},\nblack −{scale})"
    for panel, text in zip(panels[:, 0], ("image", perturbation, "image +\nperturbation"), strict=True):
        panel.set_ylabel(text, fontsize="small")
    figure.suptitle(
        f"{title(images)}: {run.words if run else subject.path.name}\nshortest perturbation that AN-PGD finds; its "
        f"{NORMS[norm]} length is an upper bound of the margin (images in [0, 1])",
        fontsize="medium",
    )
    return figure, default_name(f"examples-{folder.name}", [subject.path])


def length_text(length: float, images: str, norm: str, max_eps: float) -> str:
    """`ℓ∞ 0.123`, or why there is no perturbation."""
    if length == 0:
        return "misclassified\nas it is"
    if length == inf:
        return f"none up to\n{eps_text(max_eps, images, norm, 3)}"
    return f"{NORMS[norm]} {eps_text(length, images, norm, 3)}"


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write. Returns the exit status."""
    parser = Parser(description="Pictures of run folders, PATH.png and PATH.pdf.", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="picture", required=True, metavar="robustness | margins | examples")
    for kind, text in (
        ("robustness", "accuracy under repeated PGD against ε, with 95 %% intervals"),
        ("margins", "the margins that MMA runs recorded, at the end and over training"),
        ("examples", "test images with the shortest perturbation that AN-PGD finds"),
    ):
        flags = kinds.add_parser(kind, help=text, description=text, allow_abbrev=False)
        flags.add_argument("--out", metavar="PATH", help="file without .png (default: runs/<picture>-…)")
        if kind != "examples":
            flags.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
        if kind != "margins":
            flags.add_argument("--norm", choices=NORM_NAMES, help="norm of the attack (default: the training's)")
        if kind == "examples":
            flags.add_argument("run", metavar="RUN", help="run folder or checkpoint file")
            flags.add_argument("--count", type=whole, default=8, help="images (default: 8)")
            how_far = "how far to search, in input units (default: 1.05 d_max)"
            flags.add_argument("--max_eps", type=number, metavar="EPS", help=how_far)
            flags.add_argument("--dataset", choices=DATASETS, help="data set (default: the checkpoint's)")
            for flag in ("data_root", "network"):
                flags.add_argument(f"--{flag}", help="as in the evaluation (default: the checkpoint's)")
    given = parser.parse(argv)
    if given["picture"] == "examples":
        figure, name = draw_examples(given)
    else:
        runs = read_runs([Path(run) for run in given["runs"]])
        figure, name = draw_margins(runs) if given["picture"] == "margins" else draw_robustness(runs, given["norm"])
    print("\n".join(str(path) for path in save(figure, given["out"], name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
