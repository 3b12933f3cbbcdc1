"""Pre-activation wide residual networks (Zagoruyko & Komodakis 2016), with the state-dict keys of the reference."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .standardisation import PerImageStandardize


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


class ConvGroup(nn.Module):
    """`blocks` residual blocks, the first of which changes width and stride."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        first = ConvGroupBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(first, *(ConvGroupBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Pre-activation WideResNet without dropout; depth = 6 blocks + 4."""

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
        """Standardised images (B, C, H, W) -> logits (B, classes)."""
        x = self.convgroup3(self.convgroup2(self.convgroup1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))


def wrn28_4(channels: int = 3, height: int = 32, width: int = 32, num_classes: int = 10) -> nn.Sequential:
    """WRN-28-4 behind per-image standardisation; any image size."""
    return nn.Sequential(PerImageStandardize(), WideResNet(28, 4, channels, num_classes))
