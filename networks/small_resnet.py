"""A residual network that two CPU cores can train: pre-activation blocks on images of half the size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .activation import Activation
from .wide_resnet import ConvGroupBlock, initialise

WIDTHS, STRIDES = (32, 40, 52), (1, 2, 2)


class SmallResNet(nn.Module):
    """Blocks of 2x2 pixels become channels, then a stem of 32 and three residual blocks of 32, 40 and 52.

    Nothing works at the image's full size, where a CPU's memory is the limit and not its arithmetic.
    """

    def __init__(self, channels: int = 3, num_classes: int = 10, activation: Activation = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.stem = nn.Conv2d(4 * channels, WIDTHS[0], 3, padding=1, bias=False)
        before = (WIDTHS[0], *WIDTHS[:-1])
        self.blocks = nn.Sequential(
            *(ConvGroupBlock(*sizes, activation) for sizes in zip(before, WIDTHS, STRIDES, strict=True))
        )
        self.bn1 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images (B, C, H, W), padded to even sizes -> logits (B, classes)."""
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        _, channels, height, width = x.shape
        # pixel_unshuffle leaves an empty batch as it is, which a process's share may be.
        x = F.pixel_unshuffle(x, 2) if len(x) else x.reshape(0, 4 * channels, height // 2, width // 2)
        logits: Tensor = self.fc(self.activation(self.bn1(self.blocks(self.stem(x)))).mean(dim=(2, 3)))
        return logits
