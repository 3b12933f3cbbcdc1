"""Where ten MMA steps on the digits end, with a small network on the CPU, as recorded with torch 2.15.0: each step depends
on all before. Torch versions differ in the last bits: 1e-3 relative."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from config import PRESETS
from linear import CPU
from loading.datasets import load_dataset
from trainer import Trainer


class Double(nn.Module):
    """The network computes in float64, so that only elementwise float32 rounding is left, the same on every machine."""

    def forward(self, x):
        return x.double()


RECORDED = {  # d_max; clean loss, L_mma and mean eps of the sixth and the tenth step
    "Linf": (0.3, [1.22522, 1.22745, 0.00156538], [0.863689, 0.932189, 0.0328193]),
    "L2": (1.5, [1.22522, 1.2271, 0.0101006], [0.863643, 0.932038, 0.195245]),
}


@pytest.mark.parametrize("norm", RECORDED)
def test_recorded_curve(norm):
    d_max, *recorded = RECORDED[norm]
    config = replace(PRESETS["digits", norm], hinge_maxeps=d_max, batch_size=100, lr=((0, 0.02),))
    torch.manual_seed(0)
    model = nn.Sequential(
        Double(), nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Softplus(), nn.Linear(32, 10)
    ).double()
    trainer = Trainer(config, model, load_dataset("digits", val_size=200, test_size=0, seed=0, device=CPU))
    steps = [trainer.train_step() for _ in range(10)]
    for step, expected in zip((steps[5], steps[9]), recorded, strict=True):
        found = [float(part) for part in (step.clean_loss, step.adv_loss, step.eps.mean())]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
