"""A recorded loss curve: ten MMA steps on the digits with a small network on the CPU.

The values were printed by this file run as a program (`python tests/test_recorded_curve.py`), torch 2.15.0. Torch
versions differ in the last bits: 1e-3 relative.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS
from loading.datasets import load_dataset
from trainer import Trainer


class Double(nn.Module):
    """The network computes in float64, so that only elementwise float32 rounding is left, the same on every machine."""

    def forward(self, x):
        return x.double()


def curve(norm):
    """(clean loss, L_mma, mean eps) of each step."""
    config = replace(
        PRESETS["digits", norm], hinge_maxeps=0.3 if norm == "Linf" else 1.5, batch_size=100, lr=((0, 0.02),)
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        Double(), nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Softplus(), nn.Linear(32, 10)
    ).double()
    data = load_dataset("digits", val_size=200, test_size=0, seed=0, device=torch.device("cpu"))
    trainer = Trainer(config, model, data)
    results = [trainer.train_step() for _ in range(10)]
    return [[float(r.clean_loss), float(r.adv_loss), float(r.eps.mean())] for r in results]


RECORDED = {
    "Linf": [
        [2.42561, 2.42561, 0],
        [1.94267, 1.94267, 0],
        [1.69271, 1.69271, 0],
        [1.53169, 1.53169, 4.88281e-07],
        [1.26262, 1.26262, 3.41797e-06],
        [1.22522, 1.22745, 0.00156538],
        [1.092, 1.09614, 0.00255737],
        [0.942637, 0.956031, 0.00948023],
        [0.909341, 0.949736, 0.0211307],
        [0.863689, 0.932189, 0.0328193],
    ],
    "L2": [
        [2.42561, 2.42561, 0],
        [1.94267, 1.94267, 0],
        [1.69271, 1.69271, 0],
        [1.53169, 1.53169, 2.44141e-06],
        [1.26262, 1.26262, 1.70898e-05],
        [1.22522, 1.2271, 0.0101006],
        [1.09196, 1.09585, 0.0144949],
        [0.942595, 0.95363, 0.0547205],
        [0.909389, 0.943789, 0.113511],
        [0.863643, 0.932038, 0.195245],
    ],
}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_recorded_curve(norm):
    torch.testing.assert_close(torch.tensor(curve(norm)), torch.tensor(RECORDED[norm]), rtol=1e-3, atol=1e-6)


if __name__ == "__main__":
    for each in ("Linf", "L2"):
        print(f'    "{each}": [')
        for row in curve(each):
            print("        [" + ", ".join(f"{v:.6g}" for v in row) + "],")
        print("    ],")
