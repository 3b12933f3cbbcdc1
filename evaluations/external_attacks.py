"""Robust accuracy by an attack of another package, a shard of images at a time.

A shard is `batch_size` consecutive images, attacked together. Its random draws are a function of (seed, shard), so that a
stopped evaluation goes on to the flags of an uninterrupted one. B batch, N images, ... any image shape; images in [0, 1];
eps in the same unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evaluations import sanity
from evaluations.compare_attacks import NAMES, overestimates
from evaluations.flags import EvaluationFlags
from evaluations.repeated_pgd import clean_logits
from evaluations.results import Row, accuracy_lines, finished, merged
from evaluations.shards import Part, already_done, run_shards
from evaluations.subject import Subject
from losses import logit_margin
from pgd import GEOMETRY
from processes.distributed import World
from records.progress import Teller
from utils import EVALUATE, mixed_seed, untouched

EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection
RANGE_TOLERANCE = 1e-6  # rounding of x + delta at 0 and 1


def evaluate(
    flags: EvaluationFlags,
    subject: Subject,
    teller: Teller,
    world: World,
    *,
    name: str,
    eps: float,
    settings: Mapping[str, Any],
    batch_size: int,
    attack: Callable[[Tensor, Tensor, int], tuple[Tensor, list[str]]],
) -> None:
    """Attack shard after shard, keep each, write the JSON beside the model, and say all that a user wants to know.

    name: as in the name of the JSON. settings: for the JSON, what makes two results comparable. attack: x (B, ...),
    y (B,), seed -> x_adv (B, ...), warnings.

    :raises UserError: if the folder cannot be written.
    """
    row = subject.row(flags.seed, settings, eps)
    if done := already_done(subject, name, row, flags.overwrite, teller, world):
        teller.say(*_lines(subject, name, done), *overestimates(subject))
        return
    x, y, _ = subject.test.everything()
    right = logit_margin(clean_logits(subject.model, x, min(batch_size, len(x))), y) < 0
    shards = torch.arange(len(x), device=x.device).split(batch_size)

    def attack_shard(number: int, known: Mapping[int, Part]) -> Part:
        robust, invalid, warnings = right[shards[number]], 0, list[str]()
        rows = shards[number][robust]
        if len(rows):
            with untouched(subject.model, x.device):
                x_adv, warnings = attack(x[rows], y[rows], mixed_seed(flags.seed, EVALUATE, number))
                given = subject.model, x[rows], y[rows], x_adv.detach()
                robust[robust.clone()], valid = verified(*given, norm=subject.norm, eps=eps)
            invalid = int((~valid).sum())
        return {"robust": robust.cpu(), "invalid": invalid, "warnings": warnings}

    identity = [row["settings"], eps, flags.seed, batch_size]
    with run_shards(attack_shard, len(shards), subject, name, identity, teller, world) as found:
        if not world.is_first:
            return
        robust, invalid = torch.cat([part["robust"] for part in found]), sum(part["invalid"] for part in found)
        # AutoAttack should be as strong as plain PGD, the others need not be.
        checks = sanity.battery(subject, eps, batch_size, robust.to(x.device) if name == "autoattack" else None)
        said = f"{invalid} too long or outside [0, 1]" + (", which count as not broken" if invalid else "")
        checks["perturbations within eps"] = sanity.finding(invalid == 0, said)
        where = {"device": str(subject.device), "batch_size": batch_size}
        new = finished(row, right, robust, sum(part["seconds"] for part in found), **where) | {
            "invalid": invalid,
            "warnings": list(dict.fromkeys(warning for part in found for warning in part["warnings"])),
            "sanity": checks,
        }
        (row,) = subject.add_rows(name, [new])
        written = f"written: {subject.result_file(name)}"
        teller.say(*_lines(subject, name, row), written, *overestimates(subject))


def _lines(subject: Subject, name: str, row: Row) -> list[str]:
    """What to say of this row."""
    settings = row["settings"]
    title = f"{settings['name']} ({', '.join(settings['attacks'])})" if "name" in settings else NAMES[name]
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} {title}, "
        f"{row.get('seconds', 0):g} s on {settings.get('device', '–')}",
        *accuracy_lines([row]),
        *(f"WARNING: {warning}" for warning in merged(row.get("warnings", []))),
        *sanity.lines(row.get("sanity", {})),
    ]


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
