"""A network by its name: a built-in one, or anyone's own."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from errors import UserError

# Relative: hubconf.py loads this package under another name, beside people's own `networks`.
from .lenet import LeNet5Madry
from .names import is_own, why_unknown, wide_resnet_sizes
from .own import cause, load_own
from .preact_resnet import PreActResNet18
from .resnets import PerImageStandardize, SmallResNet, WideResNet


def build_model(network: str, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """A built-in network by name, or one's own (`networks/own.py`), called with channels, height, width, classes.

    The built-in ones are laid out channels last, which is faster; anyone's own may call `view` and is left as it is.

    :raises UserError: if there is no such network, or it cannot be built for these images.
    """
    own = is_own(network)
    if wrong := why_unknown(network):
        raise UserError(f"--network {network}: {wrong}")
    try:
        make = load_own(network) if own else partial(built_in, network)
    except ValueError as error:
        raise UserError(f"--network {network}: {error}") from None
    shape = channels, height, width, num_classes
    try:
        model = make(*shape)
        if not isinstance(model, nn.Module):
            raise TypeError(f"it gave a {type(model).__name__} instead of a torch.nn.Module")
        if odd := [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]:
            raise TypeError(f"its state_dict() holds {odd[0]}, which is no tensor")
        with torch.no_grad():
            _logits(model.eval(), torch.zeros(2, channels, height, width), num_classes)
    except (Exception, SystemExit) as error:  # anyone's own code
        called = f"it is called with {', '.join(map(str, shape))} (channels, height, width, classes)"
        cure = f"{called}: mend it, or write a function of these that returns the network" if own else "choose another"
        raise UserError(
            f"--network {network}: does not work on {channels}x{height}x{width} images and {num_classes} classes "
            f"({cause(error)}): {cure}"
        ) from error
    model.train()
    return model if own else model.to(memory_format=torch.channels_last)


def try_out(network: str, model: nn.Module, x: Tensor, classes: int, to_train: bool) -> None:
    """A step of an attack, and one of training if it is to be trained, on a copy; x (2, C, H, W): two images.

    :raises UserError: if anyone's own code raises in it or gives no logits, with the line of theirs that did.
    """
    copied = copy.deepcopy(model)
    for mode, images in (("eval", x), ("eval", x[:1]), *([("train", x)] if to_train else [])):
        try:
            pixels = images.clone().requires_grad_()
            with torch.enable_grad():
                logits = _logits(copied.train(mode == "train"), pixels, classes)
                if to_train and logits.isnan().any():
                    raise ValueError("its logits are not a number")
                if logits.requires_grad:
                    logits.float().logsumexp(1).sum().backward()
                if to_train and pixels.grad is None:
                    raise ValueError("no gradient reaches the images")
        except (Exception, SystemExit) as error:  # anyone's own code
            raise UserError(
                f"--network {network}: does not work in {mode} mode on {len(images)} images that ask for a gradient "
                f"({cause(error)}): mend it"
            ) from error


def _logits(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    """(B, C, H, W) -> (B, classes), which anyone's own code may not give."""
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"it gives {found} instead of {(len(x), classes)} logits")
    return logits


def built_in(network: str, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """The built-in network of this name (`is_built_in`); all but LeNet5 stand behind per-image standardisation."""
    if network == "lenet5":
        return LeNet5Madry(channels, height, width, num_classes)
    if network.startswith("preact_resnet18"):
        v2 = network.endswith("_v2")
        return nn.Sequential(PerImageStandardize(), PreActResNet18(channels, num_classes, v2=v2))
    if network == "small_resnet":
        return nn.Sequential(PerImageStandardize(), SmallResNet(channels, num_classes))
    depth, widen = wide_resnet_sizes(network) or (28, 4)
    return nn.Sequential(PerImageStandardize(), WideResNet(depth, widen, channels, num_classes))
