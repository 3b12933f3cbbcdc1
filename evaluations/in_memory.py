"""Margins and robust accuracy of any network in memory, as torch.hub hands them out.

N images, B of them together, ... any image shape, C classes. Images in [0, 1]; eps is a radius in the same unit. The network
is any module from images to logits (N, C). It runs in eval mode and is left as it was; so are images and torch's generators.
A result that is pickled comes back as a plain namespace of the same names, as this file's code may not be at hand there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from anpgd import AnPgd, Search, Shortest
from evaluations.flags import PROTOCOLS
from evaluations.repeated_pgd import RESTARTS, clean_logits, repeated_pgd, skip_below_of
from evaluations.results import wilson
from losses import logit_margin, soft_logit_margin
from pgd import GEOMETRY, InnerPgd, pgd
from utils import per_row, untouched

PRECISION = 1e-4  # of max_eps: how near the boundary an adversarial image is looked for
HALVINGS = 16  # of [0, max_eps]: well below that
SURELY = 1e-5  # of the largest logit: rounding in another batch does not turn a larger margin


class Margins(NamedTuple):
    """The nearest adversarial image that was found of each image; one that is misclassified already is its own."""

    eps: Tensor  # (N,) its distance; infinite where none was found
    x_adv: Tensor  # (N, ...) in [0, 1]; the image itself where none was found
    found: Tensor  # (N,) bool: x_adv is misclassified; a tie and an output that is not a number count as that

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SimpleNamespace, **self._asdict()), ()


class RobustAccuracy(NamedTuple):
    """How many of N images are classified right and stay so."""

    accuracy: float  # their share, in [0, 1]
    flags: Tensor  # (N,) bool: no attack broke it
    interval: tuple[float, float]  # the 95 % Wilson interval of accuracy
    attack: str  # what attacked

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SimpleNamespace, **self._asdict()), ()


def margins(
    norm: str, max_eps: float, *, steps: int, projections: int, targets: int | Literal["all"], batch_size: int
) -> Callable[[nn.Module, Tensor, Tensor], Margins]:
    """AN-PGD, its answers confirmed by a pass of the network: model, x (N, ...), y (N,) -> `Margins`.

    steps: of PGD, in the ball of max_eps / 2. projections, targets: see `AnPgd`.

    :raises ValueError: for a setting that means nothing, and when called for images outside [0, 1] or labels of no class.
    """
    _require_radius(norm, "max_eps", max_eps)
    _require_whole(1, steps=steps, batch_size=batch_size)
    _require_whole(0, projections=projections, targets=0 if targets == "all" else targets)
    search = Search(logit_margin, max_eps, HALVINGS)
    anpgd = AnPgd(InnerPgd(norm, steps, soft_logit_margin), search, projections, targets)

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> Margins:
        with _examined(model, x, y, batch_size) as (x, y, logits):
            x_adv, found = x.clone(), _misclassified(logits, y)
            right = (~found).nonzero().squeeze(1)
            for rows in right.split(batch_size) if len(right) else ():
                shortest = anpgd(model, x[rows], y[rows], max_eps / 2)
                x_adv[rows], found[rows] = just_beyond(model, x[rows], y[rows], shortest, max_eps)
        return Margins(torch.where(found, GEOMETRY[norm].length(x_adv - x), math.inf), x_adv, found)

    return measure


def just_beyond(model: nn.Module, x: Tensor, y: Tensor, shortest: Shortest, max_eps: float) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,), all right, and what AN-PGD found -> (B, ...) images just beyond the boundary, within [0, 1] and max_eps,
    (B,) bool whether a pass of the network, which is in eval mode, says that they are misclassified; else the image itself."""
    x_adv, found = x, torch.zeros_like(y, dtype=torch.bool)
    for ahead in (1 / 4, 1 / 2, 1):  # on the boundary itself rounding decides
        eps = (shortest.eps + ahead * PRECISION * max_eps).clamp(max=max_eps)
        point = (x + per_row(eps, x) * shortest.direction).clamp(0, 1)
        with torch.no_grad():
            logits = model(point)
        new = ~found & _misclassified(logits, y, least=0 if ahead == 1 else SURELY)
        x_adv, found = torch.where(per_row(new, x), point, x_adv), found | new
    return x_adv, found


def robust_accuracy(
    norm: str,
    eps: float,
    *,
    protocol: str,
    attack: str,
    steps: int,
    restarts: int | None,
    step_size: float | None,
    seed: int,
    batch_size: int,
) -> Callable[[nn.Module, Tensor, Tensor], RobustAccuracy]:
    """Repeated PGD, or AutoAttack: model, x (N, ...), y (N,) -> `RobustAccuracy`.

    :raises ValueError: for a setting that means nothing, and when called for images outside [0, 1] or labels of no class.
    """
    _require_radius(norm, "eps", eps)
    _require_choice("protocol", protocol, PROTOCOLS)
    restarts = PROTOCOLS[protocol] if restarts is None else restarts
    _require_whole(1, steps=steps, restarts=restarts, batch_size=batch_size)
    _require_whole(0, seed=seed)
    _require_choice("attack", attack, ("pgd", "autoattack"))
    if step_size is None:  # few steps cross the ball too
        step_size = eps * (1 / 3 if protocol == "strong" else max(1 / 4, 2.5 / steps))
    else:
        _require_radius(norm, "step_size", step_size)
    how = RESTARTS[protocol](pgd, restarts, norm=norm, eps=eps, step_size=step_size, steps=steps)
    if attack == "autoattack":
        from evaluations.autoattack import stands  # and all that the evaluations load

    def measure(model: nn.Module, x: Tensor, y: Tensor) -> RobustAccuracy:
        with _examined(model, x, y, batch_size) as (x, y, logits):
            shared: dict[str, Any] = {"eps": eps, "seed": seed, "batch_size": min(batch_size, len(x))}
            if attack == "autoattack":
                flags, name = stands(model, x, y, logits, norm=norm, **shared)
            else:
                shared["skip_below"] = skip_below_of(protocol, logit_margin(logits, y))
                flags = repeated_pgd(model, x, y, torch.arange(len(x), device=x.device), restarts=how, **shared).robust
                name = f"PGD, {protocol} protocol, {steps} steps, {restarts} restarts"
        low, high = wilson(int(flags.sum()), len(flags))
        return RobustAccuracy(int(flags.sum()) / len(flags), flags, (float(low), float(high)), name)

    return measure


@contextmanager
def _examined(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The images, labels as whole numbers of 64 bits, and the (N, C) logits; inside, the network is frozen in eval mode, and
    neither autocast nor inference mode holds.

    :raises ValueError: if images, labels and network do not fit each other.
    """
    for name, given, kind in (("the network", model, nn.Module), ("images", x, Tensor), ("labels", y, Tensor)):
        if not isinstance(given, kind):
            raise ValueError(f"{name}: of type {type(given).__name__}: give a {kind.__module__}.{kind.__qualname__}")
    if not len(x) or not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        seen = f"{x.dtype}, from {x.min():.4g} to {x.max():.4g}" if x.numel() else "none"
        raise ValueError(
            f"images: {seen}: give floating-point numbers in [0, 1], and put any normalisation into the network"
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} or {x.dtype}
    if not types <= {torch.float32, torch.float64}:
        coarse = ", ".join(map(str, types))
        raise ValueError(
            f"the network: in {coarse}, too coarse for an attack to end at the boundary: give model.float()"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("the network: made in torch.inference_mode(), which has no gradients: make it outside")
    if x.dtype not in types:
        raise ValueError(f"images: {x.dtype}, the network is in {', '.join(map(str, types))}: give images of its type")
    if y.shape != x.shape[:1] or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels: {y.dtype} {tuple(y.shape)}: give {len(x)} whole numbers, one an image")
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False), untouched(model, x.device):
        x, y = x.detach().clone(), y.long()
        with torch.no_grad():
            answer = model(x[:1])
        if not isinstance(answer, Tensor):
            raise ValueError(
                f"the network: gives a {type(answer).__name__}, not logits: wrap it in a module that returns them"
            )
        logits = clean_logits(model, x, min(batch_size, len(x)))
        classes = logits.shape[1] if logits.dim() == 2 else 0
        if classes < 2:
            raise ValueError(f"the network: gives {tuple(logits.shape)} for {len(x)} images: two or more logits each")
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(f"labels: from {y.min()} to {y.max()}, but the network has the classes 0 to {classes - 1}")
        try:
            yield x, y, logits
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise ValueError("the network: no gradient reaches the images through it: let it not detach them") from None


def _misclassified(logits: Tensor, y: Tensor, least: float = 0) -> Tensor:
    """(B, C), (B,) -> (B,) bool: a wrong logit reaches the true one, by `least` of the largest, or is not a number."""
    return ~(logit_margin(logits, y) < least * logits.abs().amax(dim=1))


def _require_radius(norm: str, name: str, value: float) -> None:
    _require_choice("norm", norm, GEOMETRY)
    if not isinstance(value, int | float):
        raise ValueError(f"{name} {value!r}: must be a number")
    if not 0 < value < math.inf or (norm == "Linf" and value > 1):
        raise ValueError(f"{name} {value:g}: must be above 0 and {'at most 1' if norm == 'Linf' else 'finite'}")


def _require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in tuple(choices):
        raise ValueError(f"{name} {value!r}: choose one of {', '.join(choices)}")


def _require_whole(least: int, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} {value!r}: must be a whole number, at least {least}")
