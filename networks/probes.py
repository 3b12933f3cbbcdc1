"""What a network, perhaps somebody's own, can do: found by a pass on a copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def uses_all(model: nn.Module, x: Tensor) -> bool:
    """Whether the output on x (B, ...) depends on every parameter that is trained."""
    probe = copy.deepcopy(model).eval()
    probe(x).sum().backward()
    return all(p.grad is not None for p in probe.parameters() if p.requires_grad)


def accepts(model: nn.Module, x: Tensor) -> bool:
    """Whether the network works on so few images, x (B, ...), on one in train mode too: BatchNorm on vectors does not."""
    probe = copy.deepcopy(model).train(len(x) > 0)
    try:
        with torch.no_grad():
            probe(x)
    except ValueError:
        return False
    except Exception:  # people's own networks on no image at all
        if len(x):
            raise
        return False
    return True
