"""A network by its name: a built-in one, or anyone's own."""

from __future__ import annotations

import torch
from torch import nn

from errors import UserError
from networks.families import built_in
from networks.names import is_own, why_unknown
from networks.own import cause, load_own, ours_unharmed


def build_model(
    network: str, channels: int, height: int, width: int, num_classes: int, activation: str = "relu"
) -> nn.Module:
    """A built-in network by name, or one's own (`networks/own.py`), called with channels, height, width, classes.

    The built-in ones are laid out channels last, which is faster; anyone's own may call `view` and is left as it is.

    :raises UserError: if there is no such network, or it cannot be built for these images.
    """
    if wrong := why_unknown(network):
        raise UserError(f"--network {network}: {wrong}")
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
