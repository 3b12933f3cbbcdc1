"""Attacks that look for the nearest adversarial image: of foolbox, APGD inside a search on eps, and AN-PGD.

A distance is 0 for a misclassified image and inf where nothing was found; None says so in a JSON. B batch, N images,
C classes, ... any image shape; images in [0, 1]; distances in the same unit. A pass: an image forward, or forward and back.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import fmean
from typing import Any

import eagerpy
import numpy as np
import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, L2CarliniWagnerAttack, L2FMNAttack, LInfFMNAttack
from foolbox.attacks.base import MinimizationAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from anpgd import AnPgd, Search
from errors import UserError
from evaluations.compare_attacks import nearest, of_same_images
from evaluations.in_memory import HALVINGS, just_beyond
from evaluations.results import Row, interval
from evaluations.subject import Subject
from losses import logit_margin, soft_logit_margin
from pgd import GEOMETRY, InnerPgd, project_l2
from utils import per_row, untouched


class L2ProjectedFMN(L2FMNAttack):
    """FMN under L2 with the projection it is defined by: foolbox 3.3.4's rescales by norm / norm = 1, that is, not at all."""

    def project(self, x: eagerpy.Tensor, x0: eagerpy.Tensor, epsilon: eagerpy.Tensor) -> eagerpy.Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...): the point of the ball around x0 that is nearest to x."""
        return x0 + eagerpy.astensor(project_l2((x - x0).raw, epsilon.raw))


# Everything that fixes an attack of foolbox but the number of steps.
FOOLBOX: dict[tuple[str, str], tuple[type[MinimizationAttack], dict[str, Any]]] = {
    ("cw", "L2"): (
        L2CarliniWagnerAttack,
        {"binary_search_steps": 9, "stepsize": 0.01, "confidence": 0, "initial_const": 1e-3, "abort_early": True},
    ),
    ("ddn", "L2"): (DDNAttack, {"init_epsilon": 1.0, "gamma": 0.05}),
    ("fmn", "L2"): (L2ProjectedFMN, {"max_stepsize": 1.0, "gamma": 0.05}),
    ("fmn", "Linf"): (LInfFMNAttack, {"max_stepsize": 10.0, "gamma": 0.05}),
}
ATTACKS = {
    "L2": ("cw", "ddn", "fmn", "anpgd", "anpgd_projected"),
    "Linf": ("fmn", "apgd", "apgdt", "anpgd", "anpgd_projected"),
}
FMN_START = 11  # passes in which FMN looks for the boundary before its second search
TRIES = {"apgd": 11, "apgdt": 50}  # radii at which APGD is run; targeted it fails at one class after the other
ANPGD_STEPS, TARGETS, CONFIRMING = 20, 9, 3  # of PGD in a visit; the most; passes of `just_beyond`


def settings_of(attack: str, norm: str, budget: int, classes: int) -> dict[str, Any]:
    """How an attack uses `budget` passes an image; cw, by its published protocol, has as many in each of 9 searches.

    FMN runs twice and the shorter distance counts: from the image, where [0, 1] may hold it up for good, and from another
    class's. AN-PGD visits an image again from the radius that it found last, from noise, as training does.

    :raises UserError: if the budget is too small.
    """
    if (attack, norm) in FOOLBOX:
        steps, searches = {"cw": (budget, 9), "ddn": (budget, 1), "fmn": ((budget - FMN_START) // 2, 2)}[attack]
        found = {"steps": steps, "searches": searches, **FOOLBOX[attack, norm][1], "foolbox": version("foolbox")}
        least = FMN_START + 2 if attack == "fmn" else 1
    elif attack in TRIES:
        tries = TRIES[attack]
        found = {"steps": (budget - 1) // tries - 2, "searches": tries, "pyautoattack": version("pyautoattack")}
        least = 3 * tries + 1
    else:
        least = ANPGD_STEPS + HALVINGS + CONFIRMING
        projections = targets = 0
        if attack == "anpgd_projected":  # linearised at the image, with its logits, and where the search ended
            least, projections = least + 1 + HALVINGS + 1, 1
            targets = max(min(TARGETS, classes - 1, (budget - least) // (1 + HALVINGS)), 0)
        first = least + targets * (1 + HALVINGS)
        found = {"steps": ANPGD_STEPS, "searches": 1 + (budget - first) // (least - projections), "halvings": HALVINGS}
        found |= {"projections": projections, "targets": targets}
    if budget < least:
        raise UserError(f"--steps {budget}: too few for {attack}: give {least} or more, or name others in --attacks")
    return found


# --- the attacks ---------------------------------------------------------------------------------------------------


def shortest_distances(
    subject: Subject, attack: str, settings: Mapping[str, Any], rows: Tensor, logits: Tensor, seed: int
) -> tuple[Tensor, int]:
    """(B,) rows -> (B,) float64 on the CPU: the shortest confirmed distances; and the passes of all rows together, less those
    that confirm them. settings: of `settings_of`; logits (N, C): of all images."""
    x, y, _ = subject.test.batch(rows)
    with untouched(subject.model, x.device):
        torch.manual_seed(seed)
        sizes: list[int] = []  # of the batches that went through the network
        with subject.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0]))):
            if (attack, subject.norm) in FOOLBOX:
                found = _foolbox(subject, attack, settings, x, y, logits)
            elif attack in TRIES:
                how = {"steps": settings["steps"], "tries": settings["searches"], "start": subject.training.test_eps}
                found = [searched_apgd(subject, x, y, 1.0, **how, targets=TARGETS if attack == "apgdt" else 0)]
            else:
                found = [visited_anpgd(subject, x, y, settings)]
        best = torch.stack([confirmed(subject, x, y, x_adv) for x_adv in found]).amin(0)
    return best.cpu(), sum(sizes)


def _foolbox(
    subject: Subject, attack: str, settings: Mapping[str, Any], x: Tensor, y: Tensor, logits: Tensor
) -> list[Tensor]:
    """(B, ...), (B,) -> one (B, ...) a run: what it takes for the nearest adversarial images."""
    method, options = FOOLBOX[attack, subject.norm]
    run = method(**{"steps": settings["steps"], **options}).run  # `__call__` would confirm it by a pass of its own
    model = PyTorchModel(subject.model, bounds=(0, 1), device=x.device)
    x_adv = run(model, x, y)
    if attack == "cw":  # foolbox gives an all-black image for one that it did not break
        return [torch.where(per_row(x_adv.flatten(1).any(1), x), x_adv, x)]
    if attack == "fmn":
        start, can = nearest_of_another_class(subject, x, y, logits)
        if can.any():
            again = x_adv.clone()
            again[can] = run(model, x[can], y[can], starting_points=eagerpy.astensor(start[can]))
            return [x_adv, again]
    return [x_adv]


def searched_apgd(
    subject: Subject, x: Tensor, y: Tensor, max_eps: float, *, steps: int, tries: int, start: float, targets: int = 0
) -> Tensor:
    """(B, ...), (B,) -> (B, ...): the nearest adversarial images that APGD finds under Linf, on the DLR loss; x where none.

    An image is tried at eps `start`, doubled up to max_eps until it breaks, then halfway between a radius that failed and
    the nearest. targets: so many classes of the largest logits have a radius that failed each, and a try goes towards the
    class of the smallest.
    """
    with torch.no_grad():
        logits = subject.model(x).scatter(1, y[:, None], -torch.inf)
    goals = logits.argsort(dim=1, descending=True)[:, : min(targets, logits.shape[1] - 1) or 1]
    failed = torch.zeros_like(goals, dtype=x.dtype)
    shortest, best = torch.full(y.shape, math.inf).to(x), x
    for _ in range(tries):
        goal = failed.argmin(dim=1, keepdim=True)
        low, high = failed.gather(1, goal).squeeze(1), shortest.clamp(max=max_eps)
        eps = torch.where(shortest.isinf(), (2 * low).clamp(min(start, max_eps), max_eps), (low + high) / 2)
        kind = APGDAttack_targeted if targets else APGDAttack
        attack = kind(subject.model, n_iter=steps, norm="Linf", eps=per_row(eps, x), device=x.device)
        few = "ce-targeted" if targets else "ce"  # DLR compares three logits, or four
        attack.loss = few if logits.shape[1] < 3 + bool(targets) else "dlr-targeted" if targets else "dlr"
        attack.y_target = goals.gather(1, goal).squeeze(1)
        attack.init_hyperparam(x)
        with warnings.catch_warnings(action="ignore"):  # of gradients that are zero
            x_adv = attack.attack_single_run(x, y)[3].detach()
        length = confirmed(subject, x, y, x_adv).to(x)
        best = torch.where(per_row(length < shortest, x), x_adv, best)
        shortest = length.minimum(shortest)
        failed = failed.scatter(1, goal, torch.where(length.isfinite(), low, eps)[:, None])
        failed = failed.minimum(shortest.clamp(max=max_eps)[:, None])
    return best


def visited_anpgd(subject: Subject, x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """(B, ...), (B,), all right -> (B, ...): the nearest adversarial images of some visits by AN-PGD; x where there is none.

    Only the first visit goes towards other classes: another one would find the same.
    """
    model, norm, training = subject.model, subject.norm, subject.training
    end = 1.0 if norm == "Linf" else math.sqrt(x[0].numel())  # nothing in [0, 1] is farther
    eps, best, shortest = torch.full(y.shape, training.test_eps).to(x), x, torch.full(y.shape, math.inf).to(x)
    for visit in range(settings["searches"]):
        search = Search(logit_margin, end, settings["halvings"])
        inner = InnerPgd(norm, settings["steps"], soft_logit_margin)
        anpgd = AnPgd(inner, search, settings["projections"], 0 if visit else settings["targets"])
        found = anpgd(model, x, y, eps, torch.rand(x.shape).to(x) if visit else None)
        x_adv, broken = just_beyond(model, x, y, found, end)
        length = torch.where(broken, GEOMETRY[norm].length(x_adv - x), math.inf)
        best = torch.where(per_row(length < shortest, x), x_adv, best)
        shortest = length.minimum(shortest)
        eps, end = found.eps.clamp(min=training.attack_mineps), min(end, float(shortest.max()))  # a finer search
    return best


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
        broken = ~(logit_margin(subject.model(x_adv).float(), y) < 0)  # also where it is not a number
    length = GEOMETRY[subject.norm].length((x_adv - x).double())
    return torch.where(broken & length.isfinite(), length, math.inf)


# --- figures of distances ------------------------------------------------------------------------------------------


def figures_of(distances: Tensor) -> Row:
    """The part of a row that follows from the distances, (N,). Quartiles: linear between neighbours; None: infinite."""
    ordered, broken = sorted(distances.tolist()), distances[distances.isfinite()].tolist()
    quartiles = np.interp(np.array([0.25, 0.5, 0.75]) * (len(ordered) - 1), range(len(ordered)), ordered)
    return {
        "mean": fmean(broken) if len(broken) == len(ordered) else None,
        "quartiles": [d if math.isfinite(d) else None for d in quartiles.tolist()],
        "not_found": len(ordered) - len(broken),
        "mean_of_found": fmean(broken) if broken else None,
        "distances": [d if math.isfinite(d) else None for d in distances.tolist()],
    }


def best_known(subject: Subject, found: Mapping[str, Row]) -> tuple[Tensor, list[str]]:
    """(N,) float64: the shortest distance of each image in the rows of `found`, by attack, and in the JSON beside the model,
    inf where there is none; and the attacks' names."""
    like = subject.row(0, {})
    rows = [*found.items(), *((attack, row) for attack in ATTACKS[subject.norm] for row in subject.rows(attack))]
    rows = [(attack, row) for attack, row in rows if of_same_images(row, like, subject.dataset)]
    known = nearest((row for _, row in rows), like, subject.dataset)
    return torch.tensor(known, dtype=torch.float64), sorted({attack for attack, _ in rows})


def local_optimality(distances: Tensor, best: Tensor) -> float | None:
    """(N,), (N,) of the best known -> 1 - (A - A*) / (clean D - A*), as AttackBench defines it (Cinà et al. 2024).

    A is the area under robust accuracy against distance up to D, the largest of the nearest distances; A* that of the best
    known; clean D that of an attack that finds nothing. 1: all that is known; None: nothing is, or all lies at D.
    """
    end = best[best.isfinite()].amax() if best.isfinite().any() else torch.zeros(())
    area, least, most = (float(d.clamp(max=end).mean()) for d in (distances, best, torch.where(best > 0, math.inf, 0)))
    return 1 - (area - least) / (most - least) if most > least else None


def table(subject: Subject, rows: Mapping[str, Row], best: Tensor, names: Sequence[str]) -> list[str]:
    """What to print at the end; rows: by attack; best, names: of `best_known`."""

    def line(name: str, figures: Row) -> str:
        values = ("not found" if d is None else f"{d:.4f}" for d in (figures["mean"], *figures["quartiles"]))
        return f"{name:22}" + "".join(f"{value:>11}" for value in (*values, figures["not_found"]))

    def cost(row: Row) -> str:
        optimality = row.get("local_optimality", {}).get("value")
        said = "–" if optimality is None else f"{optimality:.4f}"
        passes = f"{row['passes']:.0f}" if "passes" in row else "–"  # of older rows
        return f"{said:>18}{passes:>9}   {row.get('seconds', 0):g} s"

    heads, first = ("mean", "25 %", "50 %", "75 %", "not found"), next(iter(rows.values()))
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, on {subject.device}",
        f"clean accuracy {first['clean_acc']:.2%}   {interval(first['clean_ci95'])}",
        f"{f'smallest {subject.norm} distance':22}{''.join(f'{head:>11}' for head in heads)}"
        f"{'local optimality':>18}{'passes':>9}",
        *[line(name, row) + cost(row) for name, row in rows.items()],
        f"{line('best known', figures_of(best))}   of {', '.join(names)}",
    ]
