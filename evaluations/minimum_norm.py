"""Attacks that look for the nearest adversarial image, through foolbox, batch by batch, with what is done kept.

A distance is 0 for a misclassified image and inf where nothing was found. B batch, N test images, C classes, ... any image
shape; images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import eagerpy
import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, L2CarliniWagnerAttack, L2FMNAttack, LInfFMNAttack
from foolbox.attacks.base import MinimizationAttack
from torch import Tensor

from errors import UserError
from evaluations.distances import shown, summary
from evaluations.packages import untouched
from evaluations.rows import Row
from evaluations.subject import Subject
from hardware.memory import BatchSize
from losses import cross_entropy, logit_margin
from pgd import project_l2
from processes.deadline import NEVER, Deadline
from processes.distributed import ALONE, World
from records.checkpoint import digest
from records.progress import Teller, duration
from records.reading import parse_json
from utils import EVALUATE, mixed_seed, per_row, row_norms, write_atomically


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
Part = dict[str, Any]  # of a batch: distances, seconds, batch_size
NAMES = tuple(dict.fromkeys(attack for attack, _ in METHODS))


def default_steps(attack: str, norm: str, device: torch.device) -> int:
    """Steps of a search where the flags do not say."""
    method = METHODS[attack, norm]
    return method.cpu_steps if device.type == "cpu" else method.steps


@dataclass(frozen=True)
class Run:
    """One attack on the test images of one network."""

    subject: Subject
    attack: str
    steps: int
    batch_size: int
    seed: int

    @property
    def method(self) -> Method:
        return METHODS[self.attack, self.subject.norm]

    @property
    def settings(self) -> dict[str, Any]:
        """What the distances depend on, device and seed apart."""
        return {
            "steps": self.steps,
            "searches": self.method.searches,
            **self.method.options,
            "batch_size": self.batch_size,
            "foolbox": version("foolbox"),
            "overrides": self.subject.overrides,
        }

    @property
    def stored_row(self) -> Row | None:
        """What the JSON beside the model holds of this very evaluation."""
        kind = self.subject.kind(self.seed, self.settings)
        return next((row for row in self.subject.rows(self.attack) if "eps" not in row and kind.covers(row)), None)


class Found(NamedTuple):
    """What an attack found."""

    distances: list[float]  # (N,) inf where it found nothing
    seconds: float
    batch_size: int  # the smallest: memory may not have sufficed for as many as were asked for


def clean_logits(subject: Subject, batch_size: int) -> Tensor:
    """(N, C): of the test images."""
    with torch.no_grad():
        batches = [subject.test.batch(rows).x for rows in torch.arange(len(subject.test)).split(batch_size)]
        return torch.cat([subject.model(x).float() for x in batches])


def is_right(subject: Subject, logits: Tensor) -> Tensor:
    """(N, C) -> (N,) bool: classified right without any perturbation."""
    return logit_margin(logits, subject.test.labels) < 0


def attack_all(
    run: Run,
    clean: Tensor,
    size: BatchSize,
    teller: Teller,
    world: World = ALONE,
    deadline: Deadline = NEVER,
) -> Found | None:
    """Attack what is classified right, batch after batch, and keep each; clean (N, C): logits.

    Where memory does not suffice, a batch is attacked in halves, with the same draws for each. Of several processes each
    attacks a batch at a time, and the first one writes. None: the deadline stopped it.

    :raises UserError: if the folder of the model cannot be written.
    """
    right = is_right(run.subject, clean).nonzero().squeeze(1)
    batches = right.split(run.batch_size) if len(right) else ()
    parts = world.from_first(lambda: read_parts(run))
    if parts:
        teller.note(f"{run.attack}: {len(parts)} of {len(batches)} batches are done, by {parts_file(run).name}")
    left = sum(map(len, batches[len(parts) :]))
    if left and world.is_first:
        longest = size.run(lambda size: forecast(run, batches[len(parts) :], size))
        teller.note(
            f"{run.attack}: at most about {longest} for {left} images; stopped, the same command goes on after the last "
            "whole batch"
        )
    with teller.bar(len(right), "image", done=len(right) - left, warm=True) as bar:
        for first in range(len(parts), len(batches), world.size):
            if deadline.over(f"{run.attack} batch"):
                return None
            own = first + world.rank
            found = world.join({own: _attack_one(run, own, batches[own], clean, size)} if own < len(batches) else {})
            parts += [found[number] for number in sorted(found)]
            if world.is_first:
                with deadline.saving():
                    write_parts(run, parts)
            so_far = summary([distance for part in parts for distance in part["distances"]])
            bar.note(f"{run.attack}, median so far {shown(so_far['quartiles'][1])}")
            bar.update(sum(len(part["distances"]) for part in found.values()))
    distances = torch.zeros(len(clean), dtype=torch.float64)
    distances[right.cpu()] = torch.tensor([d for part in parts for d in part["distances"]], dtype=torch.float64)
    smallest = min([size.used, *(part["batch_size"] for part in parts)])
    return Found(distances.tolist(), round(sum(part["seconds"] for part in parts), 1), smallest)


def _attack_one(run: Run, number: int, rows: Tensor, clean: Tensor, size: BatchSize) -> Part:
    started = time.monotonic()
    distances = size.run(lambda size: torch.cat([attack_batch(run, number, part, clean) for part in rows.split(size)]))
    return {"distances": distances.tolist(), "seconds": time.monotonic() - started, "batch_size": size.used}


def forecast(run: Run, batches: Sequence[Tensor], size: int) -> str:
    """How long these batches take if no search ends early, by two gradients of `size` images of the first."""
    x, y, _ = run.subject.test.batch(batches[0][:size])
    x = x.requires_grad_()
    for _ in range(2):  # the first warms up
        started = time.monotonic()
        torch.autograd.grad(cross_entropy(run.subject.model(x), y).sum(), x)[0].sum().item()
        seconds = time.monotonic() - started
    return duration(seconds * run.steps * run.method.searches * sum(map(len, batches)) / len(y))


def attack_batch(run: Run, number: int, rows: Tensor, clean: Tensor) -> Tensor:
    """(B,) rows -> (B,) float64 on the CPU: the shortest confirmed distances; clean (N, C): logits of all images."""
    subject = run.subject
    x, y, _ = subject.test.batch(rows)
    with untouched(subject.model, x.device):
        torch.manual_seed(mixed_seed(run.seed, EVALUATE, number))  # DDN draws a direction where there is no gradient
        attack = run.method.attack(**{"steps": run.steps, **run.method.options})
        model = PyTorchModel(subject.model, bounds=(0, 1), device=x.device)
        x_adv = attack(model, x, y, epsilons=None)[0]
        if run.attack == "cw":  # foolbox gives an all-black image for one that it did not break
            x_adv = torch.where(per_row(x_adv.flatten(1).any(1), x), x_adv, x)
        best = confirmed(subject, x, y, x_adv)
        if run.attack == "fmn":
            start, can = nearest_of_another_class(subject, x, y, clean)
            if can.any():
                x_adv[can] = attack(model, x[can], y[can], epsilons=None, starting_points=start[can])[0]
                best = torch.minimum(best, confirmed(subject, x, y, x_adv))
    return best.cpu()


def nearest_of_another_class(subject: Subject, x: Tensor, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,) -> (B, ...), (B,) bool: the nearest test image that the network takes for another class than y, and
    whether there is one; clean (N, C): its logits."""
    others = subject.test.everything().x
    labels = torch.arange(clean.shape[1], device=y.device)
    surely = 1e-4 * clean.abs().amax()  # in another batch rounding may differ
    broken = torch.stack([logit_margin(clean, label.expand(len(clean))) > surely for label in labels])[y]
    apart = torch.cdist(x.flatten(1), others.flatten(1), p=2 if subject.norm == "L2" else math.inf)
    return others[torch.where(broken, apart, math.inf).argmin(1)], broken.any(1)


def confirmed(subject: Subject, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """(B, ...), (B,), (B, ...) -> (B,) float64: the length of x_adv - x, inf where our own forward pass in float32 says
    that x_adv, clipped to [0, 1], does not break the image."""
    x_adv = x_adv.clamp(0, 1)
    with torch.no_grad():
        broken = logit_margin(subject.model(x_adv).float(), y) >= 0
    delta = (x_adv - x).double()
    length = row_norms(delta) if subject.norm == "L2" else delta.flatten(1).abs().amax(1)
    return torch.where(broken & length.isfinite(), length, math.inf)


def identity(run: Run) -> dict[str, Any]:
    """Everything that the distances depend on."""
    test = run.subject.test
    return {
        "model_sha256": run.subject.sha256,
        "images": digest([test.images, test.labels]),
        "n": len(test),
        "norm": run.subject.norm,
        "attack": run.attack,
        "settings": run.settings,
        "seed": run.seed,
        "device": test.labels.device.type,
        "torch": str(torch.__version__),
    }


def parts_file(run: Run) -> Path:
    """Where the batches that are done are kept."""
    return run.subject.path.parent / f"partial_{run.attack}_{run.subject.norm}_{digest(identity(run))[:12]}.json"


def read_parts(run: Run) -> list[Part]:
    """Distances and seconds of each batch that is done; none where the file is missing, damaged or of another evaluation."""
    try:
        stored = parse_json(parts_file(run).read_text())
        parts = [
            {
                "distances": [float(d) for d in part["distances"]],
                "seconds": float(part["seconds"]),
                "batch_size": int(part["batch_size"]),
            }
            for part in stored["parts"]
        ]
        return parts if stored["identity"] == identity(run) else []
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return []


def write_parts(run: Run, parts: Sequence[Part]) -> None:
    """Keep what is done.

    :raises UserError: if the folder cannot be written.
    """
    try:
        write_atomically(parts_file(run), json.dumps({"identity": identity(run), "parts": parts}).encode())
    except OSError as error:
        raise UserError(
            f"{parts_file(run)}: cannot be written ({error.strerror}): make room, or copy the model into a "
            "folder of yours"
        ) from None
