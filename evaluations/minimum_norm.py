"""Attacks that look for the nearest adversarial image, through foolbox.

A distance is 0 for a misclassified image and inf where nothing was found; None says so in a JSON. B batch, N images,
C classes, ... any image shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import eagerpy
import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, L2CarliniWagnerAttack, L2FMNAttack, LInfFMNAttack
from foolbox.attacks.base import MinimizationAttack
from torch import Tensor

from evaluations.results import Row, clean_accuracy, interval
from evaluations.subject import Subject
from losses import logit_margin
from pgd import GEOMETRY, project_l2
from utils import per_row, untouched

Figures = dict[str, Any]


class L2ProjectedFMN(L2FMNAttack):
    """FMN under L2 with the projection it is defined by: foolbox 3.3.4's rescales by norm / norm = 1, that is, not at all."""

    def project(self, x: eagerpy.Tensor, x0: eagerpy.Tensor, epsilon: eagerpy.Tensor) -> eagerpy.Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...): the point of the ball around x0 that is nearest to x."""
        return x0 + eagerpy.astensor(project_l2((x - x0).raw, epsilon.raw))


# Everything that fixes an attack but the number of steps.
ATTACKS: dict[tuple[str, str], tuple[type[MinimizationAttack], dict[str, Any]]] = {
    ("cw", "L2"): (
        L2CarliniWagnerAttack,
        {"binary_search_steps": 9, "stepsize": 0.01, "confidence": 0, "initial_const": 1e-3, "abort_early": True},
    ),
    ("ddn", "L2"): (DDNAttack, {"init_epsilon": 1.0, "gamma": 0.05}),
    ("fmn", "L2"): (L2ProjectedFMN, {"max_stepsize": 1.0, "gamma": 0.05}),
    ("fmn", "Linf"): (LInfFMNAttack, {"max_stepsize": 10.0, "gamma": 0.05}),
}
# How often an image is searched from the start, at most. FMN runs twice and the shorter distance counts: from the image, where
# [0, 1] may hold it up for good, and from another class's.
SEARCHES = {"cw": 9, "ddn": 1, "fmn": 2}


def attacks_under(norm: str) -> list[str]:
    """Those that there are for a norm."""
    return [attack for attack, its_norm in ATTACKS if its_norm == norm]


# --- the attacks ---------------------------------------------------------------------------------------------------


def shortest_distances(subject: Subject, attack: str, steps: int, rows: Tensor, logits: Tensor, seed: int) -> Tensor:
    """(B,) rows -> (B,) float64 on the CPU: the shortest confirmed distances; logits (N, C): of all images."""
    method, options = ATTACKS[attack, subject.norm]
    x, y, _ = subject.test.batch(rows)
    with untouched(subject.model, x.device):
        torch.manual_seed(seed)  # DDN draws a direction where there is no gradient
        run = method(**{"steps": steps, **options})
        model = PyTorchModel(subject.model, bounds=(0, 1), device=x.device)
        x_adv = run(model, x, y, epsilons=None)[0]
        if attack == "cw":  # foolbox gives an all-black image for one that it did not break
            x_adv = torch.where(per_row(x_adv.flatten(1).any(1), x), x_adv, x)
        best = confirmed(subject, x, y, x_adv)
        if attack == "fmn":
            start, can = nearest_of_another_class(subject, x, y, logits)
            if can.any():
                x_adv[can] = run(model, x[can], y[can], epsilons=None, starting_points=start[can])[0]
                best = torch.minimum(best, confirmed(subject, x, y, x_adv))
    return best.cpu()


def nearest_of_another_class(subject: Subject, x: Tensor, y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,) -> (B, ...), (B,) bool: the nearest image of the set that the network takes for another class than y,
    and whether there is one; logits (N, C): of the set."""
    images = subject.test.everything().x
    labels = torch.arange(logits.shape[1], device=y.device)
    surely = 1e-4 * logits.abs().amax()  # in another batch rounding may differ
    broken = torch.stack([logit_margin(logits, label.expand(len(logits))) > surely for label in labels])[y]
    apart = torch.cdist(x.flatten(1), images.flatten(1), p=2 if subject.norm == "L2" else math.inf)
    return images[torch.where(broken, apart, math.inf).argmin(1)], broken.any(1)


def confirmed(subject: Subject, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """(B, ...), (B,), (B, ...) -> (B,) float64: the length of x_adv - x, inf where our own forward pass in float32 says
    that x_adv, clipped to [0, 1], does not break the image."""
    x_adv = x_adv.clamp(0, 1)
    with torch.no_grad():
        broken = logit_margin(subject.model(x_adv).float(), y) >= 0
    length = GEOMETRY[subject.norm].length((x_adv - x).double())
    return torch.where(broken & length.isfinite(), length, math.inf)


# --- figures of distances ------------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> Figures:
    """Mean and quartiles (linear between neighbours); None, that is, not found, where they are infinite or of nothing."""
    ordered = sorted(values)

    def quantile(share: float) -> float | None:
        low, part = divmod(share * (len(ordered) - 1), 1)
        value = ordered[int(low)] + (part * (ordered[int(low) + 1] - ordered[int(low)]) if part else 0)
        return value if math.isfinite(value) else None

    if not ordered:
        return {"mean": None, "quartiles": [None] * 3}
    mean = fmean(ordered)
    return {"mean": mean if math.isfinite(mean) else None, "quartiles": [quantile(q) for q in (0.25, 0.5, 0.75)]}


def figures_of(distances: Tensor) -> Figures:
    """The part of a row that follows from the distances, (N,)."""
    broken = distances[distances.isfinite()].tolist()
    return {
        **summary(distances.tolist()),
        "not_found": len(distances) - len(broken),
        "mean_of_found": summary(broken)["mean"],
        "distances": [d if math.isfinite(d) else None for d in distances.tolist()],
    }


def best_known(subject: Subject, found: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """(N,) float64: the shortest distance of each image by `found`, (N,) by attack, and by the JSON beside the model, inf
    where there is none; and the attacks' names."""
    known = {}
    for attack in attacks_under(subject.norm):
        columns = [column for row in subject.rows(attack) if (column := _column(row, subject)) is not None]
        if columns := [*columns, *([found[attack]] if attack in found else [])]:
            known[attack] = torch.stack(columns).amin(0)
    return torch.stack([*known.values()]).amin(0), sorted(known)


def _column(row: Row, subject: Subject) -> Tensor | None:
    """(N,) float64: a row's distances, inf where it has none; None if they are of other images."""
    n = len(subject.test)
    same = row.get("images") == subject.images and row["n"] == n
    same_order = subject.dataset != "imagefolder"  # the first ones, whichever size; else a selection
    if row["split"] != subject.split or not (same or same_order):
        return None
    cut = [math.inf if d is None else d for d in row["distances"][:n]]
    return torch.tensor(cut + [math.inf] * (n - len(cut)), dtype=torch.float64)


def compared(subject: Subject, right: Tensor, margins: Tensor, best: Tensor, attacks: Sequence[str]) -> Figures:
    """AN-PGD's margins, (N,), and their ratio to the best known distances; right (N,) bool: without a perturbation; best,
    attacks: of `best_known`.

    The ratio is over the images that are classified right, that an attack broke, and whose margin is not the end of
    AN-PGD's search, where nothing was found.
    """
    training = subject.training
    end, bracket = training.search_maxeps, training.search_maxeps / 2**training.check_search_steps
    at_end = margins >= end - bracket
    ratios = (margins / best)[right.cpu() & ~at_end & (best > 0) & best.isfinite()].tolist()
    return {
        **summary(margins.tolist()),
        "search_end": end,
        "at_search_end": int(at_end.sum()),
        "ratio": {**summary(ratios), "n": len(ratios), "below_1": sum(r < 1 for r in ratios), "best_of": attacks},
        "distances": margins.tolist(),
    }


def table(
    subject: Subject,
    right: Tensor,
    found: Mapping[str, Tensor],
    best: Tensor,
    anpgd: Figures,
    seconds: Mapping[str, float],
) -> list[str]:
    """What to print at the end; found, seconds: by attack; best: of `best_known`; anpgd: what `compared` gives."""
    ratio = anpgd["ratio"]

    def line(name: str, figures: Figures, *rest: str) -> str:
        values = [
            "not found" if value is None else f"{value:.4f}" for value in (figures["mean"], *figures["quartiles"])
        ]
        return f"{name:22}" + "".join(f"{value:>11}" for value in values) + "".join(rest)

    def searched(name: str, distances: Tensor, rest: str) -> str:
        return line(name, summary(distances.tolist()), f"{int(distances.isinf().sum()):>11}", rest)

    end = f"   (margins at the search's end, {anpgd['search_end']:.4g})"
    heads = ("mean", "25 %", "50 %", "75 %", "not found")
    accuracy = clean_accuracy(right)
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, on {subject.device}",
        f"clean accuracy {accuracy['clean_acc']:.2%}   {interval(accuracy['clean_ci95'])}",
        f"{f'smallest {subject.norm} distance':22}" + "".join(f"{head:>11}" for head in heads),
        *[searched(name, distances, f"   {seconds[name]:g} s") for name, distances in found.items()],
        searched("best known", best, f"   of {', '.join(ratio['best_of'])}"),
        line("AN-PGD", anpgd, f"{anpgd['at_search_end']:>11}", end),
        line("AN-PGD / best known", ratio, f"{'':11}   over {ratio['n']} images; below 1 in {ratio['below_1']}"),
    ]
