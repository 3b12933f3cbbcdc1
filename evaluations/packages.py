"""What attacks of other packages need: a network that stays as it was, images on which Square can start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils import eval_mode, frozen


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The network frozen in eval mode inside; it and torch's generators are as before after."""
    with eval_mode(model), frozen(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def square_starts(norm: str, height: int, width: int) -> bool:
    """Whether pyautoattack's Square can begin on such images: under L2 it lays five or more tiles a side, the last of
    which may not reach over the edge."""
    if norm == "Linf":
        return True
    tile = height // 5
    first = (height - 5 * tile) // 2
    return tile == 1 or (tile > 1 and all(first + size // tile * tile <= size for size in (height, width)))
