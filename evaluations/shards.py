"""Long evaluations, a shard of images at a time: their flags, the file that keeps what is done, the result.

A shard is `batch_size` consecutive test images. Its random draws are a function of (seed, shard), so that a stopped
evaluation goes on to the flags of an uninterrupted one. B batch, N test images, ... any image shape; images in [0, 1];
eps in the same unit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import DATASETS, NORMS, opt, radius, require_positive
from errors import UserError
from evaluations import sanity
from evaluations.evaluation import Subject, is_done, refuse_to_shrink, result_row, stored_result, wilson, write_result
from flags import build_parser
from hardware.memory import BatchSize
from losses import logit_margin
from processes.distributed import ALONE, World
from records.checkpoint import digest
from records.reading import is_number, parse_json
from utils import EVALUATE, eval_mode, frozen, mixed_seed, row_norms, write_atomically

EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection
RANGE_TOLERANCE = 1e-6  # rounding of x + delta at 0 and 1


@dataclass(frozen=True)
class ShardFlags:
    """The flags that every evaluation in shards has."""

    model: str = opt("", "checkpoint file or run folder")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    eps: float | None = opt(None, "radius (default: the training's test radius)")
    test_size: int | None = opt(None, "test images (default: all)")
    batch_size: int | None = opt(200, "images a shard: attacked together, then written down for a later start")
    seed: int = opt(0, "seed of the attack's random draws")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "skip it if the JSON beside the model holds this very evaluation")


Flags = TypeVar("Flags", bound=ShardFlags)


def parse_flags(cls: type[Flags], argv: Sequence[str] | None, description: str, positive: Sequence[str] = ()) -> Flags:
    """Command line -> flags. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    flags = cls(**build_parser(cls, description, "default: ").parse(argv))
    if not flags.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    require_positive(flags, ("batch_size", "test_size", *positive))
    return flags


def choose(text: str, known: Sequence[str]) -> list[str]:
    """`--attacks a,b` -> ["a", "b"], each once.

    :raises UserError: for a name that is not among `known`.
    """
    names = [part.strip() for part in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"--attacks {text or 'is empty'}: no attack {wrong[0]!r}: name some of {','.join(known)}")
    return list(dict.fromkeys(names))


def settle_eps(flags: ShardFlags, subject: Subject) -> tuple[float, list[str]]:
    """The radius in input units, and what the user should be told of it.

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if flags.eps is not None:
        return radius(flags.eps, subject.dataset, subject.norm, "eps")
    eps = subject.training.test_eps
    return eps, [f"--eps not given: {eps:.5g}, the test radius of its training"]


def square_starts(norm: str, height: int, width: int) -> bool:
    """Whether pyautoattack's Square can begin on such images: under L2 it lays five or more tiles a side, the last of
    which may not reach over the edge."""
    if norm == "Linf":
        return True
    tile = height // 5
    first = (height - 5 * tile) // 2
    return tile == 1 or (tile > 1 and all(first + size // tile * tile <= size for size in (height, width)))


class Attempt(NamedTuple):
    """What an attack found for a batch."""

    x_adv: Tensor  # (B, ...) the clean image where it found nothing
    warnings: list[str]


Show = Callable[[str], None]  # puts a word before the progress bar
AttackFn = Callable[[Tensor, Tensor, int, Show], Attempt]  # x (B, ...), y (B,), seed, show
LongestFn = Callable[[Tensor, Tensor], float]  # x (B, ...), y (B,) -> seconds it takes at most, by a short trial


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
    settings: dict  # of the attack: two results with the same ones are of the same kind

    @property
    def device(self) -> torch.device:
        return self.subject.test.labels.device

    @cached_property
    def shards(self) -> tuple[Tensor, ...]:
        """Row numbers of each shard."""
        return torch.arange(len(self.subject.test)).split(self.batch_size)

    @cached_property
    def identity(self) -> dict:
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
            "settings": self.settings,
            "device": self.device.type,
            "torch": str(torch.__version__),
        }

    @cached_property
    def parts_file(self) -> Path:
        name = f"partial_{self.attack}_{self.subject.norm}_{digest(self.identity)[:12]}.json"
        return self.subject.path.parent / name

    @property
    def stored_rows(self) -> dict[float, dict]:
        """Rows of the JSON beside the model, by radius, if it is of the same evaluation at whatever radii."""
        rows = stored_result(self.subject, self.attack).get("results", [])
        wanted = {"seed": self.seed, "settings": self.settings}
        same = is_done(self.subject, self.attack, wanted, [row["eps"] for row in rows])
        return {row["eps"]: row for row in rows} if same else {}


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


def write_parts(job: Job, parts: dict[int, Part]) -> None:
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


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """For attacks of other packages: the network frozen in eval mode; it and torch's generators are as before after."""
    with eval_mode(model), frozen(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def classified_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, ...), (B,) -> (B,) bool. An output that is not a number is not right."""
    with torch.no_grad():
        return logit_margin(model(x), y) < 0


def judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, *, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,), (B, ...) -> (B,) bool robust, (B,) bool valid, by our own forward pass.

    A perturbation beyond eps or outside [0, 1] is not valid and breaks nothing.
    """
    delta, pixels = (x_adv - x).flatten(1), x_adv.flatten(1)
    length = delta.abs().amax(1) if norm == "Linf" else row_norms(delta)
    valid = (length <= eps + EPS_TOLERANCE) & (pixels >= -RANGE_TOLERANCE).all(1)  # not a number: not valid
    valid &= (pixels <= 1 + RANGE_TOLERANCE).all(1)
    return classified_right(model, x_adv.clamp(0, 1), y) | ~valid, valid


def attack_shard(job: Job, number: int, right: Tensor, attack: AttackFn, show: Show, size: int | None = None) -> Part:
    """Attack the images of one shard that are classified right, right (N,) bool, at most `size` together."""
    started = time.monotonic()
    model, rows = job.subject.model, job.shards[number]
    x, y, _ = job.subject.test.batch(rows)
    attacked = right[rows]
    robust, valid, warnings = attacked.clone(), torch.ones_like(attacked), []
    for part in attacked.nonzero().squeeze(1).split(size or job.batch_size) if attacked.any() else ():
        with untouched(model, job.device):
            x_adv, said = attack(x[part], y[part], mixed_seed(job.seed, EVALUATE, number), show)
            robust[part], valid[part] = judge(
                model, x[part], y[part], x_adv.detach(), norm=job.subject.norm, eps=job.eps
            )
        warnings += said
    flags = "".join("1" if flag else "0" for flag in robust.tolist())
    smaller = size if size is not None and size < job.batch_size else None
    return Part(flags, time.monotonic() - started, int((~valid).sum()), list(dict.fromkeys(warnings)), smaller)


def run_job(job: Job, attack: AttackFn, longest: LongestFn, say: Callable[[str], None], world: World = ALONE) -> None:
    """Attack shard after shard, keep each, write the JSON beside the model, and say all that a user wants to know.

    Where memory does not suffice for a shard at once, its images are attacked in halves, with the same draws for each. Of
    several processes each attacks a shard at a time, and the first one writes and speaks.

    :raises UserError: if the folder cannot be written, or holds this network's result on more images.
    """
    world.from_first(lambda: refuse_to_shrink(job.subject, job.attack))
    batch = BatchSize(job.batch_size, "--batch_size", say)
    right = batch.run(lambda size: _all_right(job, size))
    parts = world.from_first(lambda: read_parts(job))
    if world.is_first:
        for line in batch.run(lambda size: forecast(job, right, parts, longest, size, world.size)):
            say(line)
    with tqdm(total=len(right), unit="image", dynamic_ncols=True, disable=not world.is_first) as bar:
        bar.set_description(job.attack)
        for first in range(0, len(job.shards), world.size):
            own = first + world.rank
            missing = own < len(job.shards) and own not in parts
            found = {own: _attack_with(bar, job, own, right, attack, batch)} if missing else {}
            found = world.join(found)
            parts |= found
            if found and world.is_first:
                write_parts(job, parts)
            last = min(first + world.size, len(job.shards)) - 1
            bar.set_postfix_str(f"accuracy so far {_accuracy(parts, last):.2%}")
            bar.update(sum(map(len, job.shards[first : last + 1])))
    if not world.is_first:
        return
    batch.used = min([batch.used, *(part.batch_size for part in parts.values() if part.batch_size)])
    for line in finish(job, right, [parts[number] for number in range(len(job.shards))], batch):
        say(line)


def _attack_with(bar: tqdm, job: Job, number: int, right: Tensor, attack: AttackFn, batch: BatchSize) -> Part:
    with passes_shown(job.subject.model, bar):
        return batch.run(lambda size: attack_shard(job, number, right, attack, bar.set_description, size))


def _all_right(job: Job, size: int) -> Tensor:
    """(N,) bool: the test images that are classified right."""
    model, test = job.subject.model, job.subject.test
    with eval_mode(model):
        batches = [test.batch(rows) for rows in torch.arange(len(test)).split(size)]
        return torch.cat([classified_right(model, x, y) for x, y, _ in batches])


@contextmanager
def passes_shown(model: nn.Module, bar: tqdm) -> Iterator[None]:
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


def _accuracy(parts: dict[int, Part], last: int) -> float:
    flags = "".join(parts[number].robust for number in range(last + 1))
    return flags.count("1") / len(flags)


def forecast(
    job: Job, right: Tensor, parts: dict[int, Part], longest: LongestFn, size: int, processes: int
) -> list[str]:
    """What is done already and how long the rest takes, by a short trial on its first shard."""
    lines = [f"{len(parts)} of {len(job.shards)} shards are done, by {job.parts_file.name}"] if parts else []
    left = [rows[right[rows].cpu()] for number, rows in enumerate(job.shards) if number not in parts]
    left = [rows for rows in left if len(rows)]
    if left:
        x, y, _ = job.subject.test.batch(left[0][:size])
        with untouched(job.subject.model, job.device):
            seconds = longest(x, y) * sum(map(len, left)) / len(y) / processes
        lines.append(
            f"{job.title}: at most about {duration(seconds)} for {sum(map(len, left))} images; if stopped, the same "
            f"command goes on after the last whole shard of {job.batch_size}"
        )
    return lines


def duration(seconds: float) -> str:
    """For people: seconds up to a minute, minutes up to two hours, then hours."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def finish(job: Job, right: Tensor, parts: list[Part], batch: BatchSize) -> list[str]:
    """Write the JSON, with the rows that the same evaluation had at other radii; forget the shards. The lines to say."""
    subject, n, count = job.subject, len(right), int(right.sum())
    robust = torch.tensor([flag == "1" for part in parts for flag in part.robust])
    seconds = round(sum(part.seconds for part in parts), 1)
    warnings = list(dict.fromkeys(warning for part in parts for warning in part.warnings))
    invalid = sum(part.invalid for part in parts)
    row = {**result_row(job.eps, robust), "seconds": seconds, "invalid": invalid, "warnings": warnings}
    rows = {**job.stored_rows, job.eps: row}
    content = {
        "clean_acc": count / n,
        "clean_ci95": wilson(count, n),
        "seed": job.seed,
        "settings": {**job.settings, "device": str(job.device), **batch.as_settings()},
        "seconds": round(sum(r.get("seconds", 0) for r in rows.values()), 1),
        "results": [rows[eps] for eps in sorted(rows)],
    }
    checks = BatchSize(min(n, sanity.MOST_IMAGES), "sanity checks", batch.say).run(
        lambda size: sanity.battery(
            subject, job.eps, None, robust, min(n, sanity.MOST_IMAGES), others=(), batch_size=size
        )
    )
    checks["perturbations within eps"] = sanity.Finding(invalid == 0, f"{invalid} too long or outside [0, 1]")
    path = write_result(subject, job.attack, {**content, "sanity": sanity.as_json(checks)})
    job.parts_file.unlink(missing_ok=True)
    return [
        f"{subject.path}: {subject.dataset}, {n} test images, {subject.norm} {job.title}, {seconds:g} s on {job.device}",
        f"clean accuracy            {count / n:8.2%}   {_interval(wilson(count, n))}",
        f"robust accuracy at {job.eps:<7.5g}{row['robust_acc']:8.2%}   {_interval(row['ci95'])}",
        *[f"WARNING: {warning}" for warning in warnings],
        *(
            [
                f"WARNING: {invalid} images got a perturbation beyond eps or outside [0, 1]; they count as not broken, so the "
                "robust accuracy may be too high"
            ]
            if invalid
            else []
        ),
        *sanity.lines(checks),
        f"written: {path}",
    ]


def _interval(ci: Sequence[float]) -> str:
    return f"95 % interval [{ci[0]:.2%}, {ci[1]:.2%}]"
