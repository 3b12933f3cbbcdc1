"""Each process's share of a step put together, by one exchange of numbers and one of directions."""

from __future__ import annotations

import torch
from torch import Tensor

from objectives import StepResult
from processes.distributed import World
from training.warm_start import Stored

SHARES = 4  # fields of `StepResult` that are sums or shares of the whole batch; the rows follow


def merged(world: World, own: StepResult, directions: Stored | None, total: int) -> tuple[StepResult, Stored | None]:
    """The step of the global batch of `total` images, the same on every process; float64 holds every value exactly.

    directions: to store of this process's images; those of all come back.
    """
    if world.size == 1:
        return own, directions
    own_sums = own.clean_loss, own.correct, own.adv_loss, own.passes
    shares = torch.stack([share.double() for share in own_sums])
    rows = torch.zeros(total, 2, dtype=torch.float64, device=own.eps.device)
    rows[world.rows(total)] = torch.stack([own.eps, own.finite.to(own.eps)], dim=1).double()
    values = world.total(torch.cat([shares, rows.flatten()]))
    clean_loss, correct, adv_loss, passes = map(Tensor.to, values[:SHARES], own_sums)
    eps, finite = values[SHARES:].view(-1, 2).unbind(1)
    if directions is not None:
        parts = []
        for part in directions:
            everyone = part.new_zeros(total, *part.shape[1:])  # each process adds its own rows to zeros
            everyone[world.rows(total)] = part
            parts.append(world.total(everyone))
        directions = Stored(*parts)
    return StepResult(clean_loss, correct, adv_loss, passes, eps.to(own.eps), finite > 0), directions
