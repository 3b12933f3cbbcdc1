"""The paper's networks, with the state-dict keys of the reference, and the way to anyone's own.

Every network takes images (B, C, H, W) in [0, 1] and returns logits (B, classes).
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from networks.image_conv import ImageConv2d


class LeNet5Madry(nn.Module):
    """LeNet5 of Madry's MNIST challenge, for any image of at least 4x4 pixels. Torch's default initialisation.

    Pooling stands before ReLU: the same function, with a quarter of the ReLUs.
    """

    def __init__(self, channels: int = 1, height: int = 28, width: int = 28, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = ImageConv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.linear1 = nn.Linear(64 * (height // 4) * (width // 4), 1024)
        self.linear2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class PerImageStandardize(nn.Module):
    """Each image minus its mean over pixels and channels, over max(unbiased std, 1/sqrt(C H W))."""

    def forward(self, x: Tensor) -> Tensor:
        dims = (1, 2, 3)
        centred = x - x.mean(dim=dims, keepdim=True)
        # The gradient of a square root at 0 is infinite: the floor is applied to the variance.
        pixels = x.shape[1:].numel()
        variance = centred.square().sum(dim=dims, keepdim=True) / (pixels - 1)
        return centred * variance.clamp(min=1 / pixels).rsqrt()


class ConvGroupBlock(nn.Module):
    """Pre-activation residual block: BN-ReLU-conv, BN-ReLU-conv, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = self.conv_shortcut(activated) if hasattr(self, "conv_shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class ConvGroup(nn.Module):
    """`blocks` residual blocks, the first of which changes width and stride."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        first = ConvGroupBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(first, *(ConvGroupBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Pre-activation WideResNet without dropout (Zagoruyko & Komodakis 2016); depth = 6 blocks + 4."""

    def __init__(self, depth: int = 28, widen: int = 4, channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth {depth}: a WideResNet's depth is 6 n + 4")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.convgroup1 = ConvGroup(blocks, 16, 16 * widen, 1)
        self.convgroup2 = ConvGroup(blocks, 16 * widen, 32 * widen, 2)
        self.convgroup3 = ConvGroup(blocks, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convgroup3(self.convgroup2(self.convgroup1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))


def wrn28_4(channels: int = 3, height: int = 32, width: int = 32, num_classes: int = 10) -> nn.Sequential:
    """WRN-28-4 behind per-image standardisation; any image size."""
    return nn.Sequential(PerImageStandardize(), WideResNet(28, 4, channels, num_classes))


NETWORKS = {"lenet5": LeNet5Madry, "wrn28_4": wrn28_4}


def build_model(network: str, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """`lenet5`, `wrn28_4`, or `package.module:callable`, called with channels, height, width, number of classes.

    The built-in ones are laid out channels last, which is faster; anyone's own may call `view` and is left as it is.
    The current folder is searched for the package, as `python -m` would.

    :raises UserError: if there is no such network, or it cannot be built for these images.
    """
    try:
        factory = NETWORKS[network] if network in NETWORKS else _import(network)
        model = factory(channels, height, width, num_classes)
        if not isinstance(model, nn.Module):
            raise TypeError(f"it gave a {type(model).__name__} instead of a torch.nn.Module")
        with torch.no_grad():
            shape = tuple(model.eval()(torch.zeros(2, channels, height, width)).shape)
        if shape != (2, num_classes):
            raise ValueError(f"it gives {shape} for 2 images instead of (2, {num_classes}) logits")
    except UserError:
        raise
    except Exception as error:  # anyone's own code
        raise UserError(
            f"--network {network}: does not work on {channels}x{height}x{width} images and {num_classes} "
            f"classes ({type(error).__name__}: {error}): choose another, or mend it"
        ) from error
    model.train()
    return model.to(memory_format=torch.channels_last) if network in NETWORKS else model


def _import(network: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = network.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"--network {network}: cannot be imported ({error}): the form is package.module:callable, "
            f"looked for in {here} and the installed packages"
        ) from None
