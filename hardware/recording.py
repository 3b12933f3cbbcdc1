"""What of a run is recorded as CUDA graphs and replayed: whatever has fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Recording(NamedTuple):
    """None or False: run as it is."""

    gradient: bool  # the whole gradient of a step
    attack_rows: int | None  # the attack of a step, padded to so many rows
    check_rows: int | None  # the check's attack, likewise


NOTHING = Recording(gradient=False, attack_rows=None, check_rows=None)


def recording_of(model: nn.Module, device: torch.device, slice_size: int, check_size: int, alone: bool) -> Recording:
    """The whole gradient or, with BatchNorm, whose statistics count the right rows alone, each attack; on CUDA only.

    slice_size: images of a step on this process; check_size: of a check's batch; alone: whether there is one process.
    """
    batchnorms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    on_cuda = device.type == "cuda"
    padded = on_cuda and all(module.running_mean is not None for module in batchnorms)
    gradient = on_cuda and not batchnorms and alone
    return Recording(gradient, slice_size if padded and not gradient else None, check_size if padded else None)
