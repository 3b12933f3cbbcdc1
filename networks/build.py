"""A network by its name: a built-in one, or anyone's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from errors import UserError
from networks.lenet import LeNet5Madry
from networks.own import cause, load_own, ours_unharmed
from networks.wide_resnet import wrn28_4

NETWORKS: dict[str, Callable[..., nn.Module]] = {"lenet5": LeNet5Madry, "wrn28_4": wrn28_4}


def build_model(network: str, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """A built-in network by name, or one's own (`networks/own.py`), called with channels, height, width, classes.

    The built-in ones are laid out channels last, which is faster; anyone's own may call `view` and is left as it is.

    :raises UserError: if there is no such network, or it cannot be built for these images.
    """
    built_in = network in NETWORKS
    with ours_unharmed():
        factory = NETWORKS[network] if built_in else load_own(network)
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
    return model.to(memory_format=torch.channels_last) if built_in else model
