"""Attack a trained network without its gradients: `python evaluate_on_gradient_free_attacks.py --model PATH`.

Square (Andriushchenko et al. 2020; pyautoattack's) under both norms, SPSA (Uesato et al. 2018; advertorch's) under Linf:
if one of them breaks what attacks by gradients do not, the gradients mislead. B batch, ... any image shape.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from config import opt
from errors import UserError, exits_on_user_error
from evaluations import external_attacks
from evaluations.advertorch_compat import advertorch
from evaluations.external_attacks import ExternalAttack, settled_eps, square_starts
from evaluations.flags import EvaluationFlags, choose, parse_flags
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller

ATTACKS = {"square": ("Square", 50, 50), "spsa": ("SPSA", 10, 2)}  # title, images a shard, steps that time it
DEFAULT_IMAGES = {"cpu": 100, "cuda": 1000}
SPSA = {"delta": 0.01, "lr": 0.01}  # advertorch's own
SPSA_IMAGES_A_PASS = 2000  # bounds memory


@dataclass(frozen=True)
class GradientFreeFlags(EvaluationFlags):
    """One evaluation by attacks that do not use gradients."""

    eps: float | None = opt(None, "radius (default: the training's test radius)")
    attacks: str | None = opt(None, "square, spsa or square,spsa (default: both; under L2 square)")
    test_size: int | None = opt(None, "test images (default: the first 1000, on a CPU the first 100)")
    batch_size: int | None = opt(None, "images a shard: attacked together, then kept (default: square 50, spsa 10)")
    square_queries: int = opt(5000, "queries of Square an image")
    spsa_iter: int = opt(100, "steps of SPSA")
    spsa_samples: int = opt(128, "pairs of queries for one step of SPSA")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the results. Returns the exit status."""
    return run_evaluation(parse(argv), evaluate, default_size=lambda subject: DEFAULT_IMAGES[subject.device.type])


def parse(argv: Sequence[str] | None = None) -> GradientFreeFlags:
    """The command line."""
    return parse_flags(GradientFreeFlags, "Attack a network without its gradients.", list(ATTACKS), argv)


def evaluate(flags: GradientFreeFlags, subject: Subject, teller: Teller, world: World) -> None:
    """Each attack of `--attacks`, or all that exist for this norm."""
    eps = settled_eps(flags.eps, subject, teller, world)
    for name in world.together(lambda: attacks_asked(flags, subject)):
        size = flags.batch_size or ATTACKS[name][1]
        attack = attack_of(name, flags, subject, eps, min(size, len(subject.test)))
        external_attacks.evaluate(attack, flags, size, subject, teller, world)


def attacks_asked(flags: GradientFreeFlags, subject: Subject) -> list[str]:
    """:raises UserError: if one of the attacks cannot run on these images or in this norm."""
    names = choose(flags.attacks or ("square,spsa" if subject.norm == "Linf" else "square"), list(ATTACKS))
    if "spsa" in names and subject.norm != "Linf":
        raise UserError(f"--attacks {flags.attacks}: SPSA is for Linf only, and this is {subject.norm}: leave it out")
    size = "x".join(map(str, subject.test.shape[1:]))
    if "square" in names and not square_starts(subject.norm, *subject.test.shape[1:]):
        raise UserError(f"--attacks square: it cannot start on {size} images under L2: no gradient-free attack here")
    return names


def attack_of(name: str, flags: GradientFreeFlags, subject: Subject, eps: float, together: int) -> ExternalAttack:
    """Square with AutoAttack's settings, or SPSA with advertorch's but for the number of steps; on so many images together."""

    def square(x: Tensor, y: Tensor, seed: int, queries: int) -> Tensor:
        how = {"norm": subject.norm, "eps": eps, "n_queries": queries, "seed": seed, "device": x.device}
        attack = SquareAttack(subject.model, p_init=0.8, n_restarts=1, resc_schedule=False, **how)
        with torch.no_grad():
            x_adv: Tensor = attack.perturb(x, y)
        return x_adv

    def spsa(x: Tensor, y: Tensor, seed: int, steps: int) -> Tensor:
        torch.manual_seed(seed)
        at_once = min(flags.spsa_samples, -(-SPSA_IMAGES_A_PASS // together))
        how = {**SPSA, "nb_iter": steps, "nb_sample": flags.spsa_samples, "max_batch_size": at_once}
        x_adv: Tensor = advertorch.attacks.LinfSPSAAttack(subject.model, eps, **how).perturb(x, y)
        return x_adv

    kinds: dict[str, tuple[Callable[..., Tensor], int, dict[str, Any]]] = {
        "square": (square, flags.square_queries, {"queries": flags.square_queries}),
        "spsa": (spsa, flags.spsa_iter, {"nb_iter": flags.spsa_iter, "nb_sample": flags.spsa_samples, **SPSA}),
    }
    perturb, steps, settings = kinds[name]
    title, _, trial_steps = ATTACKS[name]
    package = "pyautoattack" if name == "square" else "advertorch"

    def longest(x: Tensor, y: Tensor) -> float:
        started = time.monotonic()
        perturb(x, y, 0, min(trial_steps, steps))
        return (time.monotonic() - started) * steps / min(trial_steps, steps)

    return ExternalAttack(
        name,
        title,
        eps,
        {**settings, "package": f"{package} {version(package)}", "attacks": [name]},
        lambda x, y, seed: (perturb(x, y, seed, steps), []),
        longest,
    )


if __name__ == "__main__":
    sys.exit(main_of_process(main))
