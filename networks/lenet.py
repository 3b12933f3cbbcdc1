"""LeNet5 of Madry's MNIST challenge, with the state-dict keys of the reference."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .activation import Activation
from .image_conv import ImageConv2d


class LeNet5Madry(nn.Module):
    """LeNet5 of Madry's MNIST challenge, for any image of at least 4x4 pixels. Torch's default initialisation.

    Pooling stands before ReLU: the same function, with a quarter of the ReLUs.
    """

    def __init__(
        self,
        channels: int = 1,
        height: int = 28,
        width: int = 28,
        num_classes: int = 10,
        activation: Activation = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = ImageConv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.linear1 = nn.Linear(64 * (height // 4) * (width // 4), 1024)
        self.linear2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> logits (B, classes)."""
        x = self._pooled(self._pooled(x, self.conv1), self.conv2)
        logits: Tensor = self.linear2(self.activation(self.linear1(x.flatten(1))))
        return logits

    def _pooled(self, x: Tensor, conv: nn.Module) -> Tensor:
        if self.activation is F.relu:
            return F.relu(F.max_pool2d(conv(x), 2))
        return F.max_pool2d(self.activation(conv(x)), 2)  # what falls somewhere does not change places with a maximum
