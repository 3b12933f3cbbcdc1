"""Per-image standardisation, the input layer of every built-in network for colour images."""

from __future__ import annotations

from torch import Tensor, nn


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
