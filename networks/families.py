"""The built-in networks by name. Relative imports only: this and what it needs can be loaded under another name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .activation import ACTIVATIONS
from .lenet import LeNet5Madry
from .names import why_unknown, wide_resnet_sizes
from .preact_resnet import PreActResNet18
from .small_resnet import SmallResNet
from .standardisation import PerImageStandardize
from .wide_resnet import WideResNet


def built_in(network: str, activation: str = "relu") -> Callable[[int, int, int, int], nn.Module]:
    """What makes the network of this name from channels, height, width and number of classes.

    All but LeNet5 stand behind per-image standardisation.

    :raises ValueError: if there is none of this name.
    """
    if wrong := why_unknown(network):
        raise ValueError(f"{network}: {wrong}")
    act = ACTIVATIONS[activation]
    depth, widen = wide_resnet_sizes(network) or (28, 4)

    def make(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
        if network == "lenet5":
            return LeNet5Madry(channels, height, width, num_classes, act)
        if network == "preact_resnet18":
            inner: nn.Module = PreActResNet18(channels, num_classes, act)
        elif network == "small_resnet":
            inner = SmallResNet(channels, num_classes, act)
        else:
            inner = WideResNet(depth, widen, channels, num_classes, act)
        return nn.Sequential(PerImageStandardize(), inner)

    return make
