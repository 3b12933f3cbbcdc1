"""The optimizer, on whatever device its state lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_optimizer(
    kind: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """ "adam", or "sgd" with momentum, of what is trained; on a GPU all of its state lies there.

    fused: one kernel, which can leave a step out (`Guard`); by default on a GPU.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = True if parameters[0].is_cuda else fused
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    if fused and momentum:  # if the first step is left out, torch's own would hold what lay in memory
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up a state that may have been saved on another kind of device, and lies on the CPU (`checkpoint.load`)."""
    keeps, pairs = ("capturable", "foreach", "fused"), zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [{**saved, **{key: own[key] for key in keeps if key in own}} for saved, own in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
