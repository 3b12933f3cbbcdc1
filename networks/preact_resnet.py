"""Pre-activation ResNet-18 for small images (He et al. 2016), with the state-dict keys of the fast-AT code's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice, plus a shortcut from before the first BatchNorm, as in fast-AT's code; v2: where the shortcut has
    weights, from behind the first ReLU, as RobustBench's PreActBlockV2. The keys are the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, v2: bool) -> None:
        super().__init__()
        self.v2 = v2 and (stride != 1 or in_channels != out_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + self.shortcut(active if self.v2 else x)


class PreActResNet18(nn.Module):
    """Four pairs of blocks, 64 to 512 channels; the stem keeps the image's size. Torch's default initialisation."""

    def __init__(self, channels: int = 3, num_classes: int = 10, *, v2: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        before = (WIDTHS[0], *WIDTHS[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                PreActBlock(in_channels, width, 1 if width == in_channels else 2, v2=v2),
                PreActBlock(width, width, 1, v2=v2),
            )
            for in_channels, width in zip(before, WIDTHS, strict=True)
        )
        self.bn = nn.BatchNorm2d(WIDTHS[-1])
        self.linear = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W) -> logits (B, classes)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.relu(self.bn(x)).mean(dim=(2, 3)))
