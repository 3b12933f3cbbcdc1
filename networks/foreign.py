"""What a state dict says: the images its network takes; and those of other programs under our keys, RobustBench's WideResNet, and the fast-AT code's PreAct ResNet-18.

The layers are the same, their names are not. What such a program does to images before the first layer is in no state
dict: ours standardises each image, and the logits are theirs for images that are standardised like that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor

Value = TypeVar("Value")

# Both start with `conv1`; ours stand behind the standardisation, the first of two modules, and so start with `1.`.
RENAMED = (
    (r"^model\.", ""),
    (r"^(conv1|bn1|bn|fc|linear|(sub_)?block\d|layer\d)\.", r"1.\1."),
    (r"^1\.block(\d)\.", r"1.convgroup\1."),
    (r"\.convShortcut\.", ".conv_shortcut."),
)

UNUSED = "1.sub_block1."  # in the files of TRADES' WideResNet and of those after it, in no path from image to logits
INPUT = "each image standardised, as ours does: the weights are another program's, which may do something else"


def our_keys(weights: Mapping[str, Value], own: Iterable[str]) -> dict[str, Value]:
    """`weights` with our names if a network whose keys are `own` then finds all of them, otherwise as they are."""
    renamed = {ours: value for key, value in weights.items() if not (ours := _renamed(key)).startswith(UNUSED)}
    wanted = set(own)
    return renamed if set(renamed) >= wanted and not set(weights) >= wanted else dict(weights)


def _renamed(key: str) -> str:
    for pattern, ours in RENAMED:
        key = re.sub(pattern, ours, key)
    return key


ANY_SIZE = 32  # of a network that takes images of every size


def shape_of(weights: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """A built-in network's state dict -> channels, height, width, classes.

    The stem of `SmallResNet` sees blocks of 2x2 pixels. Of LeNet5's images the weights know the number of 4x4 blocks
    alone: a square of them, or else a column.

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
