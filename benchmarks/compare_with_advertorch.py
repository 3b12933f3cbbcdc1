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

STEPS, STEPS_ACROSS = 40, 30  # of eps / 30: 0.01 at 0.3


def wheel_network(name: str) -> nn.Module:
    """`advtrained` or `clntrained`, as its authors trained it."""
    path = Path(advertorch_examples.__file__).parent / "trained_models" / f"mnist_lenet5_{name}.pt"
    model = LeNet5()
    checkpoint.load_weights(model, checkpoint.load_model_file(str(path)).weights, path)
    return model.eval()


ATTACKS = ("ours", "advertorch", "foolbox")


def attacked(name: str, model: nn.Module, x: Tensor, y: Tensor, random_start: bool, eps: float) -> Tensor:
    """(B, ...), (B,) -> (B, ...) adversarial images by one of `ATTACKS`."""
    torch.manual_seed(ATTACKS.index(name))
    if name == "ours":
        noise = torch.rand(x.shape, generator=generator(0)) if random_start else None
        how = {"norm": "Linf", "eps": eps, "step_size": eps / STEPS_ACROSS, "steps": STEPS, "noise": noise}
        return pgd(model, x, y, loss_fn=cross_entropy, **how)
    if name == "advertorch":
        loss_fn = nn.CrossEntropyLoss(reduction="sum")
        how = {"eps": eps, "nb_iter": STEPS, "eps_iter": eps / STEPS_ACROSS, "rand_init": random_start}
        return advertorch.attacks.LinfPGDAttack(model, loss_fn=loss_fn, **how).perturb(x, y)
    attack = LinfPGD(rel_stepsize=1 / STEPS_ACROSS, steps=STEPS, random_start=random_start)
    return attack(PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)[1]


def robust(name: str, model: nn.Module, x: Tensor, y: Tensor, random_start: bool, eps: float = 0.3) -> Tensor:
    """(N,) bool: classified right before and after the attack of this name, in batches of 100."""
    with torch.no_grad():
        standing = logit_margin(model(x), y) < 0
    for rows in torch.arange(len(x)).split(100):
        x_adv = attacked(name, model, x[rows], y[rows], random_start, eps)
        with torch.no_grad():
            standing[rows] &= logit_margin(model(x_adv), y[rows]) < 0
    return standing


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print one line for each network, radius and kind of start. Returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=whole, default=1000)
    parser.add_argument("--eps", type=number, nargs="+", default=[0.3])
    flags = argparse.Namespace(**parser.parse(argv))
    require_positive(flags, ("test_size",))
    images = load_test("mnist", flags.data_root, test_size=flags.test_size, device=torch.device("cpu"))
    x, y, _ = images.split.everything()
    print(f"MNIST, first {flags.test_size} test images, Linf, {STEPS} steps of eps / {STEPS_ACROSS}: robust accuracy")
    names = "".join(f"{name:>12}" for name in ATTACKS)
    print(f"{'network':12}{'eps':>6}{'start':>8}{'clean':>9}{names}   flags that differ from ours")
    for name in ("advtrained", "clntrained"):
        model = wheel_network(name)
        with torch.no_grad():
            clean = (logit_margin(model(x), y) < 0).double().mean()
        for eps, random_start in itertools.product(flags.eps, (False, True)):
            found = {label: robust(label, model, x, y, random_start, eps) for label in ATTACKS}
            shares = "".join(f"{standing.double().mean():>12.2%}" for standing in found.values())
            differ = ", ".join(f"{label} {int((found[label] != found['ours']).sum())}" for label in ATTACKS[1:])
            start = "random" if random_start else "image"
            print(f"{name:12}{eps:>6g}{start:>8}{clean:>9.2%}{shares}   {differ}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
