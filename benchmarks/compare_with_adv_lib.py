"""DDN and FMN of adv-lib beside foolbox's, which `evaluate_on_minimum_norm.py` uses, on the networks in advertorch's wheel.

python benchmarks/compare_with_adv_lib.py [--test_size 100] [--steps 1000] [--data_root data]

Needs MNIST and `pip install adv-lib`. Prints the quartiles of the distances on the images that are classified right, inf where
nothing was found, and the seconds that each took. B batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from foolbox import PyTorchModel
from foolbox.attacks import DDNAttack, LInfFMNAttack
from torch import Tensor, nn

from benchmarks.compare_with_advertorch import wheel_network
from errors import UserError, exits_on_user_error
from evaluations.minimum_norm import L2ProjectedFMN
from loading.datasets import load_test
from losses import logit_margin
from utils import row_norms

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
BATCH = 50


def foolbox(attack: Any) -> Attack:
    """model, x (B, ...), y (B,) -> (B, ...) the nearest images that it found."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = attack(PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=None)[0]
        return found

    return run


def attacks(steps: int) -> dict[tuple[str, str], Attack]:
    """(norm, name) -> attack. FMN under Linf also with foolbox's first step size in adv-lib's.

    :raises UserError: if adv-lib is not there.
    """
    try:
        from adv_lib.attacks import ddn, fmn
    except ImportError:
        raise UserError("adv-lib is not there: pip install adv-lib") from None
    return {
        ("L2", "DDN, foolbox"): foolbox(DDNAttack(steps=steps, init_epsilon=1.0, gamma=0.05)),
        ("L2", "DDN, adv-lib"): lambda model, x, y: ddn(model, x, y, steps=steps),
        ("L2", "DDN, adv-lib, no levels"): lambda model, x, y: ddn(model, x, y, steps=steps, levels=None),
        ("L2", "FMN, foolbox, mended"): foolbox(L2ProjectedFMN(steps=steps, max_stepsize=1.0, gamma=0.05)),
        ("L2", "FMN, adv-lib"): lambda model, x, y: fmn(model, x, y, norm=2, steps=steps),
        ("Linf", "FMN, foolbox"): foolbox(LInfFMNAttack(steps=steps, max_stepsize=10.0, gamma=0.05)),
        ("Linf", "FMN, adv-lib"): lambda model, x, y: fmn(model, x, y, norm=float("inf"), steps=steps),
        ("Linf", "FMN, adv-lib, step 10"): lambda model, x, y: fmn(
            model, x, y, norm=float("inf"), steps=steps, α_init=10.0
        ),
    }


def distances(attack: Attack, norm: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) float64; inf where what was found, brought into [0, 1], is not wrong."""
    found = torch.cat([attack(model, x[i : i + BATCH].clone(), y[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    found = found.detach().clamp(0, 1)
    delta = (found - x).double()
    length = row_norms(delta) if norm == "L2" else delta.flatten(1).abs().amax(1)
    with torch.no_grad():
        return torch.where((logit_margin(model(found), y) >= 0) & (length > 0), length, torch.inf)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description="DDN and FMN of adv-lib beside foolbox's.")
    parser.add_argument("--test_size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--data_root", default="data")
    given = parser.parse_args(argv)
    compared = attacks(given.steps)
    images = load_test(
        "mnist", given.data_root, test_size=given.test_size, device=torch.device("cpu")
    ).split.everything()
    for name in ("clntrained", "advtrained"):
        model = wheel_network(name).requires_grad_(False)
        with torch.no_grad():
            right = logit_margin(model(images.x), images.y) < 0
        for (norm, attack), run in compared.items():
            torch.manual_seed(0)
            started = time.monotonic()
            found = distances(run, norm, model, images.x[right], images.y[right])
            seconds, quartiles = (
                time.monotonic() - started,
                found.sort().values[[int(len(found) * k / 4) for k in (1, 2, 3)]],
            )
            shown = " ".join(f"{value:.3f}" for value in quartiles.tolist())
            missing = int(found.isinf().sum())
            print(f"{name} {norm} {attack}: {shown}, not found {missing} of {len(found)}, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
