"""How near the secant search of few passes comes to a bisection of many, on the two networks inside advertorch's wheel.

python benchmarks/search_passes.py [--data_root data] [--test_size 600]

One direction an image, by PGD of 6 steps; first guess: the radius of that attack, or the true crossing with 15 % noise, as the
radius of a visit before would be. Prints a Markdown table: the share of images whose radius lies within 1 % of eps_max.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from anpgd import Search
from benchmarks.compare_with_advertorch import wheel_network
from errors import exits_on_user_error
from loading.datasets import load_test
from losses import soft_logit_margin
from pgd import InnerPgd

NETWORKS = ("advtrained", "clntrained")
SETTINGS = {"Linf": (0.3, 1.05 * 0.45), "L2": (2.0, 1.05 * 4.0)}  # radius of the attack, eps_max
PASSES = (3, 4, 5, 6)
NEAR = 0.01


class Found(NamedTuple):
    near: float  # share of images within NEAR of the bisection's radius, in units of eps_max
    inside: bool  # every radius lies in [0, eps_max]


def compare(name: str, norm: str, guess: str, passes: int, x: Tensor, y: Tensor) -> Found:
    """The secant search of so many passes against a bisection of 20 halvings; guess: "attack" or "last visit"."""
    torch.manual_seed(0)
    model = wheel_network(name)
    loss = soft_logit_margin(model(x), y).detach()
    x, y, loss = x[loss < 0], y[loss < 0], loss[loss < 0]
    radius, top = SETTINGS[norm]
    start = torch.full((len(x),), radius)
    x_adv = InnerPgd(norm, 6, soft_logit_margin)(model, x, y, start, torch.rand_like(x))
    direction = (x_adv - x) / radius
    exact = Search(soft_logit_margin, top, 20)(model, x, y, direction, start).eps
    if guess == "last visit":
        start = (exact * (1 + 0.15 * torch.randn(len(x)))).clamp(0.1 * radius, top)
    found = Search(soft_logit_margin, top, passes, "secant")(model, x, y, direction, start, loss).eps
    near = ((found - exact).abs() <= NEAR * top).float().mean()
    return Found(float(near), bool(((found >= 0) & (found <= top)).all()))


@exits_on_user_error
def main() -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=int, default=600)
    flags = parser.parse_args()
    x, y, _ = load_test(
        "mnist", flags.data_root, test_size=flags.test_size, device=torch.device("cpu")
    ).split.everything()
    print("| network | norm | first guess | " + " | ".join(f"{passes} passes" for passes in PASSES) + " |")
    print("| --- " * (3 + len(PASSES)) + "|")
    for name in NETWORKS:
        for norm in SETTINGS:
            for guess in ("attack", "last visit"):
                cells = [f"{compare(name, norm, guess, passes, x, y).near:.1%}" for passes in PASSES]
                print(f"| {name} | {norm} | {guess} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
