"""The sanity battery that stands beside every robust accuracy: signs that an attack or a network fools the evaluation.

After Carlini et al. 2019, "On evaluating adversarial robustness", and Tramer et al. 2020, "On adaptive attacks". The attack
under test is the very object of the evaluation, with its graph and its precision; plain PGD is `pgd` in float32, from the
same starts, with the same steps. N images, ... any image shape; images in [0, 1]; eps in the same unit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from evaluations.compare_attacks import gaps, rows_by
from evaluations.repeated_pgd import AttackState
from evaluations.results import as_flags
from evaluations.subject import Subject
from losses import cross_entropy, logit_margin
from pgd import GEOMETRY, PgdFn, pgd
from utils import SANITY, frozen, radius_text, row_noise, row_norms, spread_rows

COUNT = 100  # images of the battery
STEPS = 20  # of plain PGD on its own
TOLERANCE = 0.01  # by which an accuracy may rise where it should fall: one point, or one image
FEW = 20  # images: fewer say nothing about chance
CHANCE = 0.005  # that two attacks of equal strength differ so much
NO_GRADIENT = "no gradient reaches the images"
NOT_STRONGER = ("square", "spsa", "transfer")  # whose success where PGD fails means that gradients mislead it


Finding = dict[str, Any]  # `ok`: None is "not run"; `value`: what was seen; as the JSON holds it
Findings = dict[str, Finding]  # by the check's name


def finding(ok: bool | None, value: str) -> Finding:
    """What one check found."""
    return {"ok": ok, "value": value}


def lines(found: Findings) -> list[str]:
    """What to print of a row's `sanity`: one line if all is well, and a warning for each failed check."""
    failed = [name for name, check in found.items() if check["ok"] is False]
    absent = [name for name, check in found.items() if check["ok"] is None]
    passed = len(found) - len(failed) - len(absent)
    return [
        f"sanity: {passed} checks passed, {len(failed)} failed" + (f"; not run: {', '.join(absent)}" if absent else ""),
        *(f"WARNING: sanity check failed: {name}: {found[name]['value']}" for name in failed),
    ]


# --- of any attack -------------------------------------------------------------------------------------------------


def battery(subject: Subject, eps: float, batch_size: int, robust: Tensor | None = None) -> Findings:
    """The checks of any attack, by name, on a hundred images, evenly spread, at radius `eps`.

    batch_size: images that pass through the network together. robust (N,) bool: which stand after an attack that should be
    as strong as plain PGD, None where it need not be.
    """
    model, batch_size = subject.model, min(batch_size, COUNT)
    everything = subject.test.everything()
    rows = spread_rows(len(everything.y), COUNT).to(everything.y.device)
    x, y, index = (part[rows] for part in everything)
    logits, again, in_few = (_logits(model, x, size) for size in (batch_size, batch_size, max(1, batch_size // 7)))
    # BatchNorm of the batch's own statistics makes them depend on the images beside.
    apart = float((logits - in_few).abs().max() / logits.abs().max().clamp(min=1e-12))
    seen = f"{apart:.2g} of the largest logit between batches of two sizes"
    found = {
        "inputs in [0, 1]": _in_range(everything.x),
        "network": _network(model, logits, again),
        "an image's logits are its own": finding(not apart > 1e-3, seen),
        "gradients": _gradients(model, x, y, batch_size),
    }
    if found["gradients"]["value"] == NO_GRADIENT:
        return found
    wrong = ~(logit_margin(logits, y) < 0)

    found |= _clean_accuracy(~wrong, logits.shape[1], subject.accuracy)

    def broken(radius: float, steps: int = STEPS) -> Tensor:
        """(N,) bool: by one random start of plain PGD, misclassified images included."""
        how = {"loss_fn": cross_entropy, "norm": subject.norm, "step_size": 2.5 * radius / steps, "steps": steps}
        x_adv = torch.cat(_one_start(pgd, model, x, y, index, 0, batch_size, eps=radius, **how))
        return wrong | _broken(model, x_adv, y, batch_size)

    nothing, half, whole, few = broken(0.0, 1), broken(eps / 2), broken(eps), broken(eps, STEPS // 4)
    largest = 1.0 if subject.norm == "Linf" else math.sqrt(x[0].numel())  # it reaches every image
    for steps in (STEPS // 2, 2 * STEPS):  # more where the usual ones do not suffice
        huge = broken(largest, steps)
        if none_left := bool((~huge).float().mean() <= 0.1):
            break
    classes, seen = logits.argmax(1).unique(), f"{_left(huge)} at {largest:.4g}"
    if not none_left and len(classes) == 1 < len(x):
        seen += f"; it says class {subject.class_name(classes)} of every image"
    found |= {
        "eps 0 gives clean accuracy": finding(torch.equal(nothing, wrong), f"{_left(nothing)} and {_left(wrong)}"),
        "a huge eps leaves about none": finding(none_left, seen),
        "falls with eps": _falls(half, whole, f"eps {radius_text(eps / 2)}", radius_text(eps)),
        "falls with steps": _falls(few, whole, f"{STEPS // 4} steps", f"{STEPS}"),
    }
    if robust is not None:
        found["plain PGD breaks no more"] = _no_more(~robust[rows], whole, ("the evaluation", "plain PGD"))
    return found


def _clean_accuracy(right: Tensor, classes: int, said: float | None) -> Findings:
    """right (N,) bool: better than a guess among the classes; not below what the file says, if it says one, by more than
    chance and five points."""
    count, accuracy, chance = int(right.sum()), float(right.float().mean()), 1 / classes
    guess = finding(None, f"{len(right)} images are too few to tell")
    if len(right) >= FEW:
        by_luck = binomtest(count, len(right), chance, alternative="greater").pvalue
        seen = f"{accuracy:.1%}, by guessing {chance:.1%}: see --standardise, --dataset and the order of the classes"
        guess = finding(bool(by_luck < 0.05), seen)
    stored = finding(None, "the file says none")
    if said is not None:
        lower_by_luck = binomtest(count, len(right), said, alternative="less").pvalue
        seen = f"{accuracy:.1%} here, {said:.1%} in the file: see --standardise"
        stored = finding(bool(accuracy > said - 0.05 or lower_by_luck > CHANCE), seen)
    return {"clean accuracy above chance": guess, "clean accuracy as the file says": stored}


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch_size)])


def _broken(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """(N,) bool: not classified right; an output that is not a number counts as that."""
    return ~(logit_margin(_logits(model, x, batch_size), y) < 0)


def _one_start(
    attack: PgdFn, model: nn.Module, x: Tensor, y: Tensor, index: Tensor, seed: int, batch_size: int, **how: Any
) -> list[Tensor]:
    """What the attack, told how, makes of each batch of (N, ...) images from one random start; index (N,): their numbers."""
    made = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        noise = row_noise(index[rows], x.shape[1:], seed, SANITY).to(x)
        made.append(attack(model, x[rows], y[rows], **how, noise=noise).clone())  # a graph's holds for a while
    return made


def _left(broken: Tensor) -> str:
    return f"{float((~broken).float().mean()):.1%}"


def _falls(before: Tensor, after: Tensor, less: str, more: str) -> Finding:
    rise = float(before.float().mean() - after.float().mean())
    ok = rise <= max(TOLERANCE, 1 / len(before)) + 1e-9
    return finding(ok, f"{_left(before)} at {less}, {_left(after)} at {more}")


def _in_range(*images: Tensor) -> Finding:
    low, high = (float(f(torch.stack([f(i) for i in images]))) for f in (torch.min, torch.max))
    return finding(low >= -1e-6 and high <= 1 + 1e-6, f"{low:.4g} to {high:.4g}")


def _network(model: nn.Module, first: Tensor, second: Tensor) -> Finding:
    """In eval mode, deterministic, and giving logits (N, C), of two passes: rows that are no probabilities. Their logarithms
    are logits."""
    finite, ones = bool(torch.isfinite(first).all()), torch.ones(len(first), device=first.device)
    seen = {
        "not in eval mode": any(module.training for module in model.modules()),
        "outputs are not a number": first.isnan().any(),
        "outputs are infinite: give a class that cannot be a large negative logit, as -1e4": first.isinf().any(),
        "not deterministic": finite and not torch.equal(first, second),
        "outputs are probabilities, not logits": (first >= 0).all()
        and torch.allclose(first.sum(1).float(), ones, atol=1e-3),
    }
    wrong = [what for what, is_so in seen.items() if is_so]
    return finding(not wrong, ", ".join(wrong) or "logits, deterministic, eval mode")


def _gradients(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Finding:
    """Whether cross-entropy has a gradient, neither zero nor not a number, at more than 95 % of the images."""
    found = []
    with frozen(model), torch.enable_grad():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            images = images.detach().requires_grad_()
            loss = cross_entropy(model(images), labels).sum()
            if not loss.requires_grad:
                return finding(False, NO_GRADIENT)
            found.append(row_norms(torch.autograd.grad(loss, images)[0]))
    norms = torch.cat(found)
    without = int((~torch.isfinite(norms) | (norms == 0)).sum())
    return finding(20 * without < len(norms), f"{without / len(norms):.1%} zero or not finite")


def _no_more(broken: Tensor, other: Tensor, names: tuple[str, str]) -> Finding:
    """Whether `other` does not break more of the same images than `broken`, (N,) bool both, beyond chance.

    McNemar's exact test: if both were equally strong, images that only one of them breaks would be either's alike.
    """
    alone, differ = int((other & ~broken).sum()), int((other ^ broken).sum())
    chance = binomtest(alone, differ, 0.5, alternative="greater").pvalue if differ else 1.0
    first, second = (f"{name} leaves {_left(flags)}" for name, flags in zip(names, (broken, other), strict=True))
    return finding(bool(chance > CHANCE), f"{first}, {second} of the same {len(broken)} images")


# --- of repeated PGD -----------------------------------------------------------------------------------------------


def pgd_battery(
    subject: Subject, attack: PgdFn, how: dict[str, Any], seed: int, batch_size: int, state: AttackState
) -> Findings:
    """Every check of repeated PGD, by name.

    attack, how: the very attack that made `state` of all N images, and its loss_fn, norm, eps, step_size and steps. The
    same hundred images are attacked again, by that attack and by plain PGD.
    """
    x = subject.test.everything().x
    found = battery(subject, how["eps"], batch_size, state.robust)
    weaker = found.get("plain PGD breaks no more", finding(None, ""))
    if weaker["ok"] is False and how["steps"] * how["step_size"] < 2 * how["eps"]:
        few = f"{how['steps']} steps of {how['step_size']:.3g} cannot cross the ball: leave --eps_iter out, or raise it"
        weaker["value"] += f"; {few}"
    length = float(GEOMETRY[how["norm"]].length(state.x_adv - x).max())
    within = length <= how["eps"] * (1 + 1e-4) + 1e-6
    found["perturbations within eps"] = finding(within, f"largest {length:.6g} of {how['eps']:.6g}")
    found["inputs in [0, 1]"] = _in_range(x, state.x_adv)
    if found["gradients"]["value"] != NO_GRADIENT and how["eps"] > 0:
        found |= _attack_checks(subject, attack, how, seed, batch_size, state)
    return found | {
        f"{name} not stronger": not_stronger(subject, name, how["eps"], state.robust) for name in NOT_STRONGER
    }


def not_stronger(subject: Subject, attack: str, eps: float, robust: Tensor) -> Finding:
    """Whether the other attack's figure beside the model, if any, does not lie below the interval of this one."""
    row = subject.row(0, {}, eps, flags=as_flags(robust))
    other_rows = rows_by(subject, attack) if subject.split == "test" else []
    for gap in gaps(attack, subject.dataset, [row], other_rows):
        return finding(not gap.beyond_chance, f"{gap.other:.1%}, PGD {gap.pgd:.1%}, on {gap.n} images")
    return finding(None, "not run on these images, at this eps, on this checkpoint")


def _attack_checks(
    subject: Subject, attack: PgdFn, how: dict[str, Any], seed: int, batch_size: int, state: AttackState
) -> Findings:
    """One start of the attack under test and of plain PGD on the same images, compared in every way that can go wrong."""
    model, geometry = subject.model, GEOMETRY[how["norm"]]
    everything = subject.test.everything()
    rows = spread_rows(len(everything.y), COUNT).to(everything.y.device)
    x, y, index = (part[rows] for part in everything)
    size = max(1, min(batch_size, (len(x) + 1) // 2))  # two batches at least: an answer to another batch is seen
    given = model, x, y, index, seed, size
    starts, answers = _one_start(pgd, *given, **{**how, "steps": 0}), _one_start(attack, *given, **how)
    start, made, plain = torch.cat(starts), torch.cat(answers), torch.cat(_one_start(pgd, *given, **how))
    start_loss, loss, plain_loss = (how["loss_fn"](_logits(model, x_adv, size), y) for x_adv in (start, made, plain))
    broken, by_plain = (_broken(model, x_adv, y, size) for x_adv in (made, plain))
    again = _broken(model, state.x_adv[rows], y, batch_size)

    def as_many(ours: Tensor, theirs: Tensor, verb: str) -> Finding:
        """(N,) bool both: at least half as many images as plain PGD."""
        count, count_of_plain = int(ours.sum()), int(theirs.sum())
        return finding(count >= count_of_plain / 2, f"{count} of {len(x)} images {verb}, by plain PGD {count_of_plain}")

    def moved(away_from: Tensor, least: float) -> Finding:
        ours, theirs = (geometry.length(x_adv - away_from) > least * how["eps"] for x_adv in (made, plain))
        return as_many(ours, theirs, "moved")

    way, plain_way = (float(row_norms(x_adv - start).double().mean()) for x_adv in (made, plain))
    # The same answer to two batches that began elsewhere is an answer to neither.
    wrong = sum(
        torch.equal(answers[0][: len(answer)], answer) and not torch.equal(starts[0][: len(answer)], begun)
        for answer, begun in zip(answers[1:], starts[1:], strict=True)
    )
    return {
        "the attack moves the images": moved(x, 0.01),
        "the attack leaves its start": moved(start, 1e-4),
        "the attack takes whole steps": finding(
            way >= plain_way / 2, f"{way:.3g} from its start in the mean, plain PGD {plain_way:.3g} (Euclidean)"
        ),
        "the attack raises its loss": as_many(loss > start_loss, plain_loss > start_loss, "raised"),
        "the attack answers for its own batch": finding(not wrong, f"{wrong} later batches got the first one's answer")
        if len(answers) > 1
        else finding(None, "one image only"),
        "the attack breaks what plain PGD breaks": _no_more(broken, by_plain, ("it", "plain PGD")),
        "judged on the perturbed images": _no_more(
            ~state.robust[rows], again | broken, ("the evaluation", "its attack, judged again,")
        ),
    }
