"""The network as one of several processes trains it: DistributedDataParallel for the passes that give its gradient."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from processes.distributed import ALONE, World
from processes.global_batchnorm import GlobalBatchNorm
from utils import eval_mode

# Newer releases of torch call the flag by another name, and warn of the old one.
NEWER = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
BUFFERS = "forward_sync_buffers" if NEWER else "broadcast_buffers"


class Replica:
    """A network and its gradient over the global batch. Attacks and searches use `model` itself, which has no hooks.

    shares_statistics: whether a pass of `model` in train mode exchanges BatchNorm statistics, so that every process must
    take part in it. leaves_out: whether some parameters have no part in the output.
    """

    def __init__(
        self, model: nn.Module, world: World = ALONE, shares_statistics: bool = False, leaves_out: bool = False
    ) -> None:
        self.model, self.world, self.shares_statistics = model, world, shares_statistics
        self.hooked: nn.Module | DistributedDataParallel = model
        if world.size > 1:
            quiet: dict[str, Any] = {BUFFERS: False}
            self.hooked = DistributedDataParallel(model, **quiet, find_unused_parameters=leaves_out)

    @property
    def own_buffers(self) -> list[Tensor]:
        """Buffers that each process moves by its own passes: after a step the first one's count."""
        shared = (GlobalBatchNorm, nn.SyncBatchNorm)
        unshared = [module for module in self.model.modules() if not isinstance(module, shared)]
        return [buffer for module in unshared for buffer in module.buffers(recurse=False)]

    def warm_up(self, x: Tensor) -> None:
        """A pass and a backward of nothing. DistributedDataParallel rearranges its buckets after its first ones, and with
        them the order of sums: a resumed run would differ from the one it goes on with in the last bits."""
        if self.world.size > 1:
            with eval_mode(self.model):
                (0 * self.hooked(x).sum()).backward()
            self.model.zero_grad(set_to_none=True)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, C): a pass whose backward, outside of `unsent`, leaves the gradient of the global batch."""
        return self.hooked(x)

    def unsent(self) -> AbstractContextManager[None]:
        """Inside, a pass and its backward keep their gradient here, to be sent with the next one's."""
        return self.hooked.no_sync() if isinstance(self.hooked, DistributedDataParallel) else nullcontext()

    def backward(self, share: Tensor) -> None:
        """share: this process's share of the loss. DistributedDataParallel takes the mean over the processes."""
        (self.world.size * share).backward()

    def taking_part(self, count: int) -> int:
        """Rows of a train-mode pass without gradient: `count` here, or over all processes if they share statistics."""
        return int(self.world.total(torch.tensor([count]))) if self.shares_statistics else count
