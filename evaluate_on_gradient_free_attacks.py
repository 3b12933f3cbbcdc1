"""Attack a trained network without its gradients: `python evaluate_on_gradient_free_attacks.py --model PATH`.

Square (Andriushchenko et al. 2020; pyautoattack's) under both norms, SPSA (Uesato et al. 2018; advertorch's) under Linf:
if one of them breaks what attacks by gradients do not, the gradients mislead. B batch, ... any image shape.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # as `python -I` does not

from evaluations.flags import GradientFreeFlags, choose, parse_flags
from flags import answers_help

answers_help(__name__, lambda: parse_flags(GradientFreeFlags))

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from errors import UserError, exits_on_user_error
from evaluations import external_attacks
from evaluations.advertorch_compat import advertorch
from evaluations.external_attacks import square_starts
from evaluations.shards import run_evaluation
from evaluations.subject import Subject
from processes.distributed import World, main_of_process
from records.progress import Teller

IMAGES_A_SHARD = {"square": 50, "spsa": 10}
DEFAULT_IMAGES = {"cpu": 100, "cuda": 1000}
SPSA = {"delta": 0.01, "lr": 0.01}  # advertorch's own
SPSA_IMAGES_A_PASS = 2000  # bounds memory


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, print and write the results. Returns the exit status."""
    flags = parse_flags(GradientFreeFlags, argv)
    return run_evaluation(flags, evaluate, default_size=lambda subject: DEFAULT_IMAGES[subject.device.type])


def evaluate(flags: GradientFreeFlags, subject: Subject, teller: Teller, world: World) -> None:
    """Each attack of `--attacks`, or all that exist for this norm."""
    (eps,), notes = world.together(lambda: subject.radii([flags.eps] if flags.eps else None))
    teller.note(*notes)
    for name in world.together(lambda: attacks_asked(flags, subject)):
        size = flags.batch_size or IMAGES_A_SHARD[name]
        attack = attack_of(name, flags, subject, eps, min(size, len(subject.test)))
        external_attacks.evaluate(flags, subject, teller, world, eps=eps, batch_size=size, **attack)


def attacks_asked(flags: GradientFreeFlags, subject: Subject) -> list[str]:
    """:raises UserError: if one of the attacks cannot run on these images or in this norm."""
    names = choose(flags.attacks or ("square,spsa" if subject.norm == "Linf" else "square"), list(IMAGES_A_SHARD))
    if "spsa" in names and subject.norm != "Linf":
        raise UserError(f"--attacks {flags.attacks}: SPSA is for Linf only, and this is {subject.norm}: leave it out")
    if "square" in names and not square_starts(subject.norm, *subject.test.shape[1:]):
        size = "x".join(map(str, subject.test.shape[1:]))
        raise UserError(f"--attacks square: it cannot start on {size} images under L2: no gradient-free attack here")
    return names


def attack_of(name: str, flags: GradientFreeFlags, subject: Subject, eps: float, together: int) -> dict[str, Any]:
    """Square with AutoAttack's settings, or SPSA with advertorch's but for the number of steps; on so many images together.
    As `external_attacks.evaluate` takes it."""

    def square(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, list[str]]:
        how = {"norm": subject.norm, "eps": eps, "n_queries": flags.square_queries, "seed": seed, "device": x.device}
        attack = SquareAttack(subject.model, p_init=0.8, n_restarts=1, resc_schedule=False, **how)
        with torch.no_grad():
            return attack.perturb(x, y), []

    def spsa(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, list[str]]:
        torch.manual_seed(seed)
        at_once = min(flags.spsa_samples, -(-SPSA_IMAGES_A_PASS // together))
        how = {**SPSA, "nb_iter": flags.spsa_iter, "nb_sample": flags.spsa_samples, "max_batch_size": at_once}
        return advertorch.attacks.LinfSPSAAttack(subject.model, eps, **how).perturb(x, y), []

    if name == "square":
        settings = {"queries": flags.square_queries, "package": f"pyautoattack {version('pyautoattack')}"}
        return {"name": name, "settings": {**settings, "attacks": [name]}, "attack": square}
    settings = {"nb_iter": flags.spsa_iter, "nb_sample": flags.spsa_samples, **SPSA}
    settings |= {"package": f"advertorch {version('advertorch')}", "attacks": [name]}
    return {"name": name, "settings": settings, "attack": spsa}


if __name__ == "__main__":
    sys.exit(main_of_process(main))
