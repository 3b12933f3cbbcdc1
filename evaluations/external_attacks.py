"""Robust accuracy by an attack of another package, a shard of images at a time.

A shard is `batch_size` consecutive images, attacked together. Its random draws are a function of (seed, shard), so that a
stopped evaluation goes on to the flags of an uninterrupted one. B batch, N images, ... any image shape; images in [0, 1];
eps in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluations import sanity
from evaluations.compare_attacks import overestimates
from evaluations.flags import EvaluationFlags
from evaluations.repeated_pgd import clean_logits
from evaluations.results import Row, accuracy_lines, as_flags, finished, merged, require_writable
from evaluations.shards import Part, Parts, already_done, attack_batches
from evaluations.subject import Subject
from losses import logit_margin
from pgd import GEOMETRY
from processes.distributed import World
from records.progress import Teller
from utils import EVALUATE, mixed_seed, untouched
from validation import radius

EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection
RANGE_TOLERANCE = 1e-6  # rounding of x + delta at 0 and 1


@dataclass(frozen=True)
class ExternalAttack:
    """An attack of another package, at one radius."""

    name: str  # as in the name of the JSON
    title: str  # for people
    eps: float
    settings: Mapping[str, Any]  # for the JSON: what makes two results comparable
    run: Callable[[Tensor, Tensor, int], tuple[Tensor, list[str]]]  # x, y, seed -> x_adv, warnings
    longest: Callable[[Tensor, Tensor], float]  # x (B, ...), y (B,) -> seconds it takes at most, by a short trial


def settled_eps(eps: float | None, subject: Subject, teller: Teller, world: World) -> float:
    """The radius in input units; what the user should know of it is said.

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if eps is None:
        teller.note(f"--eps not given: {subject.training.test_eps:.5g}, the test radius of its training")
        return subject.training.test_eps
    settled, notes = world.together(lambda: radius(eps, subject.dataset, subject.norm, "eps"))
    for note in notes:
        teller.note(note)
    return settled


def evaluate(
    attack: ExternalAttack, flags: EvaluationFlags, batch_size: int, subject: Subject, teller: Teller, world: World
) -> None:
    """Attack shard after shard, keep each, write the JSON beside the model, and say all that a user wants to know.

    :raises UserError: if the folder cannot be written.
    """
    row = subject.row(flags.seed, attack.settings, attack.eps)
    if already_done(subject, attack.name, row, flags.overwrite, teller, world):
        return
    world.together(lambda: require_writable(subject.path.parent))
    x, y, _ = subject.test.everything()
    right = logit_margin(clean_logits(subject.model, x, min(batch_size, len(x))), y) < 0
    shards = torch.arange(len(x), device=x.device).split(batch_size)
    attacked = [rows[right[rows]] for rows in shards]
    parts = Parts(subject, attack.name, len(shards), world, row["settings"], attack.eps, flags.seed, batch_size)

    def attack_shard(number: int) -> Part:
        rows, robust, valid, warnings = attacked[number], right.clone(), torch.ones_like(right), list[str]()
        if len(rows):
            with untouched(subject.model, x.device):
                x_adv, warnings = attack.run(x[rows], y[rows], mixed_seed(flags.seed, EVALUATE, number))
                robust[rows], valid[rows] = verified(
                    subject.model, x[rows], y[rows], x_adv.detach(), norm=subject.norm, eps=attack.eps
                )
        return {
            "robust": as_flags(robust[shards[number]]),
            "invalid": int((~valid).sum()),
            "warnings": list(dict.fromkeys(warnings)),
        }

    def longest(rows: Tensor) -> float:
        with untouched(subject.model, x.device):
            return attack.longest(x[rows], y[rows])

    found = attack_batches(parts, attacked, attack_shard, longest, attack.title, teller, world)
    if world.is_first:
        whole = _finished(row, found, right, attack, batch_size, subject)
        for line in _lines(subject.add_rows(attack.name, [whole])[0], attack, subject):
            teller.say(line)
    parts.close()


def verified(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, *, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,), (B, ...) -> (B,) bool robust, (B,) bool valid, by our own forward pass.

    A perturbation beyond eps or outside [0, 1] is not valid and breaks nothing.
    """
    pixels = x_adv.flatten(1)
    valid = (GEOMETRY[norm].length(x_adv - x) <= eps + EPS_TOLERANCE) & (pixels >= -RANGE_TOLERANCE).all(1)
    valid &= (pixels <= 1 + RANGE_TOLERANCE).all(1)  # NaN: not valid
    with torch.no_grad():
        right = logit_margin(model(x_adv.clamp(0, 1)), y) < 0  # an output that is not a number is not right
    return right | ~valid, valid


def square_starts(norm: str, height: int, width: int) -> bool:
    """Whether pyautoattack's Square can begin on such images: under L2 it lays five or more tiles a side, the last of
    which may not reach over the edge."""
    if norm == "Linf":
        return True
    tile = height // 5
    first = (height - 5 * tile) // 2
    return tile == 1 or (tile > 1 and all(first + size // tile * tile <= size for size in (height, width)))


def _finished(
    row: Row, parts: list[Part], right: Tensor, attack: ExternalAttack, batch_size: int, subject: Subject
) -> Row:
    """The row with what was found; right (N,) bool: classified right without a perturbation."""
    flags, invalid = "".join(part["robust"] for part in parts), sum(part["invalid"] for part in parts)
    robust = torch.tensor([flag == "1" for flag in flags])
    as_strong = robust if attack.name == "autoattack" else None  # as plain PGD
    checks = sanity.battery(subject, attack.eps, batch_size, as_strong)
    checks["perturbations within eps"] = sanity.Finding(invalid == 0, f"{invalid} too long or outside [0, 1]")
    seconds = sum(part["seconds"] for part in parts)
    return {
        **finished(row, right, robust, seconds, device=str(subject.device), batch_size=batch_size),
        "invalid": invalid,
        "warnings": list(dict.fromkeys(warning for part in parts for warning in part["warnings"])),
        "sanity": sanity.as_json(checks),
    }


def _lines(row: Row, attack: ExternalAttack, subject: Subject) -> list[str]:
    """What to say of a finished evaluation."""
    too_far = (
        f"WARNING: {row['invalid']} images got a perturbation beyond eps or outside [0, 1]; they count as not broken, "
        "so the robust accuracy may be too high"
    )
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} {attack.title}, {row['seconds']:g} s "
        f"on {subject.device}",
        *accuracy_lines([row]),
        *[f"WARNING: {warning}" for warning in merged(row["warnings"])],
        *([too_far] if row["invalid"] else []),
        *sanity.lines({name: sanity.Finding(**outcome) for name, outcome in row["sanity"].items()}),
        f"written: {subject.result_file(attack.name)}",
        *overestimates(subject),
    ]
