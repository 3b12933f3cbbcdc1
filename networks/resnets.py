"""Residual networks of pre-activation blocks (Zagoruyko & Komodakis 2016), and the standardisation they stand behind.

`WideResNet` has the state-dict keys of the reference; `SmallResNet` is one that two CPU cores can train.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

SMALL_WIDTHS, SMALL_STRIDES = (32, 40, 52), (1, 2, 2)


class PerImageStandardize(nn.Module):
    """Each image minus its mean over pixels and channels, over max(unbiased std, 1/sqrt(C H W))."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
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
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = self.conv_shortcut(activated) if hasattr(self, "conv_shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


def conv_group(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """`blocks` residual blocks, the first of which changes width and stride; their keys begin with `layer`."""
    first = ConvGroupBlock(in_channels, out_channels, stride)
    layer = nn.Sequential(first, *(ConvGroupBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))


class WideResNet(nn.Module):
    """Pre-activation WideResNet without dropout; depth is 6 n + 4, n blocks a group."""

    def __init__(self, depth: int = 28, widen: int = 4, channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.convgroup1 = conv_group(blocks, 16, 16 * widen, 1)
        self.convgroup2 = conv_group(blocks, 16 * widen, 32 * widen, 2)
        self.convgroup3 = conv_group(blocks, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W) -> logits (B, classes)."""
        x = self.convgroup3(self.convgroup2(self.convgroup1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))


class SmallResNet(nn.Module):
    """Blocks of 2x2 pixels become channels, then a stem of 32 and three residual blocks of 32, 40 and 52.

    Nothing works at the image's full size, where a CPU's memory is the limit and not its arithmetic.
    """

    def __init__(self, channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * channels, SMALL_WIDTHS[0], 3, padding=1, bias=False)
        before = (SMALL_WIDTHS[0], *SMALL_WIDTHS[:-1])
        sizes = zip(before, SMALL_WIDTHS, SMALL_STRIDES, strict=True)
        self.blocks = nn.Sequential(*(ConvGroupBlock(*size) for size in sizes))
        self.bn1 = nn.BatchNorm2d(SMALL_WIDTHS[-1])
        self.fc = nn.Linear(SMALL_WIDTHS[-1], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W), padded to even sizes -> logits (B, classes)."""
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        count, channels, height, width = x.shape
        # Not F.pixel_unshuffle: it leaves an empty batch as it is, which a process's share may be, and its export to ONNX
        # takes batches of one size alone.
        blocks = x.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        x = blocks.reshape(count, 4 * channels, height // 2, width // 2)
        return self.fc(F.relu(self.bn1(self.blocks(self.stem(x)))).mean(dim=(2, 3)))


def _initialise(model: nn.Module) -> None:
    """Convolutions by N(0, sqrt(2 / fan-out)), the last layer's bias `fc.bias` 0; in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
    nn.init.zeros_(model.get_parameter("fc.bias"))
