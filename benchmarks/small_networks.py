"""Dense ReLU networks that are small enough for exact margins: `--network benchmarks/small_networks.py:dense_24`."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def dense(sizes: list[int]) -> nn.Sequential:
    """Images (B, C, H, W) -> logits: layers of these sizes, the input's and the output's included, with ReLU between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def dense_24(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """One hidden layer."""
    return dense([channels * height * width, 24, classes])


def dense_20_20(channels: int, height: int, width: int, classes: int) -> nn.Sequential:
    """Two hidden layers."""
    return dense([channels * height * width, 20, 20, classes])
