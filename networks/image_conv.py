"""A convolution on images of few channels, with a cheap input gradient on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 4


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1, the same function and state dict.

    CPU kernels work on 16 channels at a time, so that the gradient of a grey image costs 16 times what it needs. Where
    only that gradient is asked for, as in PGD, it is taken for blocks of 4x4 pixels as 16 channels, and the blocks are
    then put in their places.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        frozen = not any(p.requires_grad for p in self.parameters())
        in_blocks = x.shape[-2] % BLOCK == x.shape[-1] % BLOCK == 0
        if x.device.type == "cpu" and x.requires_grad and frozen and in_blocks:
            out: Tensor = _FrozenConv.apply(x, self.weight, self.bias, self.padding)
            return out
        return super().forward(x)


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dtype = padding, x.dtype
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
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
