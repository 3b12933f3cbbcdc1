"""Whether an image is broken, by our own forward pass. B batch, ... any image shape; images in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses import logit_margin
from utils import row_norms

EPS_TOLERANCE = 1e-5  # rounding of an attack's last projection
RANGE_TOLERANCE = 1e-6  # rounding of x + delta at 0 and 1


def classified_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, ...), (B,) -> (B,) bool. An output that is not a number is not right."""
    with torch.no_grad():
        return logit_margin(model(x), y) < 0


def lengths(delta: Tensor, norm: str) -> Tensor:
    """(B, ...) -> (B,): how long each perturbation is."""
    return row_norms(delta) if norm == "L2" else delta.flatten(1).abs().amax(1)


def judge(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, *, norm: str, eps: float) -> tuple[Tensor, Tensor]:
    """(B, ...), (B,), (B, ...) -> (B,) bool robust, (B,) bool valid.

    A perturbation beyond eps or outside [0, 1] is not valid and breaks nothing.
    """
    pixels = x_adv.flatten(1)
    valid = (lengths(x_adv - x, norm) <= eps + EPS_TOLERANCE) & (pixels >= -RANGE_TOLERANCE).all(1)  # NaN: not valid
    valid &= (pixels <= 1 + RANGE_TOLERANCE).all(1)
    return classified_right(model, x_adv.clamp(0, 1), y) | ~valid, valid
