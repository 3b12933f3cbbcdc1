"""The ensemble of AutoAttack (Croce & Hein 2020), by the package pyautoattack. B batch, ... any image shape."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from errors import UserError
from evaluations.external_attacks import square_starts, verified
from evaluations.flags import choose
from losses import logit_margin
from utils import EVALUATE, mixed_seed

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 4, "square": 2}  # that each needs at least
MOST_TARGETS = 9


def choose_ensemble(
    norm: str, shape: Sequence[int], classes: int, attacks: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The standard ensemble less what cannot run on such a network of (C, H, W) images, or a list of attacks: settings for
    the JSON, which say all, and what the user should be told.

    :raises UserError: if an attack of that list cannot run.
    """
    reasons = {
        name: f"{name} needs at least {least} classes, and here are {classes}"
        for name, least in CLASSES.items()
        if classes < least
    }
    if not square_starts(norm, *shape[1:]):
        reasons["square"] = f"square cannot start on {shape[1]}x{shape[2]} images under L2"
    names = choose(attacks, list(CLASSES)) if attacks else [name for name in STANDARD if name not in reasons]
    if wrong := [name for name in names if name in reasons]:
        raise UserError(f"--attacks {attacks}: {reasons[wrong[0]]}: leave it out")
    standard = not attacks and names == list(STANDARD)
    settings = {
        "attacks": names,
        "version": "custom" if attacks else "standard",  # by the package's budgets for a list of the user's own
        "standard": standard,
        "name": "AutoAttack" if standard else "not standard AutoAttack",
        "targets": min(MOST_TARGETS, classes - 1),  # wrong classes that the targeted attacks try
        "package": f"pyautoattack {version('pyautoattack')}",
    }
    why = ["--attacks is a list of your own"] if attacks else [reasons[name] for name in STANDARD if name in reasons]
    return settings, [f"not standard AutoAttack: {reason}" for reason in why]


def run_ensemble(
    model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any], *, norm: str, eps: float, seed: int
) -> tuple[Tensor, list[str]]:
    """(B, ...), (B,), all classified right -> what the package's attacks find, with its warnings.

    settings: of `choose_ensemble`; no more target classes than there are.
    """
    how = {"version": settings["version"], "norm": norm, "eps": eps, "seed": seed, "device": x.device}
    trace = sys.gettrace()  # the package takes away a debugger's or coverage's
    with package_log() as warnings:
        ensemble = AutoAttack(model, **how)
        ensemble.attacks_to_run = settings["attacks"]
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = settings["targets"]
        try:
            x_adv, _ = ensemble.run_standard_evaluation(x, y, batch_size=len(y))
        finally:
            sys.settrace(trace)
    return x_adv.detach(), list(warnings.values())


@contextmanager
def package_log() -> Iterator[dict[str, str]]:
    """Silence the package's logger; give its warnings, of those that differ in numbers only the first."""
    logger, warnings = logging.getLogger("auto-attack"), dict[str, str]()

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            text = record.getMessage().replace(" See flags_doc.md for details.", "")
            warnings.setdefault(re.sub(r"[\d.]+", "#", text), f"pyautoattack on one shard: {text}")
        return False

    logger.addFilter(keep)
    try:
        yield warnings
    finally:
        logger.removeFilter(keep)


def stands(
    model: nn.Module, x: Tensor, y: Tensor, logits: Tensor, *, norm: str, eps: float, seed: int, batch_size: int
) -> tuple[Tensor, str]:
    """(N, C, H, W), (N,), (N, classes) clean logits -> (N,) bool: right, and the ensemble does not break it; and its name.

    :raises ValueError: for images of another shape or type.
    """
    if x.dim() != 4:
        raise ValueError(f"images: {tuple(x.shape)}: AutoAttack needs them as (N, channels, height, width)")
    if x.dtype != torch.float32:
        raise ValueError(
            f"images and network: in {x.dtype}, AutoAttack works in float32: give model.float(), x.float()"
        )
    settings, notes = choose_ensemble(norm, x.shape[1:], logits.shape[1])
    robust = logit_margin(logits, y) < 0
    right = robust.nonzero().squeeze(1)
    for number, rows in enumerate(right.split(batch_size) if len(right) else ()):
        its_seed = mixed_seed(seed, EVALUATE, number)
        x_adv, _ = run_ensemble(model, x[rows], y[rows], settings, norm=norm, eps=eps, seed=its_seed)
        robust[rows], _ = verified(model, x[rows], y[rows], x_adv, norm=norm, eps=eps)
    return robust, "; ".join(notes) or settings["name"]
