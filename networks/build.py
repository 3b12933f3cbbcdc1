"""A network by its name: a built-in one, or anyone's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from errors import UserError
from networks.activation import ACTIVATIONS
from networks.lenet import LeNet5Madry
from networks.names import is_own, refuse_unknown, wide_resnet_sizes
from networks.own import cause, load_own, ours_unharmed
from networks.preact_resnet import PreActResNet18
from networks.small_resnet import SmallResNet
from networks.standardisation import PerImageStandardize
from networks.wide_resnet import WideResNet


def built_in(network: str, activation: str = "relu") -> Callable[[int, int, int, int], nn.Module]:
    """What makes the built-in network of this name from channels, height, width and number of classes.

    All but LeNet5 stand behind per-image standardisation.

    :raises UserError: if there is none, saying which there are.
    """
    refuse_unknown(network)
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


def build_model(
    network: str, channels: int, height: int, width: int, num_classes: int, activation: str = "relu"
) -> nn.Module:
    """A built-in network by name, or one's own (`networks/own.py`), called with channels, height, width, classes.

    The built-in ones are laid out channels last, which is faster; anyone's own may call `view` and is left as it is.

    :raises UserError: if there is no such network, or it cannot be built for these images.
    """
    own = is_own(network)
    with ours_unharmed():
        factory = load_own(network) if own else built_in(network, activation)
        try:
            model = factory(channels, height, width, num_classes)
            if not isinstance(model, nn.Module):
                raise TypeError(f"it gave a {type(model).__name__} instead of a torch.nn.Module")
            with torch.no_grad():
                shape = tuple(model.eval()(torch.zeros(2, channels, height, width)).shape)
            if shape != (2, num_classes):
                raise ValueError(f"it gives {shape} for 2 images instead of (2, {num_classes}) logits")
        except (Exception, SystemExit) as error:  # anyone's own code
            raise UserError(
                f"--network {network}: does not work on {channels}x{height}x{width} images and {num_classes} "
                f"classes ({cause(error)}): choose another, or mend it"
            ) from error
    model.train()
    return model if own else model.to(memory_format=torch.channels_last)
