"""What an evaluation in shards says: how long it takes, how far it is, the row of its result. N test images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluations import sanity
from evaluations.accuracy import accuracy_of, clean_accuracy, interval
from evaluations.others import overestimates
from evaluations.results import Row
from evaluations.shard_parts import Job, Part
from hardware.memory import BatchSize


def duration(seconds: float) -> str:
    """For people: seconds up to a minute, minutes up to two hours, then hours."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def passes_shown(model: nn.Module, bar: tqdm[Any]) -> Iterator[None]:
    """Count the network's passes beside the bar, about once a second, so that a long shard is seen to move."""
    count, shown = 0, time.monotonic()
    accuracy = getattr(bar, "postfix", None) or ""  # a disabled bar has none

    def count_pass(*_: object) -> None:
        nonlocal count, shown
        count += 1
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            bar.set_postfix_str(f"{accuracy}, {count} passes over this shard".removeprefix(", "))

    hook = model.register_forward_hook(count_pass)
    try:
        yield
    finally:
        hook.remove()
        bar.set_postfix_str(accuracy)


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
        *[f"WARNING: {warning}" for warning in row["warnings"]],
        *([too_far] if row["invalid"] else []),
        *sanity.lines(checks),
        f"written: {subject.result_file(job.attack)}",
        *overestimates(subject),
    ]
