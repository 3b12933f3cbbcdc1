"""Pre-activation wide residual networks (Zagoruyko & Komodakis 2016), with the state-dict keys of the reference."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .activation import Activation
from .standardisation import PerImageStandardize


class ConvGroupBlock(nn.Module):
    """Pre-activation residual block: BN-ReLU-conv, BN-ReLU-conv, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        activated = self.activation(self.bn1(x))
        shortcut = self.conv_shortcut(activated) if hasattr(self, "conv_shortcut") else x
        out: Tensor = self.conv2(self.activation(self.bn2(self.conv1(activated)))) + shortcut
        return out


class ConvGroup(nn.Module):
    """`blocks` residual blocks, the first of which changes width and stride."""

    def __init__(
        self, blocks: int, in_channels: int, out_channels: int, stride: int, activation: Activation = F.relu
    ) -> None:
        super().__init__()
        first = ConvGroupBlock(in_channels, out_channels, stride, activation)
        others = (ConvGroupBlock(out_channels, out_channels, 1, activation) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Pre-activation WideResNet without dropout; depth = 6 blocks + 4."""

    def __init__(
        self,
        depth: int = 28,
        widen: int = 4,
        channels: int = 3,
        num_classes: int = 10,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__()
        if (depth - 4) % 6 or depth < 10:
            raise ValueError(f"depth {depth}: a WideResNet's depth is 6 n + 4")
        blocks = (depth - 4) // 6
        self.activation = activation
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.convgroup1 = ConvGroup(blocks, 16, 16 * widen, 1, activation)
        self.convgroup2 = ConvGroup(blocks, 16 * widen, 32 * widen, 2, activation)
        self.convgroup3 = ConvGroup(blocks, 32 * widen, 64 * widen, 2, activation)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W) -> logits (B, classes)."""
        x = self.convgroup3(self.convgroup2(self.convgroup1(self.conv1(x))))
        logits: Tensor = self.fc(self.activation(self.bn1(x)).mean(dim=(2, 3)))
        return logits


def initialise(model: nn.Module) -> None:
    """Convolutions by N(0, sqrt(2 / fan-out)), the last layer's bias `fc.bias` 0; in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
    nn.init.zeros_(model.get_parameter("fc.bias"))


def wrn28_4(channels: int = 3, height: int = 32, width: int = 32, num_classes: int = 10) -> nn.Sequential:
    """WRN-28-4 behind per-image standardisation; any image size."""
    return nn.Sequential(PerImageStandardize(), WideResNet(28, 4, channels, num_classes))
