"""A copy of many tensors, put back where a flag on the device says so: a handful of launches, however many there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class _Group(NamedTuple):
    """Tensors of one dtype on one device."""

    places: list[Tensor]  # what a chunk is written into: (n,) in the order of memory, or the tensor itself
    kept: Tensor  # (all their elements,) as they were


class Kept:
    """`tensors` as they are now."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        groups: defaultdict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            if tensor.numel():
                groups[tensor.dtype, tensor.device].append(_in_order_of_memory(tensor))
        self.groups = [_Group(places, _joined(places)) for places in groups.values()]

    @classmethod
    def as_zeros(cls, tensors: Iterable[Tensor]) -> Kept:
        """As if they had been 0."""
        own = cls(tensors)
        for group in own.groups:
            group.kept.zero_()
        return own

    def put_back(self, unless: Tensor) -> None:
        """Overwrite the tensors with what was kept, on the device. unless: () bool."""
        for places, kept in self.groups:
            now = _joined(places)
            chosen = torch.where(unless, now, kept).split([place.numel() for place in places])
            sources = [chunk.view(place.shape) for chunk, place in zip(chosen, places, strict=True)]
            torch._foreach_copy_(places, sources)


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """() on the device: the largest magnitude; not finite if one value is not. Nothing: 0."""
    groups: defaultdict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            groups[tensor.dtype, tensor.device].append(tensor)
    if not groups:
        return torch.zeros(())
    # On a CPU a norm takes ten times as long as the two ends.
    found = [
        torch.stack([end.double() for tensor in group for end in tensor.aminmax()]).abs().max()
        if device.type == "cpu"
        else torch.stack(torch._foreach_norm(group, ord=float("inf"))).amax().double()
        for (_, device), group in groups.items()
    ]
    return torch.stack([one.to(found[0].device) for one in found]).amax() if len(found) > 1 else found[0]


def _joined(places: list[Tensor]) -> Tensor:
    return torch.cat([place.reshape(-1) for place in places])


def _in_order_of_memory(tensor: Tensor) -> Tensor:
    """(n,) view of a tensor without gaps, in any layout; else the tensor itself."""
    order = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride()[dim], dim))
    ordered = tensor.detach().permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else tensor.detach()
