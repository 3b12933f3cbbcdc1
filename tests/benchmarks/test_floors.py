"""The floors beside the benchmark's times are of the arithmetic that they stand beside."""

from dataclasses import replace

import pytest
import torch

from benchmarks import cases
from config import PRESETS
from networks.build import build_model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_all"])
def test_floors_are_of_their_own_arithmetic(precision, monkeypatch):
    seen = []

    def recorded(model, x, y, kind, repeats=3):
        seen.append((kind, type(model).__name__, torch.is_autocast_enabled("cpu")))
        return 0.0

    monkeypatch.setattr(cases, "pass_seconds", recorded)
    cpu, twin = torch.device("cpu"), "LeNet5Madry" if precision == "fp32" else "BFloat16Twin"
    case = cases.evaluation_case([precision], cpu)
    case.run[precision]()  # counts its batches
    case.floor[precision]()
    assert [part[:2] for part in seen] == [("input", twin), ("forward", "LeNet5Madry")]
    seen.clear()
    config = replace(PRESETS["mnist", "Linf"], precision=precision)
    x, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    cases._step_floor(build_model("lenet5", 1, 28, 28, 10), x, y, 2, config)
    everywhere = precision == "bf16_all"
    assert seen[:2] == [("weights", "LeNet5Madry", everywhere), ("forward", "LeNet5Madry", everywhere)]
    assert seen[2][:2] == ("input", twin)
