"""What a state dict says: its images, and other programs' weights under our keys.

Read are RobustBench's WideResNet and the fast-AT code's PreAct ResNet-18, bare or in a wrapper. The layers are the same,
their names are not. What such a program does to images before the first layer is in no state dict, unless its mean and
standard deviation are buffers there: see `networks/standardise.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

# Before each name, put there by a module that holds the network: DataParallel, torch.compile, `nn.Sequential(normalise, net)`.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "attacker.", "1.")
MEAN, STD = re.compile(r"(^|\.)(new_)?(mu|means?)$"), re.compile(r"(^|\.)(new_)?(sigma|std|stds)$")

# Both start with `conv1`; ours stand behind the standardisation, the first of two modules, and so start with `1.`.
RENAMED = (
    (r"^(conv1|bn1|bn|fc|linear|(sub_)?block\d|layer\d)\.", r"1.\1."),
    (r"^1\.block(\d)\.", r"1.convgroup\1."),
    (r"\.convShortcut\.", ".conv_shortcut."),
)
UNUSED = "1.sub_block1."  # in the files of TRADES' WideResNet and of those after it, in no path from image to logits
COUNTER = ".num_batches_tracked"  # of BatchNorm, which old files lack and which no pass needs


class OurKeys(NamedTuple):
    """Weights under our keys."""

    weights: dict[str, Tensor]
    renamed: bool = False  # whether their names were another program's
    normalisation: Mapping[str, Tensor] = {}  # buffers of a normalisation that the network asked for lacks


def our_keys(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> OurKeys:
    """`weights` under the names of a network whose state dict is `own`.

    The first of these that has every name of `own`: as they are; without the prefixes of wrappers; renamed as well. If
    none has, as they are.
    """
    for rename in (False, True):
        for plain in _unwrapped(dict(weights)):
            found = plain
            for pattern, ours in RENAMED if rename else ():
                found = {re.sub(pattern, ours, key): value for key, value in found.items()}
            found = {key: value for key, value in found.items() if not key.startswith(UNUSED)}
            found |= {key: own[key] for key in own.keys() - found.keys() if key.endswith(COUNTER)}
            if found.keys() >= own.keys():
                beside = {key: value for key, value in found.items() if key not in own and _normalises(key)}
                return OurKeys({key: found[key] for key in found if key not in beside}, rename, beside)
    return OurKeys(dict(weights))


def _normalises(key: str) -> bool:
    return bool(MEAN.search(key) or STD.search(key))


def _unwrapped(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights, and the same without the prefix that a wrapper puts before each, and without that of the next."""
    yield weights
    # The robustness package keeps its network twice, the second time as its attacker's.
    twice = {f"attacker.{key}" for key in weights}
    once = {key: value for key, value in weights.items() if key not in twice}
    for prefix in WRAPPERS:
        inside = [key for key in once if key.startswith(prefix)]
        if inside and all(_normalises(key) for key in once.keys() - set(inside)):
            yield from _unwrapped({key.removeprefix(prefix): value for key, value in once.items()})


ANY_SIZE = 32  # of a network that takes images of every size


def shape_of(weights: dict[str, Tensor]) -> tuple[int, int, int, int]:
    """A built-in network's state dict -> channels, height, width, classes.

    The stem of `SmallResNet` sees blocks of 2x2 pixels. Of LeNet5's images the weights know the number of 4x4 blocks
    alone: a square of them, or else a column. Images have fewer channels than what convolutions make of them.

    :raises ValueError: if these are not the weights of a convolutional network.
    """
    in_order = [weights[key] for key in sorted(weights)]  # safetensors keeps an order of its own
    convolutions = [tensor for tensor in in_order if tensor.dim() == 4]
    linears = [tensor for tensor in in_order if tensor.dim() == 2]
    if not convolutions or not linears:
        raise ValueError("no convolution or no linear layer in it")
    height = width = ANY_SIZE
    if "linear1.weight" in weights and "conv2.weight" in weights:
        blocks = linears[0].shape[1] // convolutions[-1].shape[0]
        side = math.isqrt(blocks)
        height, width = (4 * side, 4 * side) if side**2 == blocks else (4 * blocks, 4)
    channels = min(kernel.shape[1] for kernel in convolutions)
    block = 4 if any(key.endswith("stem.weight") for key in weights) else 1
    return channels // block, height, width, linears[-1].shape[0]
