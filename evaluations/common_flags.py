"""The flags that every evaluation has, and how they are read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from config import DATASETS, NORMS, QUIET, SPLITS, opt
from errors import UserError
from evaluations.subject import Subject, WhatToLoad
from flags import build_parser
from processes.distributed import ALONE, World, local_size
from records.commands import command
from validation import radius, require_positive


@dataclass(frozen=True)
class CommonFlags:
    """Which network, on which images, and how to run."""

    model: str = opt("", "checkpoint file or run folder")
    device: str = opt("auto", "cpu, cuda, cuda:1, …; auto takes cuda where there is one")
    deterministic: bool = opt(False, "deterministic kernels only (slower on GPUs)")
    dataset: str | None = opt(None, "data set (default: the checkpoint's)", DATASETS)
    norm: str | None = opt(None, "norm of the attack (default: the checkpoint's)", NORMS)
    network: str | None = opt(None, "network (default: the checkpoint's); your own must be named here to be run")
    split: str = opt("test", "test images, or the validation or training images of its training", tuple(SPLITS))
    test_size: int | None = opt(
        None, "so many images of the split: the first; by class from a folder of pictures (default: all)"
    )
    batch_size: int | None = opt(200, "images attacked together, then written down for a later start")
    seed: int = opt(0, "seed of the attack's random draws")
    data_root: str | None = opt(None, "folder of the data set (default: the checkpoint's, else data)")
    resume: bool = opt(False, "has no effect: what was stopped goes on anyway, and what is done is not done again")
    overwrite: bool = opt(False, "compute it anew where the JSON beside the model holds this very evaluation")
    max_minutes: float | None = opt(None, "stop before so many minutes are over, exit status 75; start again to go on")
    quiet: bool = opt(False, QUIET)


Flags = TypeVar("Flags", bound=CommonFlags)


def parse_flags(cls: type[Flags], argv: Sequence[str] | None, description: str, positive: Sequence[str] = ()) -> Flags:
    """Command line -> flags. What depends on the checkpoint stays None until it is read.

    :raises UserError: for a wrong flag or value.
    """
    flags = cls(**build_parser(cls, description, "default: ").parse_with_file(argv))
    if not flags.model:
        raise UserError("--model is missing: name a checkpoint file or a run folder")
    require_positive(flags, ("batch_size", "test_size", "max_minutes", *positive))
    return flags


def choose(text: str, known: Sequence[str]) -> list[str]:
    """`--attacks a,b` -> ["a", "b"], each once.

    :raises UserError: for a name that is not among `known`.
    """
    names = [part.strip() for part in text.split(",")]
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"--attacks {text or 'is empty'}: no attack {wrong[0]!r}: name some of {','.join(known)}")
    return list(dict.fromkeys(names))


def settle_eps(eps: float | None, subject: Subject) -> tuple[float, list[str]]:
    """The radius in input units, and what the user should be told of it.

    :raises UserError: for a radius that no image in [0, 1] can use.
    """
    if eps is not None:
        return radius(eps, subject.dataset, subject.norm, "eps")
    eps = subject.training.test_eps
    return eps, [f"--eps not given: {eps:.5g}, the test radius of its training"]


def overrides_said(subject: Subject) -> list[str]:
    """What the flags changed of the checkpoint's own words, a line each."""
    return [f"--{name}: {what}" for name, what in subject.overrides.items()]


def line_that_goes_on(program: str, argv: Sequence[str] | None, minutes: float | None, world: World = ALONE) -> str:
    """What to say when the clock stopped an evaluation."""
    again = command(program, *(sys.argv[1:] if argv is None else argv), processes=local_size() if world.size > 1 else 1)
    return f"stopped by --max_minutes {minutes or 0:g}; what is done is kept; this goes on: {again}"


def what_next(flags: WhatToLoad, subject: Subject) -> str:
    """The command to run next: the attack whose figure should stand beside, else the page of all figures."""
    named = ((name, getattr(flags, name)) for name in ("dataset", "norm", "network", "data_root"))
    given = [word for name, value in named if value is not None for word in (f"--{name}", value)]
    for attack, program in (("pgd", "evaluate_on_pgd_attacks.py"), ("autoattack", "evaluate_on_autoattack.py")):
        if not subject.result_file(attack).exists():
            return f"next: {command(program, '--model', flags.model, *given)}"
    return f"look at it with: {command('reports/make_report.py', str(subject.path.parent))}"
