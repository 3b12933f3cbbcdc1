"""Attack the two MNIST networks inside advertorch's wheel with our PGD, advertorch's and foolbox's, side by side.

    python benchmarks/compare_with_advertorch.py --data_root data --test_size 1000

Each attack: Linf, 40 steps of eps / 30 on cross-entropy, once from the image itself and once from a random start.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluations.advertorch_compat import advertorch  # isort: skip  # first: it makes the imports below work

import advertorch_examples
from advertorch.test_utils import LeNet5
from foolbox import PyTorchModel
from foolbox.attacks import LinfPGD
from torch import Tensor, nn

from errors import exits_on_user_error
from flags import Parser, number, whole
from loading.datasets import load_test
from losses import cross_entropy, logit_margin
from pgd import pgd
from records import checkpoint
from utils import generator
from validation import require_positive

EPS, STEPS, BATCH = 0.3, 40, 100
STEPS_ACROSS = 30  # steps of eps / 30: 0.01 at 0.3


def wheel_network(name: str) -> nn.Module:
    """`advtrained` or `clntrained`, as its authors trained it."""
    path = Path(advertorch_examples.__file__).parent / "trained_models" / f"mnist_lenet5_{name}.pt"
    model = LeNet5()
    checkpoint.load_weights(model, checkpoint.load_model_file(str(path)).weights, path)
    return model.eval()


def robust_by_ours(model: nn.Module, x: Tensor, y: Tensor, random_start: bool, eps: float = EPS) -> Tensor:
    """(N,) bool: classified right before and after our attack."""
    noise = torch.rand(x.shape, generator=generator(0)) if random_start else None
    x_adv = pgd(
        model, x, y, loss_fn=cross_entropy, norm="Linf", eps=eps, step_size=eps / STEPS_ACROSS, steps=STEPS, noise=noise
    )
    return standing(model, x, y, x_adv)


def robust_by_advertorch(model: nn.Module, x: Tensor, y: Tensor, random_start: bool, eps: float = EPS) -> Tensor:
    """(N,) bool: classified right before and after advertorch's attack."""
    torch.manual_seed(1)
    attack = advertorch.attacks.LinfPGDAttack(
        model,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        eps=eps,
        nb_iter=STEPS,
        eps_iter=eps / STEPS_ACROSS,
        rand_init=random_start,
    )
    return standing(model, x, y, attack.perturb(x, y))


def robust_by_foolbox(model: nn.Module, x: Tensor, y: Tensor, random_start: bool, eps: float = EPS) -> Tensor:
    """(N,) bool: classified right before and after foolbox's attack."""
    torch.manual_seed(2)
    attack = LinfPGD(rel_stepsize=1 / STEPS_ACROSS, steps=STEPS, random_start=random_start)
    _, x_adv, _ = attack(PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)
    return standing(model, x, y, x_adv)


def standing(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """(N,) bool: classified right before and after."""
    with torch.no_grad():
        return (logit_margin(model(x), y) < 0) & (logit_margin(model(x_adv), y) < 0)


ATTACKS = {"ours": robust_by_ours, "advertorch": robust_by_advertorch, "foolbox": robust_by_foolbox}


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print one line for each network, radius and kind of start."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=whole, default=1000)
    parser.add_argument("--eps", type=number, nargs="+", default=[EPS])
    flags = argparse.Namespace(**parser.parse(argv))
    require_positive(flags, ("test_size",))
    batch = load_test(
        "mnist", flags.data_root, test_size=flags.test_size, device=torch.device("cpu")
    ).split.everything()
    parts = list(zip(batch.x.split(BATCH), batch.y.split(BATCH), strict=True))
    print(f"MNIST, first {flags.test_size} test images, Linf, {STEPS} steps of eps / {STEPS_ACROSS}: robust accuracy")
    print(
        f"{'network':12}{'eps':>6}{'start':>8}{'clean':>9}"
        + "".join(f"{name:>12}" for name in ATTACKS)
        + "   flags that differ from ours"
    )
    for name in ("advtrained", "clntrained"):
        model = wheel_network(name)
        with torch.no_grad():
            clean = (logit_margin(model(batch.x), batch.y) < 0).double().mean()
        for eps, random_start in itertools.product(flags.eps, (False, True)):
            found = [
                torch.cat([attack(model, *part, random_start, eps) for part in parts]) for attack in ATTACKS.values()
            ]
            shares = "".join(f"{flags.double().mean():>12.2%}" for flags in found)
            differ = ", ".join(
                f"{label} {int((flags != found[0]).sum())}" for label, flags in zip(ATTACKS, found, strict=True)
            )
            print(
                f"{name:12}{eps:>6g}{'random' if random_start else 'image':>8}{clean:>9.2%}{shares}   {differ.partition(', ')[2]}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
