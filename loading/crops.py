"""Crops and flips of training images, and the way back from a crop's pixels to the image's.

B batch, C channels, H height, W width. Draws lie on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from utils import send


class Augment(NamedTuple):
    """What training images are drawn from: a crop of the image's size after reflecting `pad` pixels around it, and a flip."""

    pad: int = 4
    flip: bool = True  # horizontally, half of them


class Crops(NamedTuple):
    """How each image of a batch is cropped and flipped: a crop of the old size out of the reflected image, a horizontal flip."""

    shift: Tensor  # (B, 2) int64: pixels down and right, each of -pad to pad
    flip: Tensor  # (B,) bool

    def of(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images, or anything with a value a pixel -> (B, C, H, W): their crops."""
        height, width = x.shape[2:]
        rows = _reflect(torch.arange(height) + self.shift[:, :1], height)
        columns = _reflect(torch.arange(width) + self.shift[:, 1:], width)
        return _picked(x, rows, torch.where(self.flip[:, None], columns.flip(1), columns))

    def undone(self, cropped: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) by the crop's pixels -> the same by the image's, and (B, 1, H, W) bool, which of these it shows.

        What the crop shows beyond the image's edge, reflected, is dropped. Where it shows nothing, the values mean nothing.
        """
        height, width = cropped.shape[2:]
        rows = torch.arange(height) - self.shift[:, :1]
        columns = torch.arange(width) - self.shift[:, 1:]
        shown_rows, shown_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        shown = shown_rows[:, :, None] & shown_columns[:, None, :]
        columns = torch.where(self.flip[:, None], width - 1 - columns, columns)
        found = _picked(cropped, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
        return found, send(shown[:, None], cropped.device)


def draw_crops(count: int, draws: torch.Generator, how: Augment) -> Crops:
    """Shifts of -pad to pad pixels and, if images are flipped, flips with probability 1/2."""
    shift = torch.randint(-how.pad, how.pad + 1, (2, count), generator=draws)
    return Crops(shift.T, torch.rand(count, generator=draws) < (0.5 if how.flip else 0.0))


def _picked(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W), (B, H), (B, W) -> (B, C, H, W): of each image the pixels in these rows and columns."""
    rows, columns = send(rows, x.device), send(columns, x.device)
    examples = torch.arange(len(x), device=x.device)
    # Indexed dimensions come first where a slice stands between them: (B, H, W, C).
    picked = x[examples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return picked.clone(memory_format=torch.contiguous_format)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions up to size - 1 outside [0, size) mirrored back, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - position.abs()).abs()
