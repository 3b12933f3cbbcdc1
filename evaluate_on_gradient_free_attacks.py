"""Attack a trained network without its gradients: `python evaluate_on_gradient_free_attacks.py --model PATH`.

Square (Andriushchenko et al. 2020; pyautoattack's) under both norms, SPSA (Uesato et al. 2018; advertorch's) under Linf:
if one of them breaks what white-box attacks do not, the gradients mislead. B batch, ... any image shape.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from config import opt
from errors import UserError, exits_on_user_error
from evaluations.advertorch_compat import advertorch
from evaluations.common_flags import (
    CommonFlags,
    choose,
    line_that_goes_on,
    overrides_said,
    parse_flags,
    settle_eps,
    what_next,
)
from evaluations.packages import square_starts
from evaluations.results import is_done
from evaluations.shard_parts import Job
from evaluations.shards import Attacker, Attempt, Show, run_job
from evaluations.subject import Subject, load_subject
from processes.deadline import AGAIN, Deadline, since_start
from processes.distributed import device_of, main_of_process
from records.progress import Teller

TITLES = {"square": "Square", "spsa": "SPSA"}
ATTACKS = tuple(TITLES)
DEFAULT_IMAGES = {"cpu": 100, "cuda": 1000}
SPSA_DELTA = SPSA_LEARNING_RATE = 0.01  # advertorch's own
SPSA_IMAGES_A_PASS = 2000  # bounds memory


@dataclass(frozen=True)
class GradientFreeFlags(CommonFlags):
    """One evaluation by attacks that do not use gradients."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(None, "square, spsa or square,spsa (default: both; under L2 square)")
    test_size: int | None = opt(None, "test images (default: the first 1000, on a CPU the first 100)")
    batch_size: int | None = opt(
        None, "images a shard: attacked together, then written down for a later start (default: square 50, spsa 10)"
    )
    square_queries: int = opt(5000, "queries of Square an image")
    spsa_iter: int = opt(100, "steps of SPSA")
    spsa_samples: int = opt(128, "pairs of queries for one step of SPSA")


def parse(argv: Sequence[str] | None = None) -> GradientFreeFlags:
    """The command line.

    :raises UserError: for a wrong flag or value.
    """
    positive = ("square_queries", "spsa_iter", "spsa_samples")
    flags = parse_flags(GradientFreeFlags, argv, "Attack a network without its gradients.", positive)
    if flags.attacks is not None:
        choose(flags.attacks, ATTACKS)
    return flags


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the results. Returns the exit status."""
    flags = parse(argv)
    with device_of(flags.device, flags.deterministic) as (world, device):
        deadline = Deadline(flags.max_minutes, since_start(), world.largest, world.is_first)
        teller = Teller(world.is_first, flags.quiet)
        subject = world.one_a_machine_first(lambda: first_images(flags, device))
        eps, notes = world.together(lambda: settle_eps(flags.eps, subject))
        attacks = world.together(lambda: choose_attacks(flags, subject))
        for note in notes + overrides_said(subject):
            teller.note(note)
        for name in attacks:
            job, attacker = make_job(name, flags, subject, eps)
            if world.from_first(partial(is_done, job, flags.overwrite)):
                teller.say(f"{subject.result_file(name)}: already done")
            elif not run_job(job, attacker, teller, world, deadline):
                teller.say(line_that_goes_on("evaluate_on_gradient_free_attacks.py", argv, flags.max_minutes, world))
                return AGAIN
        teller.say(what_next(flags, subject))
    return 0


def first_images(flags: GradientFreeFlags, device: torch.device) -> Subject:
    """The network with the first `--test_size` test images, or by default as many as this device does in minutes."""
    subject = load_subject(flags, device)
    most = DEFAULT_IMAGES[device.type]
    if flags.test_size is None and len(subject.test) > most:
        return load_subject(replace(flags, test_size=most), device)
    return subject


def choose_attacks(flags: GradientFreeFlags, subject: Subject) -> list[str]:
    """The attacks of `--attacks`, or all that exist for this norm.

    :raises UserError: if one of them cannot run on these images or in this norm.
    """
    _, height, width = subject.test.shape
    names = (
        choose(flags.attacks, ATTACKS)
        if flags.attacks
        else [a for a in ATTACKS if subject.norm == "Linf" or a != "spsa"]
    )
    if "spsa" in names and subject.norm != "Linf":
        raise UserError(f"--attacks {flags.attacks}: SPSA is for Linf only, and this is {subject.norm}: leave it out")
    if "square" in names and not square_starts(subject.norm, height, width):
        raise UserError(
            f"--attacks square: it cannot start on {height}x{width} images under L2: no gradient-free attack here"
        )
    return names


def make_job(name: str, flags: GradientFreeFlags, subject: Subject, eps: float) -> tuple[Job, Attacker]:
    """One attack as a list of shards, and what attacks them."""
    run, settings, steps, trial_steps, shard = KINDS[name](flags)
    settings |= {"attacks": [name], "overrides": subject.overrides}
    job = Job(subject, name, TITLES[name], eps, flags.seed, flags.batch_size or shard, settings)

    def attack(x: Tensor, y: Tensor, seed: int, show: Show) -> Attempt:
        return Attempt(run(job, x, y, seed, steps), [])

    def longest(x: Tensor, y: Tensor) -> float:
        count = min(trial_steps, steps)
        started = time.monotonic()
        run(job, x, y, 0, count)
        return (time.monotonic() - started) * steps / count

    return job, Attacker(attack, longest)


class Kind(NamedTuple):
    """One attack with its settings."""

    run: Callable[[Job, Tensor, Tensor, int, int], Tensor]  # job, x (B, ...), y (B,), seed, steps -> x_adv (B, ...)
    settings: dict[str, Any]  # for the JSON
    steps: int
    trial_steps: int  # enough to time one
    shard: int  # images


def square(flags: GradientFreeFlags) -> Kind:
    """Square with AutoAttack's settings."""

    def run(job: Job, x: Tensor, y: Tensor, seed: int, queries: int) -> Tensor:
        attack = SquareAttack(
            job.subject.model,
            norm=job.subject.norm,
            eps=job.eps,
            n_queries=queries,
            seed=seed,
            p_init=0.8,
            n_restarts=1,
            resc_schedule=False,
            device=job.device,
        )
        with torch.no_grad():
            x_adv: Tensor = attack.perturb(x, y)
        return x_adv

    settings = {"package": f"pyautoattack {version('pyautoattack')}", "queries": flags.square_queries}
    return Kind(run, settings, flags.square_queries, 50, 50)


def spsa(flags: GradientFreeFlags) -> Kind:
    """SPSA with advertorch's settings, but for the number of steps."""

    def run(job: Job, x: Tensor, y: Tensor, seed: int, steps: int) -> Tensor:
        torch.manual_seed(seed)
        samples = flags.spsa_samples
        attack = advertorch.attacks.LinfSPSAAttack(
            job.subject.model,
            job.eps,
            delta=SPSA_DELTA,
            lr=SPSA_LEARNING_RATE,
            nb_iter=steps,
            nb_sample=samples,
            max_batch_size=min(
                samples, -(-SPSA_IMAGES_A_PASS // len(job.shards[0]))
            ),  # so half the images are half the memory
        )
        x_adv: Tensor = attack.perturb(x, y)
        return x_adv

    settings = {
        "package": f"advertorch {version('advertorch')}",
        "nb_iter": flags.spsa_iter,
        "nb_sample": flags.spsa_samples,
        "delta": SPSA_DELTA,
        "lr": SPSA_LEARNING_RATE,
    }
    return Kind(run, settings, flags.spsa_iter, 2, 10)


KINDS = {"square": square, "spsa": spsa}


if __name__ == "__main__":
    sys.exit(main_of_process(main))
