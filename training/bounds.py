"""Interval bounds of LeNet5's logits (Gowal et al. 2018), as a term of the loss beside MMA's. B images, C classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.lenet import LeNet5Madry


def small_weights(model: nn.Module) -> None:
    """Weights that keep interval bounds tight at the start: N(0, sqrt(2 pi) / fan-in) (Shi et al. 2021), biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, math.sqrt(2 * math.pi) / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _conv(layer: nn.Conv2d, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    middle = F.conv2d((low + high) / 2, layer.weight, layer.bias, padding=layer.padding)
    radius = F.conv2d((high - low) / 2, layer.weight.abs(), padding=layer.padding)
    return F.relu(F.max_pool2d(middle - radius, 2)), F.relu(F.max_pool2d(middle + radius, 2))


def worst_logits(model: LeNet5Madry, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """(B, ...), (B,) -> (B, C): upper bounds of z_t - z_y over the box of radius eps in [0, 1]; 0 at t = y."""
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    for layer in (model.conv1, model.conv2):
        low, high = _conv(layer, low, high)
    low, high = low.flatten(1), high.flatten(1)
    middle = model.linear1((low + high) / 2)
    radius = F.linear((high - low) / 2, model.linear1.weight.abs())
    low, high = F.relu(middle - radius), F.relu(middle + radius)
    rows = model.linear2.weight[None] - model.linear2.weight[y][:, None]  # (B, C, hidden): of z_t - z_y
    shift = model.linear2.bias[None] - model.linear2.bias[y][:, None]
    middle = torch.einsum("bch,bh->bc", rows, (low + high) / 2)
    return middle + shift + torch.einsum("bch,bh->bc", rows.abs(), (high - low) / 2)


def bound_gradient(
    model: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor, eps: float
) -> tuple[Tensor, ...]:
    """The gradient of the mean cross-entropy of the worst logits."""
    assert isinstance(model, LeNet5Madry)
    return torch.autograd.grad(F.cross_entropy(worst_logits(model, x, y, eps), y), parameters)
