"""What an evaluation in shards says: how far it is, the row of its result. N test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from evaluations import sanity
from evaluations.accuracy import accuracy_of, clean_accuracy, interval
from evaluations.findings import merged
from evaluations.others import overestimates
from evaluations.rows import Row
from evaluations.shard_parts import Job, Part
from hardware.memory import BatchSize
from records.progress import Progress


class Shown:
    """What stands behind a job's bar: the attack that runs, the accuracy so far, the passes over the shard at hand, so
    that a long shard is seen to move."""

    def __init__(self, job: Job, bar: Progress) -> None:
        self.job, self.bar, self.attack, self.accuracy, self.passes = job, bar, job.attack, "", 0

    def name(self, attack: str) -> None:
        """This attack begins."""
        self.attack = attack
        self.bar.moving(self._text())

    @contextmanager
    def shard(self) -> Iterator[None]:
        """Count the network's passes inside."""

        def count(*_: object) -> None:
            self.passes += 1
            self.bar.moving(self._text())

        hook = self.job.subject.model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()
            self.passes = 0

    def done(self, parts: Mapping[int, Part], images: int) -> None:
        """So many more images are attacked; parts: the shards so far."""
        self.accuracy = f", accuracy so far {accuracy_so_far(parts):.2%}"
        self.bar.note(self._text())
        self.bar.update(images)

    def _text(self) -> str:
        passes = f", {self.passes} passes over this shard" if self.passes else ""
        return f"{self.attack}{self.accuracy}{passes}"


def accuracy_so_far(parts: Mapping[int, Part]) -> float:
    """Over the shards that are done, in a row from the first."""
    done = [parts[number].robust for number in range(len(parts)) if number in parts]
    flags = "".join(done)
    return flags.count("1") / max(len(flags), 1)


def make_row(job: Job, right: Tensor, parts: Sequence[Part], batch: BatchSize) -> Row:
    """The row of a finished job; right (N,) bool: classified right without a perturbation."""
    invalid = sum(part.invalid for part in parts)
    robust = torch.tensor([flag == "1" for part in parts for flag in part.robust])
    as_strong = robust if job.attack == "autoattack" else None  # as plain PGD
    checks = BatchSize(job.batch_size, "sanity checks", batch.say).run(
        lambda size: sanity.battery(job.subject, job.eps, size, as_strong)
    )
    checks["perturbations within eps"] = sanity.Finding(invalid == 0, f"{invalid} too long or outside [0, 1]")
    return {
        "eps": job.eps,
        "n": len(right),
        "split": job.subject.split,
        "images": job.subject.images,
        "seed": job.seed,
        **clean_accuracy(right),
        **accuracy_of("".join(part.robust for part in parts)),
        "settings": {**job.settings, "device": str(job.device), **batch.as_settings()},
        "seconds": round(sum(part.seconds for part in parts), 1),
        "invalid": invalid,
        "warnings": list(dict.fromkeys(warning for part in parts for warning in part.warnings)),
        "sanity": sanity.as_json(checks),
    }


def lines(job: Job, row: Row) -> list[str]:
    """What to say of a finished job."""
    subject = job.subject
    too_far = (
        f"WARNING: {row['invalid']} images got a perturbation beyond eps or outside [0, 1]; they count as not broken, "
        "so the robust accuracy may be too high"
    )
    checks = {name: sanity.Finding(**outcome) for name, outcome in row["sanity"].items()}
    return [
        f"{subject.path}: {subject.dataset}, {subject.images_named}, {subject.norm} {job.title}, {row['seconds']:g} s "
        f"on {job.device}",
        f"clean accuracy            {row['clean_acc']:8.2%}   {interval(row['clean_ci95'])}",
        f"robust accuracy at {job.eps:<7.5g}{row['robust_acc']:8.2%}   {interval(row['ci95'])}",
        *[f"WARNING: {warning}" for warning in merged(row["warnings"])],
        *([too_far] if row["invalid"] else []),
        *sanity.lines(checks),
        f"written: {subject.result_file(job.attack)}",
        *overestimates(subject),
    ]
