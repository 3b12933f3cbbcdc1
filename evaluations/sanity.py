"""The sanity battery that stands beside every robust accuracy: signs that an attack or a network fools the evaluation.

After Carlini et al. 2019, "On evaluating adversarial robustness", and Tramer et al. 2020, "On adaptive attacks".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evaluations.attack_checks import attack_checks, no_more
from evaluations.findings import Finding, Findings, as_json, lines
from evaluations.others import not_stronger
from evaluations.repeated_pgd import Attacked, Images, Protocol, Running
from evaluations.subject import Subject
from losses import cross_entropy, logit_margin
from pgd import pgd
from utils import SANITY, frozen, row_noise, row_norms

__all__ = ["Finding", "as_json", "battery", "lines", "pgd_battery"]  # all that an evaluation needs

COUNT = 100  # images of the battery
STEPS = 20
TOLERANCE = 0.01  # by which an accuracy may rise where it should fall: one point, or one image
NO_GRADIENT = "no gradient reaches the images"
OTHERS = ("square", "spsa", "transfer")  # whose success where white-box PGD fails means that gradients mislead it


def pgd_battery(subject: Subject, protocol: Protocol, run: Running, state: Attacked) -> Findings:
    """Every check of repeated PGD, by name; `run` holds the very attack that made `state` of all N test images.

    The first hundred images are attacked again, by that attack and by plain PGD.
    """
    x, y, index = subject.test.everything()
    images = Images(x[:COUNT], y[:COUNT], index[:COUNT])
    first = Attacked(state.x_adv[:COUNT], state.margin[:COUNT])
    found = battery(subject, protocol.eps, run.batch_size, first.robust)
    found["perturbations within eps"] = _within(x, state.x_adv, protocol.eps, protocol.norm)
    found["inputs in [0, 1]"] = _in_range(x, state.x_adv)
    if found["gradients"].value != NO_GRADIENT:
        found |= attack_checks(subject.model, images, protocol, run, first)
    return found | {f"{name} not stronger": not_stronger(subject, name, protocol.eps, state.robust) for name in OTHERS}


def battery(subject: Subject, eps: float, batch_size: int, robust: Tensor | None = None) -> Findings:
    """The checks of any attack, by name, on the first hundred test images at radius `eps`.

    batch_size: images that pass through the network together. robust (N,): which stand after an attack that should be
    as strong as plain PGD, None where it need not be.
    """
    everything = subject.test.everything()
    images = Images(*(part[:COUNT] for part in (everything.x, everything.y, subject.test.numbers)))
    batch_size = min(batch_size, COUNT)
    found = {
        "inputs in [0, 1]": _in_range(everything.x),
        "network": _network(subject, images.x, batch_size),
        "gradients": _gradients(subject, images.x, images.y, batch_size),
    }
    if found["gradients"].value == NO_GRADIENT:
        return found

    def broken(radius: float, steps: int = STEPS) -> Tensor:
        return _broken(subject, images, batch_size, radius, steps)

    with torch.no_grad():
        wrong = ~(logit_margin(_logits(subject.model, images.x, batch_size), images.y) < 0)
    nothing, half, whole, few = broken(0.0, 1), broken(eps / 2), broken(eps), broken(eps, STEPS // 4)
    found |= {
        "eps 0 gives clean accuracy": Finding(torch.equal(nothing, wrong), f"{_left(nothing)} and {_left(wrong)}"),
        "a huge eps leaves about none": _huge(subject, images, batch_size),
        "falls with eps": _falls(half, whole, f"eps {eps / 2:.4g}", f"{eps:.4g}"),
        "falls with steps": _falls(few, whole, f"{STEPS // 4} steps", f"{STEPS}"),
    }
    if robust is not None:
        found["plain PGD breaks no more"] = no_more(~robust[:COUNT], whole, ("the evaluation", "plain PGD"))
    return found


def _broken(subject: Subject, images: Images, batch_size: int, eps: float, steps: int) -> Tensor:
    """(N,) bool: what one random start of plain PGD breaks, misclassified images included."""
    found = []
    for rows in torch.arange(len(images.x), device=images.x.device).split(batch_size):
        x, y = images.x[rows], images.y[rows]
        x_adv = pgd(
            subject.model,
            x,
            y,
            loss_fn=cross_entropy,
            norm=subject.norm,
            eps=eps,
            step_size=2.5 * eps / steps,
            steps=steps,
            noise=row_noise(images.index[rows], x.shape[1:], 0, SANITY).to(x),
        )
        with torch.no_grad():
            found.append(~((logit_margin(subject.model(x), y) < 0) & (logit_margin(subject.model(x_adv), y) < 0)))
    return torch.cat(found)


def _left(broken: Tensor) -> str:
    return f"{float((~broken).float().mean()):.1%}"


def _huge(subject: Subject, images: Images, batch_size: int) -> Finding:
    """At the radius that reaches every image; with more steps where the usual ones do not suffice."""
    largest = 1.0 if subject.norm == "Linf" else math.sqrt(images.x[0].numel())
    for steps in (STEPS // 2, 2 * STEPS):
        left = ~_broken(subject, images, batch_size, largest, steps)
        if left.float().mean() <= 0.1:
            break
    ok = bool(left.float().mean() <= 0.1)
    with torch.no_grad():
        said = _logits(subject.model, images.x, batch_size).argmax(1).unique()
    why = f"; it says class {int(said)} of every image" if not ok and len(said) == 1 < len(images.x) else ""
    return Finding(ok, f"{_left(~left)} at {largest:.4g}{why}")


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    return torch.cat([model(part) for part in x.split(batch_size)])


def _falls(before: Tensor, after: Tensor, less: str, more: str) -> Finding:
    rise = float(before.float().mean() - after.float().mean())
    ok = rise <= max(TOLERANCE, 1 / len(before)) + 1e-9
    return Finding(ok, f"{_left(before)} at {less}, {_left(after)} at {more}")


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
    """Whether cross-entropy has a gradient, neither zero nor not a number, at more than 95 % of the images."""
    found = []
    with frozen(subject.model), torch.enable_grad():
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            images = images.detach().requires_grad_()
            loss = cross_entropy(subject.model(images), labels).sum()
            if not loss.requires_grad:
                return Finding(False, NO_GRADIENT)
            found.append(row_norms(torch.autograd.grad(loss, images)[0]))
    norms = torch.cat(found)
    without = int((~torch.isfinite(norms) | (norms == 0)).sum())
    return Finding(20 * without < len(norms), f"{without / len(norms):.1%} zero or not finite")
