"""Attack the two MNIST networks that come inside advertorch's wheel with our PGD and with advertorch's, side by side.

    python scripts/compare_with_advertorch.py --data_root data --test_size 1000

Both attacks: Linf, eps 0.3, 40 steps of 0.01 on cross-entropy, once from the image itself and once from a random start.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from advertorch_compat import advertorch  # isort: skip  # first: it makes the imports below work

import advertorch_examples
from advertorch.test_utils import LeNet5
from torch import nn

from data import load_test
from errors import exits_on_user_error
from losses import cross_entropy, logit_margin
from pgd import pgd
from utils import generator

EPS, STEP, STEPS, BATCH = 0.3, 0.01, 40, 100


def wheel_network(name: str) -> nn.Module:
    """`advtrained` or `clntrained`, as its authors trained it."""
    path = Path(advertorch_examples.__file__).parent / "trained_models" / f"mnist_lenet5_{name}.pt"
    model = LeNet5()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def robust_by_ours(model: nn.Module, x: torch.Tensor, y: torch.Tensor, random_start: bool) -> torch.Tensor:
    """(N,) bool: classified right before and after our attack."""
    noise = torch.rand(x.shape, generator=generator(0)) if random_start else None
    x_adv = pgd(model, x, y, loss_fn=cross_entropy, norm="Linf", eps=EPS, step_size=STEP, steps=STEPS, noise=noise)
    return standing(model, x, y, x_adv)


def robust_by_advertorch(model: nn.Module, x: torch.Tensor, y: torch.Tensor, random_start: bool) -> torch.Tensor:
    """(N,) bool: classified right before and after advertorch's attack."""
    torch.manual_seed(1)
    attack = advertorch.attacks.LinfPGDAttack(
        model,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        eps=EPS,
        nb_iter=STEPS,
        eps_iter=STEP,
        rand_init=random_start,
    )
    return standing(model, x, y, attack.perturb(x, y))


def standing(model: nn.Module, x: torch.Tensor, y: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (logit_margin(model(x), y) < 0) & (logit_margin(model(x_adv), y) < 0)


@exits_on_user_error
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=int, default=1000)
    flags = parser.parse_args()
    batch = load_test(
        "mnist", flags.data_root, test_size=flags.test_size, device=torch.device("cpu")
    ).split.everything()
    parts = list(zip(batch.x.split(BATCH), batch.y.split(BATCH), strict=True))
    print(f"MNIST, first {flags.test_size} test images, Linf {EPS}, {STEPS} steps of {STEP}: robust accuracy")
    print(f"{'network':12}{'start':>8}{'clean':>9}{'ours':>9}{'advertorch':>12}{'flags that differ':>19}")
    for name in ("advtrained", "clntrained"):
        model = wheel_network(name)
        with torch.no_grad():
            clean = (logit_margin(model(batch.x), batch.y) < 0).double().mean()
        for random_start in (False, True):
            ours, theirs = (
                torch.cat([attack(model, *part, random_start) for part in parts])
                for attack in (robust_by_ours, robust_by_advertorch)
            )
            shares = "".join(f"{f.double().mean():>{w}.2%}" for f, w in ((ours, 9), (theirs, 12)))
            print(
                f"{name:12}{'random' if random_start else 'image':>8}{clean:>9.2%}{shares}{(ours != theirs).sum():>19}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
