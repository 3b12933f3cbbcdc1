"""One attack at one radius as a list of shards, and the file that keeps those that are done. N test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from evaluations.rows import Kind, Row, same_eps
from evaluations.subject import Subject
from records.checkpoint import digest
from records.reading import is_number, parse_json
from utils import write_atomically


@dataclass(frozen=True)
class Part:
    """The result of one shard."""

    robust: str  # one character an image, "1": robust
    seconds: float
    invalid: int  # images whose perturbation was too long or left [0, 1]
    warnings: list[str]
    batch_size: int | None = None  # images attacked together, where memory did not suffice for all


@dataclass(frozen=True)
class Job:
    """One attack at one radius on the test images of one network."""

    subject: Subject
    attack: str  # as in the name of the JSON
    title: str  # for people
    eps: float
    seed: int
    batch_size: int
    settings: Mapping[str, Any]  # of the attack: two results with the same ones are of the same kind

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.subject.test.labels.device

    @property
    def kind(self) -> Kind:
        """What a result like it would have in common with it."""
        return self.subject.kind(self.seed, self.settings)

    @property
    def stored_row(self) -> Row | None:
        """What the JSON beside the model holds of this very evaluation."""
        rows = self.subject.rows(self.attack)
        return next((row for row in rows if same_eps(row.get("eps"), self.eps) and self.kind.covers(row)), None)

    @cached_property
    def shards(self) -> tuple[Tensor, ...]:
        """Row numbers of each shard."""
        rows: tuple[Tensor, ...] = torch.arange(len(self.subject.test)).split(self.batch_size)
        return rows

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the flags depend on."""
        test = self.subject.test
        return {
            "model_sha256": self.subject.sha256,
            "dataset": self.subject.dataset,
            "norm": self.subject.norm,
            "images": digest([test.images, test.labels]),
            "n": len(test),
            "attack": self.attack,
            "eps": self.eps,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "settings": dict(self.settings),
            "device": self.device.type,
            "torch": str(torch.__version__),
        }

    @cached_property
    def parts_file(self) -> Path:
        """Where the shards that are done are kept."""
        name = f"partial_{self.attack}_{self.subject.norm}_{digest(self.identity)[:12]}.json"
        return self.subject.path.parent / name


def read_parts(job: Job) -> dict[int, Part]:
    """The shards that are done, by number; none where the file is missing, damaged or of another evaluation."""
    try:
        content = parse_json(job.parts_file.read_text())
        parts = {int(number): Part(**part) for number, part in content["parts"].items()}
        fits = content["identity"] == job.identity and all(
            len(part.robust) == len(job.shards[number])
            and is_number(part.seconds)
            and type(part.invalid) is int
            and isinstance(part.warnings, list)
            for number, part in parts.items()
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return {}
    return parts if fits else {}


def write_parts(job: Job, parts: Mapping[int, Part]) -> None:
    """Keep what is done.

    :raises UserError: if the folder cannot be written.
    """
    content = {"identity": job.identity, "parts": {number: asdict(part) for number, part in parts.items()}}
    try:
        write_atomically(job.parts_file, json.dumps(content).encode())
    except OSError as error:
        raise UserError(
            f"{job.parts_file}: cannot be written ({error.strerror}): make room, or copy the model into a "
            "folder of yours"
        ) from None
