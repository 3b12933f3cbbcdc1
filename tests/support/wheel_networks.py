"""The network of the two trained MNIST models inside advertorch's wheel, for `--network tests/support/wheel_networks.py:lenet5`."""

from __future__ import annotations

from evaluations.advertorch_compat import advertorch  # isort: skip  # noqa: F401  first: it makes the imports below work

from advertorch.test_utils import LeNet5
from torch import nn


def lenet5(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """advertorch's LeNet5, which takes MNIST's images only."""
    if (channels, height, width, num_classes) != (1, 28, 28, 10):
        raise ValueError("it is made for MNIST")
    return LeNet5()
