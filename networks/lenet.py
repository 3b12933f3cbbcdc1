"""LeNet5 of Madry's MNIST challenge, with the state-dict keys of the reference, and its cheap first convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 4


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
        """Images (B, C, H, W) in [0, 1] -> logits (B, classes)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1, the same function and state dict, with a cheap input gradient on CPUs.

    CPU kernels work on 16 channels at a time, so that the gradient of a grey image costs 16 times what it needs. Where
    only that gradient is asked for, as in PGD, it is taken for blocks of 4x4 pixels as 16 channels, and the blocks are
    then put in their places.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        frozen = not any(p.requires_grad for p in self.parameters())
        in_blocks = x.shape[-2] % BLOCK == x.shape[-1] % BLOCK == 0
        if x.device.type == "cpu" and x.requires_grad and frozen and in_blocks:
            return _FrozenConv.apply(x, self.weight, self.bias, self.padding)
        return super().forward(x)


class _FrozenConv(torch.autograd.Function):
    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, padding = inputs
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dtype = padding, x.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        padding = [size - 1 - pad for size, pad in zip(weight.shape[2:], ctx.padding, strict=True)]
        blocks = F.conv2d(gradient, _block_kernel(weight).to(gradient.dtype), stride=BLOCK, padding=padding)
        return F.pixel_shuffle(blocks, BLOCK).to(ctx.dtype), None, None, None


def _block_kernel(weight: Tensor) -> Tensor:
    """(out, C, h, w) -> (16 C, out, h + 3, w + 3): the flipped kernel at each of a block's 16 places."""
    flipped = weight.flip(2, 3).transpose(0, 1)
    last = BLOCK - 1
    shifted = [F.pad(flipped, (j, last - j, i, last - i)) for i in range(BLOCK) for j in range(BLOCK)]
    return torch.stack(shifted, dim=1).flatten(0, 1)
