"""What images a network takes, read off its weights."""

from __future__ import annotations

import math

from torch import Tensor

ANY_SIZE = 32  # of a network that takes images of every size


def shape_of(weights: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """A built-in network's state dict -> channels, height, width, classes.

    The stem of `SmallResNet` sees blocks of 2x2 pixels. Of LeNet5's images the weights know the number of 4x4 blocks alone: a square of them, or else a column.

    :raises ValueError: if these are not the weights of a convolutional network.
    """
    convolutions = [tensor for tensor in weights.values() if tensor.dim() == 4]
    linears = [tensor for tensor in weights.values() if tensor.dim() == 2]
    if not convolutions or not linears:
        raise ValueError("no convolution or no linear layer in it")
    height = width = ANY_SIZE
    if "linear1.weight" in weights and "conv2.weight" in weights:
        blocks = linears[0].shape[1] // convolutions[-1].shape[0]
        side = math.isqrt(blocks)
        height, width = (4 * side, 4 * side) if side**2 == blocks else (4 * blocks, 4)
    colours = convolutions[0].shape[1] // (4 if any(key.endswith("stem.weight") for key in weights) else 1)
    return colours, height, width, linears[-1].shape[0]
