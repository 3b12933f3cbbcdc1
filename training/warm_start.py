"""Warm starts: the last perturbation of each training image, over its radius, in eight bits a pixel (as ATTA does with
whole perturbations: Zheng et al. 2020).

A direction lies in the coordinates of the image itself. Where training sees a crop of it, the direction is cropped and
flipped along, reflected where the crop is; what is found on the crop is moved back, and only for pixels that it shows.

B batch, ... any image shape. What training reads is always what was stored, so that a resumed run, which reads it from
the file, computes the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from loading.crops import Crops
from utils import per_row, row_norms

LEVELS = 127  # of an int8, on either side of 0


class Stored(NamedTuple):
    """Directions in their stored form."""

    pixels: Tensor  # (B, ...) int8, in units of scale / LEVELS
    scale: Tensor  # (B,) float32: the largest magnitude of the row; 0: none is kept
    length: Tensor  # (B,) float32: Euclidean length of the row


def encode(direction: Tensor) -> Stored:
    """(B, ...) -> `Stored`."""
    flat = direction.flatten(1)
    scale = flat.abs().amax(1).float() if flat.numel() else flat.new_zeros(len(flat), dtype=torch.float32)
    unit = direction / per_row(scale.clamp(min=torch.finfo(torch.float32).tiny), direction)
    return Stored((unit * LEVELS).round().to(torch.int8), scale, row_norms(direction).float())


def decode(stored: Stored, norm: str) -> Tensor:
    """`Stored` -> (B, ...) float32; under L2 of the length that it had."""
    direction = stored.pixels.float() * per_row(stored.scale / LEVELS, stored.pixels)
    if norm == "L2":
        length = row_norms(direction).clamp(min=torch.finfo(torch.float32).tiny)
        direction = direction * per_row(stored.length / length, direction)
    return direction


class WarmStarts:
    """The table of all training images. crops: of the batch that is read or written; None: it shows whole images."""

    def __init__(self, count: int, shape: tuple[int, ...], norm: str, device: torch.device) -> None:
        self.norm = norm
        self.table = Stored(
            torch.zeros(count, *shape, dtype=torch.int8, device=device),
            torch.zeros(count, device=device),
            torch.zeros(count, device=device),
        )

    def read(self, index: Tensor, crops: Crops | None = None) -> Tensor:
        """(B,) -> (B, ...) float32, by the crops' pixels; 0 where none is kept."""
        directions = decode(Stored(*(part[index] for part in self.table)), self.norm)
        return directions if crops is None else crops.of(directions)

    def to_store(self, index: Tensor, new: Tensor, crops: Crops | None = None) -> Stored:
        """(B,), (B, ...) by the crops' pixels, 0 where none was found -> their stored form, by the images' pixels.

        A pixel that its crop does not show keeps what is kept of it. So under L2 the whole may be longer than 1, and the
        attack's start is brought back into the ball (`pgd`).
        """
        if crops is None:
            return encode(new)
        found = per_row(new.flatten(1).any(1), new)
        moved, shown = crops.undone(new)
        return encode(torch.where(found, torch.where(shown, moved, self.read(index).to(new)), 0))

    def known(self, index: Tensor) -> Tensor:
        """(B,) -> (B,) bool: whether there is one."""
        return self.table.scale[index] > 0

    def write(self, index: Tensor, new: Stored, counts: Tensor) -> None:
        """Overwrite the rows `index` (B,) that have a new direction, if `counts` (), that is the step was not taken back."""
        writes = counts & (new.scale > 0)
        for own, value in zip(self.table, new, strict=True):
            own[index] = torch.where(per_row(writes, value), value, own[index])

    def state_dict(self) -> dict[str, Tensor]:
        return self.table._asdict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Of the same training set, as `resume.restore` has looked."""
        for name, own in self.table._asdict().items():
            own.copy_(state[name])
