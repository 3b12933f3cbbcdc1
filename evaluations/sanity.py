"""The sanity battery that stands beside every robust accuracy: signs that an attack or a network fools the evaluation.

After Carlini et al. 2019, "On evaluating adversarial robustness", and Tramer et al. 2020, "On adaptive attacks".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluations.accuracy import wilson
from evaluations.repeated_pgd import Images, Protocol, Running, clean_attacked, repeated_pgd
from evaluations.subject import Subject
from losses import cross_entropy, cw_loss, logit_margin
from records.reading import parse_json
from utils import frozen, row_norms

MOST_IMAGES, FEWEST_IMAGES = 100, 10
STEPS = 20
PASSES = 9 * STEPS  # forward and backward passes of the battery for each image, about
TOLERANCE = 0.01  # by which an accuracy may rise where it should fall: one point, or one image
NO_GRADIENT = "no gradient reaches the images"
OTHERS = ("square", "spsa", "transfer", "autoattack")


class Finding(NamedTuple):
    """One check: ok None is "not run"; `value` says what was seen."""

    ok: bool | None
    value: str


def images_for(passes: int) -> int:
    """How many images the battery may use: at most 100, and a tenth of the work of an evaluation that took `passes`
    passes over an image; at least 10, so that it can say anything."""
    return max(FEWEST_IMAGES, min(MOST_IMAGES, int(passes / 10 / PASSES)))


def battery(
    subject: Subject,
    eps: float,
    x_adv: Tensor | None,
    robust: Tensor,
    count: int,
    others: Sequence[str] = OTHERS,
    batch_size: int = MOST_IMAGES,
) -> dict[str, Finding]:
    """Every check, by name, on the first `count` images at radius `eps`.

    x_adv (N, ...), robust (N,): the evaluation's perturbed images, None if it checked them itself, and which stand. others:
    the attacks that should not be stronger than it. batch_size: images that pass through the network together.
    """
    model = subject.model
    everything = subject.test.everything()
    x, y = everything.x[:count], everything.y[:count]
    count = len(x)
    found = {
        "inputs in [0, 1]": _in_range(everything.x, *([] if x_adv is None else [x_adv])),
        "network": _network(subject, x, batch_size),
        "gradients": _gradients(subject, x, y, batch_size),
    }
    if x_adv is not None:
        found["perturbations within eps"] = _within(everything.x, x_adv, eps, subject.norm)
    with torch.no_grad():
        clean = float((logit_margin(_logits(model, x, batch_size), y) < 0).float().mean())
    largest = 1.0 if subject.norm == "Linf" else math.sqrt(x[0].numel())
    others_found = {f"{name} not stronger": _other(subject, name, eps, robust) for name in others}
    if found["gradients"].value == NO_GRADIENT:
        return found | others_found
    at = {
        name: _accuracy(subject, x, y, batch_size, *setting)
        for name, setting in {
            "zero": (0.0, 1, 1),
            "half": (eps / 2, STEPS, 1),
            "eps": (eps, STEPS, 1),
            "few steps": (eps, STEPS // 4, 1),
            "restarts": (eps, STEPS, 3),
            "all": (largest, 2 * STEPS, 1),
        }.items()
    }
    found |= {
        "eps 0 gives clean accuracy": Finding(at["zero"] == clean, f"{at['zero']:.1%} and {clean:.1%}"),
        "a huge eps leaves about none": Finding(at["all"] <= 0.1, f"{at['all']:.1%} at {largest:.4g}"),
        "falls with eps": _falls(count, at["half"], at["eps"], f"eps {eps / 2:.4g}", f"{eps:.4g}"),
        "falls with steps": _falls(count, at["few steps"], at["eps"], f"{STEPS // 4} steps", f"{STEPS}"),
        "falls with restarts": _falls(count, at["eps"], at["restarts"], "1 restart", "3"),
    }
    return found | others_found


def lines(found: dict[str, Finding]) -> list[str]:
    """What to print: one line if all is well, and a warning for each failed check."""
    failed = [
        f"WARNING: sanity check failed: {name}: {finding.value}"
        for name, finding in found.items()
        if finding.ok is False
    ]
    absent = [name for name, finding in found.items() if finding.ok is None]
    passed = sum(finding.ok is True for finding in found.values())
    return [
        f"sanity: {passed} checks passed, {len(failed)} failed" + (f"; not run: {', '.join(absent)}" if absent else ""),
        *failed,
    ]


def as_json(found: dict[str, Finding]) -> dict:
    """What the JSON of an evaluation holds under `sanity`."""
    return {name: finding._asdict() for name, finding in found.items()}


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([model(part) for part in x.split(batch_size)])


def _accuracy(subject: Subject, x: Tensor, y: Tensor, batch_size: int, eps: float, steps: int, restarts: int) -> float:
    images, run = Images(x, y, subject.test.numbers[: len(x)]), Running(min(batch_size, len(x)))
    losses = tuple((cross_entropy, cw_loss)[restart % 2] for restart in range(restarts))
    protocol = Protocol(losses, subject.norm, eps, 2.5 * eps / steps, steps, seed=0)
    state = repeated_pgd(subject.model, images, protocol, clean_attacked(subject.model, images, run), run)
    return float(state.robust.float().mean())


def _falls(count: int, before: float, after: float, less: str, more: str) -> Finding:
    return Finding(after <= before + max(TOLERANCE, 1 / count) + 1e-9, f"{before:.1%} at {less}, {after:.1%} at {more}")


def _in_range(*images: Tensor) -> Finding:
    low, high = (float(f(torch.stack([f(i) for i in images]))) for f in (torch.min, torch.max))
    return Finding(low >= -1e-6 and high <= 1 + 1e-6, f"{low:.4g} to {high:.4g}")


def _within(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> Finding:
    delta = (x_adv - x).flatten(1)
    length = float((delta.abs().amax(1) if norm == "Linf" else row_norms(delta)).max())
    return Finding(length <= eps * (1 + 1e-4) + 1e-6, f"largest {length:.6g} of {eps:.6g}")


def _network(subject: Subject, x: Tensor, batch_size: int) -> Finding:
    """In eval mode, deterministic, and giving logits: rows that are no probabilities, or their logarithms."""
    with torch.no_grad():
        first, second = _logits(subject.model, x, batch_size), _logits(subject.model, x, batch_size)
    wrong = []
    if any(module.training for module in subject.model.modules()):
        wrong.append("not in eval mode")
    if not torch.isfinite(first).all():
        wrong.append("outputs are not finite")
    elif not torch.equal(first, second):
        wrong.append("not deterministic")
    ones = torch.ones(len(x), device=x.device)
    if (first >= 0).all() and torch.allclose(first.sum(1).float(), ones, atol=1e-3):
        wrong.append("outputs are probabilities, not logits")
    if torch.allclose(first.exp().sum(1).float(), ones, atol=1e-3):
        wrong.append("outputs are log-probabilities, not logits")
    return Finding(not wrong, ", ".join(wrong) or "logits, deterministic, eval mode")


def _gradients(subject: Subject, x: Tensor, y: Tensor, batch_size: int) -> Finding:
    """The share of images at which cross-entropy has no gradient: zero, or not a number."""
    norms = []
    with frozen(subject.model), torch.enable_grad():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            images = images.detach().requires_grad_()
            loss = cross_entropy(subject.model(images), labels).sum()
            if not loss.requires_grad:
                return Finding(False, NO_GRADIENT)
            norms.append(row_norms(torch.autograd.grad(loss, images)[0]))
    norms = torch.cat(norms)
    share = float((~torch.isfinite(norms) | (norms == 0)).float().mean())
    return Finding(share <= 0.05, f"{share:.1%} zero or not finite")


def _other(subject: Subject, attack: str, eps: float, robust: Tensor) -> Finding:
    """Whether the evaluation by `attack` that lies beside the model, if any, is not stronger than this one by more than
    the interval, on the images that both saw."""
    try:
        result = parse_json(subject.result_file(attack).read_text())
        flags = [row["flags"] for row in result["results"] if math.isclose(row["eps"], eps, rel_tol=1e-6)]
        if (result["model_sha256"], result["dataset"]) != (subject.sha256, subject.dataset) or not flags:
            return Finding(None, "not run at this eps on this checkpoint")
        if subject.dataset == "imagefolder" and len(flags[0]) != len(
            robust
        ):  # a smaller test set is drawn, not the first
            return Finding(None, "not run on the same images")
        count = min(len(flags[0]), len(robust))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, ZeroDivisionError):
        return Finding(None, "not run")
    standing = int(robust[:count].sum())
    theirs = flags[0][:count].count("1") / count
    return Finding(
        bool(theirs >= wilson(standing, count)[0]), f"{theirs:.1%}, PGD {standing / count:.1%}, on {count} images"
    )
