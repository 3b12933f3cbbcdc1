"""Attacks that look for the nearest adversarial image, through foolbox, batch by batch.

A distance is 0 for a misclassified image and inf where nothing was found; None says so in a JSON. B batch, N images,
C classes, ... any image shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from statistics import fmean
from typing import Any, NamedTuple

import eagerpy
import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, L2CarliniWagnerAttack, L2FMNAttack, LInfFMNAttack
from foolbox.attacks.base import MinimizationAttack
from torch import Tensor

from evaluations.repeated_pgd import clean_logits
from evaluations.results import Row, clean_accuracy, interval, require_writable
from evaluations.shards import Part, Parts, already_done, attack_batches
from evaluations.subject import Subject
from losses import logit_margin
from pgd import GEOMETRY, project_l2
from processes.distributed import World
from records.progress import Teller
from utils import EVALUATE, mixed_seed, per_row, untouched

Figures = dict[str, Any]
TRIAL_STEPS = 5


class L2ProjectedFMN(L2FMNAttack):
    """FMN under L2 with the projection it is defined by: foolbox 3.3.4's rescales by norm / norm = 1, that is, not at all."""

    def project(self, x: eagerpy.Tensor, x0: eagerpy.Tensor, epsilon: eagerpy.Tensor) -> eagerpy.Tensor:
        """(B, ...), (B, ...), (B,) -> (B, ...): the point of the ball around x0 that is nearest to x."""
        return x0 + eagerpy.astensor(project_l2((x - x0).raw, epsilon.raw))


class Method(NamedTuple):
    """An attack of foolbox and everything that fixes it but the number of steps."""

    attack: type[MinimizationAttack]
    steps: int  # by default
    cpu_steps: int  # by default on a CPU
    searches: int  # runs of so many steps for each image, at most
    options: dict[str, Any]


# FMN runs twice and the shorter counts: from the image, where [0, 1] may hold it up for good, and from another class's.
METHODS = {
    ("cw", "L2"): Method(
        L2CarliniWagnerAttack,
        10_000,
        1000,
        9,
        {"binary_search_steps": 9, "stepsize": 0.01, "confidence": 0, "initial_const": 1e-3, "abort_early": True},
    ),
    ("ddn", "L2"): Method(DDNAttack, 1000, 1000, 1, {"init_epsilon": 1.0, "gamma": 0.05}),
    ("fmn", "L2"): Method(L2ProjectedFMN, 1000, 1000, 2, {"max_stepsize": 1.0, "gamma": 0.05}),
    ("fmn", "Linf"): Method(LInfFMNAttack, 1000, 1000, 2, {"max_stepsize": 10.0, "gamma": 0.05}),
}
NAMES = tuple(dict.fromkeys(attack for attack, _ in METHODS))


def attacks_under(norm: str) -> list[str]:
    """Those that there are for a norm."""
    return [attack for attack, its_norm in METHODS if its_norm == norm]


def default_steps(attack: str, subject: Subject) -> int:
    """Steps of a search where the flags do not say."""
    method = METHODS[attack, subject.norm]
    return method.cpu_steps if subject.device.type == "cpu" else method.steps


# --- the attacks ---------------------------------------------------------------------------------------------------


def evaluate(
    subject: Subject,
    steps: Mapping[str, int],
    margins_of: Callable[[], Tensor],
    *,
    seed: int,
    batch_size: int,
    overwrite: bool,
    teller: Teller,
    world: World,
) -> None:
    """Each attack that is not done yet, with its steps; then the JSON of each, and a table.

    margins_of: gives AN-PGD's margins, (N,) float64 on the CPU.

    :raises UserError: if the folder cannot be written.
    """
    rows = {}
    for attack in steps:
        method = METHODS[attack, subject.norm]
        settings = {"steps": steps[attack], "searches": method.searches, **method.options, "batch_size": batch_size}
        row = subject.row(seed, {**settings, "foolbox": version("foolbox")})
        if not already_done(subject, attack, row, overwrite, teller, world):
            rows[attack] = row
    if not rows:
        return
    world.together(lambda: require_writable(subject.path.parent))
    x, y, _ = subject.test.everything()
    logits = clean_logits(subject.model, x, min(batch_size, len(x)))
    right = logit_margin(logits, y) < 0
    batches = right.nonzero().squeeze(1).split(batch_size) if right.any() else ()
    teller.note(f"AN-PGD on {len(x)} images, as the training's check runs it")
    margins = margins_of()
    found: dict[str, list[float]] = {}  # distances, by attack

    def attack_rows(attack: str, number: int) -> Part:
        its_seed = mixed_seed(seed, EVALUATE, number)
        return {"distances": attack_batch(subject, attack, steps[attack], batches[number], logits, its_seed)}

    for attack, row in rows.items():
        parts = Parts(subject, attack, len(batches), world, row["settings"], seed)
        its_longest = partial(longest, subject, attack, steps[attack])
        done = attack_batches(parts, batches, partial(attack_rows, attack), its_longest, attack, teller, world)
        if world.is_first:
            distances = torch.zeros(len(x), dtype=torch.float64)
            distances[right.cpu()] = torch.cat([distances[:0], *(part["distances"] for part in done)])
            found[attack] = distances.tolist()
            row["seconds"] = round(sum(part["seconds"] for part in done), 1)
            anpgd = compared(subject, right, margins, found)
            for name, its_distances in found.items():  # again, as the best known distance may have become shorter
                whole = {**rows[name], **clean_accuracy(right), **figures_of(its_distances), "anpgd": anpgd}
                whole["settings"] = {**rows[name]["settings"], "device": str(subject.device)}
                subject.add_rows(name, [whole])
        parts.close()
    if world.is_first:
        for line in table(subject, right, margins, found, {attack: row["seconds"] for attack, row in rows.items()}):
            teller.say(line)
    teller.say("written: " + ", ".join(str(subject.result_file(attack)) for attack in rows))


def longest(subject: Subject, attack: str, steps: int, rows: Tensor) -> float:
    """Seconds that the attack takes on (B,) rows if no search ends early, by a few steps of one search."""
    method = METHODS[attack, subject.norm]
    short = {name: 1 for name in method.options if name == "binary_search_steps"}
    x, y, _ = subject.test.batch(rows)
    started = time.monotonic()
    with untouched(subject.model, x.device):
        run = method.attack(**{**method.options, **short, "steps": TRIAL_STEPS})
        run(PyTorchModel(subject.model, bounds=(0, 1), device=x.device), x, y, epsilons=None)
    return (time.monotonic() - started) * steps / TRIAL_STEPS * method.searches


def attack_batch(subject: Subject, attack: str, steps: int, rows: Tensor, logits: Tensor, seed: int) -> Tensor:
    """(B,) rows -> (B,) float64 on the CPU: the shortest confirmed distances; logits (N, C): of all images."""
    method = METHODS[attack, subject.norm]
    x, y, _ = subject.test.batch(rows)
    with untouched(subject.model, x.device):
        torch.manual_seed(seed)  # DDN draws a direction where there is no gradient
        run = method.attack(**{"steps": steps, **method.options})
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


def figures_of(distances: Sequence[float]) -> Figures:
    """The part of a row that follows from the distances."""
    stored = [d if math.isfinite(d) else None for d in distances]
    broken = [d for d in stored if d is not None]
    return {
        **summary(distances),
        "not_found": len(stored) - len(broken),
        "mean_of_found": summary(broken)["mean"],
        "distances": stored,
    }


def best_known(subject: Subject, found: Mapping[str, Sequence[float]]) -> tuple[list[float], list[str]]:
    """(N,) the shortest distance of each image by `found`, (N,) by attack, and by the JSON beside the model, inf where
    there is none; and the attacks' names."""
    known = {}
    for attack in attacks_under(subject.norm):
        columns = [column for row in subject.rows(attack) if (column := _column(row, subject)) is not None]
        columns += [list(found[attack])] if attack in found else []
        if columns:
            known[attack] = [min(column) for column in zip(*columns, strict=True)]
    return [min(column) for column in zip(*known.values(), strict=True)], sorted(known)


def _column(row: Row, subject: Subject) -> list[float] | None:
    """(N,) a row's distances, inf where it has none; None if they are of other images."""
    n = len(subject.test)
    same = row.get("images") == subject.images and row["n"] == n
    same_order = subject.dataset != "imagefolder"  # the first ones, whichever size; else a selection
    if row["split"] != subject.split or not (same or same_order):
        return None
    cut = [math.inf if d is None else d for d in row["distances"][:n]]
    return cut + [math.inf] * (n - len(cut))


def compared(subject: Subject, right: Tensor, margins: Tensor, found: Mapping[str, Sequence[float]]) -> Figures:
    """AN-PGD's margins, (N,), and their ratio to the best known distances; right (N,) bool: without a perturbation.

    The ratio is over the images that are classified right, that an attack broke, and whose margin is not the end of
    AN-PGD's search, where nothing was found.
    """
    training = subject.training
    end, bracket = training.search_maxeps, training.search_maxeps / 2**training.check_search_steps
    at_end = (margins >= end - bracket).tolist()
    best, attacks = best_known(subject, found)
    ratios = [
        margin / distance
        for margin, distance, is_right, stuck in zip(margins.tolist(), best, right.tolist(), at_end, strict=True)
        if is_right and not stuck and 0 < distance < math.inf
    ]
    return {
        **summary(margins.tolist()),
        "search_end": end,
        "at_search_end": sum(at_end),
        "ratio": {**summary(ratios), "n": len(ratios), "below_1": sum(r < 1 for r in ratios), "best_of": attacks},
        "distances": margins.tolist(),
    }


def table(
    subject: Subject,
    right: Tensor,
    margins: Tensor,
    found: Mapping[str, Sequence[float]],
    seconds: Mapping[str, float],
) -> list[str]:
    """What to print at the end; seconds: by attack."""
    anpgd, (best, attacks) = compared(subject, right, margins, found), best_known(subject, found)
    ratio = anpgd["ratio"]

    def line(name: str, figures: Figures, *rest: str) -> str:
        values = [
            "not found" if value is None else f"{value:.4f}" for value in (figures["mean"], *figures["quartiles"])
        ]
        return f"{name:22}" + "".join(f"{value:>11}" for value in values) + "".join(rest)

    def missing(values: Sequence[float]) -> str:
        return f"{sum(math.isinf(value) for value in values):>11}"

    end = f"   (margins at the search's end, {anpgd['search_end']:.4g})"
    heads = ("mean", "25 %", "50 %", "75 %", "not found")
    accuracy = clean_accuracy(right)
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, on {subject.device}",
        f"clean accuracy {accuracy['clean_acc']:.2%}   {interval(accuracy['clean_ci95'])}",
        f"{f'smallest {subject.norm} distance':22}" + "".join(f"{head:>11}" for head in heads),
        *[line(name, summary(d), missing(d), f"   {seconds[name]:g} s") for name, d in found.items()],
        line("best known", summary(best), missing(best), f"   of {', '.join(attacks)}"),
        line("AN-PGD", anpgd, f"{anpgd['at_search_end']:>11}", end),
        line("AN-PGD / best known", ratio, f"{'':11}   over {ratio['n']} images; below 1 in {ratio['below_1']}"),
    ]
