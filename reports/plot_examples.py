"""Draw test images, the shortest perturbation of each that AN-PGD finds, its length, and what the network then says.

python reports/plot_examples.py RUN [--count 8] [--max_eps EPS] [--data_root FOLDER] [--out PATH]

The images are spread evenly over the test set, not chosen. Writes PATH.png and PATH.pdf.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from anpgd import AnPgd, Search
from config import DATASETS
from errors import UserError, exits_on_user_error
from evaluations.flags import PgdFlags
from evaluations.subject import Subject, load_subject
from flags import Parser, number, whole
from losses import LOSSES, logit_margin
from pgd import InnerPgd
from reports.plotting import save
from reports.results import NORMS, eps_text, image_name, title
from utils import CHECK, per_row, row_noise, row_norms


class Examples(NamedTuple):
    """K images; an image that is misclassified as it is has length 0, one for which nothing was found x_adv = x and inf."""

    x: Tensor  # (K, C, H, W) in [0, 1]
    labels: Tensor  # (K,)
    x_adv: Tensor  # (K, C, H, W) in [0, 1]
    predicted: Tensor  # (K,) of x_adv
    length: Tensor  # (K,) in the run's norm
    max_eps: float  # where the search ended, in input units


def find(subject: Subject, count: int, max_eps: float | None = None) -> Examples:
    """AN-PGD on `count` test images, with the settings of the run's own check; then the nearest point that is misclassified.

    max_eps: radius of the largest attack, in input units; None: the check's own, 1.05 d_max.

    The bisection ends on one side of the boundary or the other; where it ended on the right one, it is followed by one
    more bracket, eps_max / 2^K, outwards.
    """
    config, test = subject.training, subject.test
    max_eps = max_eps or config.search_maxeps
    rows = torch.linspace(0, len(test) - 1, min(count, len(test))).long()
    x, labels, _ = test.batch(rows)
    noise = row_noise(test.numbers[rows], x.shape[1:], config.seed, CHECK).to(x)
    steps, loss_fn = config.check_nb_iter or config.nb_iter, LOSSES[config.attack_loss_fn]
    attack = InnerPgd(subject.norm, steps, loss_fn, config.eps_iter_scale)
    search = Search(logit_margin, max_eps, config.check_search_steps)
    shortest = AnPgd(attack, search)(subject.model, x, labels, min(config.test_eps, max_eps), noise)
    bracket = max_eps / 2**config.check_search_steps
    x_adv, found = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    with torch.no_grad():
        for factor in (
            torch.zeros_like(shortest.eps),
            torch.ones_like(shortest.eps),
            1 + 1.01 * bracket / shortest.eps,
        ):
            candidate = (x + per_row(factor, x) * (shortest.x_adv - x)).clamp(0, 1)
            new = (logit_margin(subject.model(candidate), labels) >= 0) & ~found
            x_adv, found = torch.where(per_row(new, x), candidate, x_adv), found | new
        predicted = subject.model(x_adv).argmax(1)
    delta = x_adv - x
    length = delta.flatten(1).abs().amax(1) if subject.norm == "Linf" else row_norms(delta)
    return Examples(x, labels, x_adv, predicted, torch.where(found, length, torch.inf), max_eps)


def draw(subject: Subject, found: Examples, name: str) -> Figure:
    """Three rows: the images, their perturbations on one scale, and their sum."""
    count = len(found.x)
    delta = found.x_adv - found.x
    largest = float(delta.abs().max()) or 1.0
    dataset, norm = subject.dataset, subject.norm
    figure, panels = plt.subplots(3, count, figsize=(max(7, 1.35 * count), 5.6), squeeze=False, layout="constrained")
    for column in range(count):
        top, middle, bottom = panels[:, column]
        length = float(found.length[column])
        show(top, found.x[column], f"label {int(found.labels[column])}")
        show(middle, delta[column] / (2 * largest) + 0.5, length_text(length, dataset, norm, found.max_eps))
        show(bottom, found.x_adv[column], f"predicted {int(found.predicted[column])}")
    scale = eps_text(largest, dataset, norm, 3)
    for panel, text in zip(
        panels[:, 0],
        ("image", f"perturbation\n(grey 0, white +{scale},\nblack −{scale})", "image +\nperturbation"),
        strict=True,
    ):
        panel.set_ylabel(text, fontsize="small")
    figure.suptitle(
        f"{title(image_name(dataset, name))}, {name}:\nshortest perturbation that AN-PGD finds, and its {NORMS[norm]} length "
        "(images in [0, 1])",
        fontsize="medium",
    )
    return figure


def length_text(length: float, dataset: str, norm: str, max_eps: float) -> str:
    """`ℓ∞ 0.123`, or why there is no perturbation."""
    if length == 0:
        return "misclassified\nas it is"
    if length == torch.inf:
        return f"none up to\n{eps_text(max_eps, dataset, norm, 3)}"
    return f"{NORMS[norm]} {eps_text(length, dataset, norm, 3)}"


def show(panel: Axes, image: Tensor, caption: str) -> None:
    """image (C, H, W) in [0, 1]; other values are cut off."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    panel.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    panel.set_title(caption, fontsize="small")
    panel.set(xticks=[], yticks=[])


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, draw and write. Returns the exit status."""
    parser = Parser(description="Draw images with their shortest adversarial perturbation.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="run folder or checkpoint file")
    parser.add_argument("--count", type=whole, default=8, help="images (default: 8)")
    parser.add_argument(
        "--max_eps", type=number, metavar="EPS", help="how far to search, in input units (default: 1.05 d_max)"
    )
    parser.add_argument("--out", metavar="PATH", help="file without .png (default: runs/examples-<run>)")
    choices = {"data_root": None, "dataset": DATASETS, "norm": NORMS, "network": None}
    for flag, known in choices.items():
        parser.add_argument(
            f"--{flag}", choices=known and list(known), help="as in the evaluation (default: the checkpoint's)"
        )
    given = parser.parse(argv)
    if not 1 <= given["count"] <= 40:
        raise UserError(f"--count {given['count']}: a picture holds 1 to 40 images")
    if given["max_eps"] is not None and not 0 < given["max_eps"] < inf:
        raise UserError(f"--max_eps {given['max_eps']:g}: a radius in input units, as 0.3 or 8/255")
    flags = PgdFlags(model=given["run"], device="cpu", **{flag: given[flag] for flag in choices})
    subject = load_subject(flags, torch.device("cpu"))
    path = Path(given["run"]).resolve()
    name = path.parent.name if path.is_file() else path.name
    figure = draw(subject, find(subject, given["count"], given["max_eps"]), name)
    print("\n".join(str(path) for path in save(figure, given["out"], f"examples-{name}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
