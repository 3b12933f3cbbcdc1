"""Long evaluations, a shard of images at a time.

A shard is `batch_size` consecutive test images. Its random draws are a function of (seed, shard), so that a stopped
evaluation goes on to the flags of an uninterrupted one. B batch, N test images, ... any image shape; images in [0, 1];
eps in the same unit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from evaluations.accuracy import as_flags
from evaluations.judge import classified_right, judge
from evaluations.packages import untouched
from evaluations.results import add_rows, require_writable
from evaluations.shard_parts import Job, Part, read_parts, write_parts
from evaluations.shard_report import Shown, lines, make_row
from hardware.memory import BatchSize
from processes.deadline import NEVER, Deadline
from processes.distributed import ALONE, World
from records.progress import Teller, duration
from utils import EVALUATE, eval_mode, mixed_seed


class Attempt(NamedTuple):
    """What an attack found for a batch."""

    x_adv: Tensor  # (B, ...) the clean image where it found nothing
    warnings: list[str]


Show = Callable[[str], None]  # puts a word before the progress bar


class Attacker(NamedTuple):
    """An attack of another package."""

    attack: Callable[[Tensor, Tensor, int, Show], Attempt]  # x (B, ...), y (B,), seed, show
    longest: Callable[[Tensor, Tensor], float]  # x, y -> seconds it takes at most, by a short trial


def run_job(job: Job, attacker: Attacker, teller: Teller, world: World = ALONE, deadline: Deadline = NEVER) -> bool:
    """Attack shard after shard, keep each, write the JSON beside the model, and say all that a user wants to know.

    Where memory does not suffice for a shard at once, its images are attacked in halves, with the same draws for each. Of
    several processes each attacks a shard at a time, and the first one writes and speaks. False: the deadline stopped it.

    :raises UserError: if the folder cannot be written.
    """
    require_writable(job.subject.path.parent)
    batch = BatchSize(job.batch_size, "--batch_size", teller.say)
    right = batch.run(lambda size: _all_right(job, size))
    parts = world.from_first(lambda: read_parts(job))
    if world.is_first:
        for line in batch.run(lambda size: forecast(job, right, parts, attacker, size, world.size)):
            teller.note(line)
    done = sum(len(job.shards[number]) for number in parts)
    with teller.bar(len(right), "image", done=done, warm=True) as bar:
        whole = _attack_missing(Shown(job, bar), attacker, right, parts, batch, world, deadline)
    if not whole:
        return False
    if not world.is_first:
        return True
    batch.used = min([batch.used, *(part.batch_size for part in parts.values() if part.batch_size)])
    row = make_row(job, right, [parts[number] for number in range(len(job.shards))], batch)
    add_rows(job.subject.result_file(job.attack), job.subject.head(job.attack), [row])
    job.parts_file.unlink(missing_ok=True)
    for line in lines(job, row):
        teller.say(line)
    return True


def _attack_missing(
    shown: Shown,
    attacker: Attacker,
    right: Tensor,
    parts: dict[int, Part],
    batch: BatchSize,
    world: World,
    deadline: Deadline,
) -> bool:
    """Put the shards that are not done into `parts`, and keep them; False if the deadline came first."""
    job = shown.job
    for first in range(0, len(job.shards), world.size):
        group = range(first, min(first + world.size, len(job.shards)))
        if any(number not in parts for number in group):
            if deadline.over(f"{job.attack} shard"):
                return False
            own = first + world.rank
            missing = own in group and own not in parts
            found = world.join({own: _attack_with(shown, own, right, attacker, batch)} if missing else {})
            parts |= found
            if world.is_first:
                with deadline.saving():
                    write_parts(job, parts)
            shown.done(parts, sum(len(job.shards[number]) for number in found))
    return True


def _attack_with(shown: Shown, number: int, right: Tensor, attacker: Attacker, batch: BatchSize) -> Part:
    with shown.shard():
        return batch.run(lambda size: attack_shard(shown.job, number, right, attacker, shown.name, size))


def attack_shard(job: Job, number: int, right: Tensor, attacker: Attacker, show: Show, size: int | None = None) -> Part:
    """Attack the images of one shard that are classified right, right (N,) bool, at most `size` together."""
    started = time.monotonic()
    model, rows = job.subject.model, job.shards[number]
    x, y, _ = job.subject.test.batch(rows)
    attacked = right[rows]
    robust, valid = attacked.clone(), torch.ones_like(attacked)
    warnings: list[str] = []
    for part in attacked.nonzero().squeeze(1).split(size or job.batch_size) if attacked.any() else ():
        with untouched(model, job.device):
            x_adv, said = attacker.attack(x[part], y[part], mixed_seed(job.seed, EVALUATE, number), show)
            robust[part], valid[part] = judge(
                model, x[part], y[part], x_adv.detach(), norm=job.subject.norm, eps=job.eps
            )
        warnings += said
    smaller = size if size is not None and size < job.batch_size else None
    seconds, invalid = time.monotonic() - started, int((~valid).sum())
    return Part(as_flags(robust), seconds, invalid, list(dict.fromkeys(warnings)), smaller)


def _all_right(job: Job, size: int) -> Tensor:
    """(N,) bool: the test images that are classified right."""
    model, test = job.subject.model, job.subject.test
    with eval_mode(model):
        batches = [test.batch(rows) for rows in torch.arange(len(test)).split(size)]
        return torch.cat([classified_right(model, x, y) for x, y, _ in batches])


def forecast(
    job: Job, right: Tensor, parts: dict[int, Part], attacker: Attacker, size: int, processes: int
) -> list[str]:
    """What is done already and how long the rest takes, by a short trial on its first shard."""
    said = [f"{len(parts)} of {len(job.shards)} shards are done, by {job.parts_file.name}"] if parts else []
    left = [rows[right[rows].cpu()] for number, rows in enumerate(job.shards) if number not in parts]
    left = [rows for rows in left if len(rows)]
    if left:
        x, y, _ = job.subject.test.batch(left[0][:size])
        with untouched(job.subject.model, job.device):
            seconds = attacker.longest(x, y) * sum(map(len, left)) / len(y) / processes
        said.append(
            f"{job.title}: at most about {duration(seconds)} for {sum(map(len, left))} images; if stopped, the same "
            f"command goes on after the last whole shard of {job.batch_size}"
        )
    return said
