"""The optimizer, on whatever device its state lies."""

from __future__ import annotations

import torch
from torch import nn

from config import Config


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum, at the first learning rate; on a GPU all of its state lies there."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr_at(0), weight_decay=config.weight_decay, capturable=parameters[0].is_cuda
        )
    return torch.optim.SGD(parameters, lr=config.lr_at(0), momentum=config.momentum, weight_decay=config.weight_decay)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Take up a state that may have been saved on another kind of device."""
    own = [
        {key: group[key] for key in ("capturable", "foreach", "fused") if key in group}
        for group in optimizer.param_groups
    ]
    groups = [{**group, **kept} for group, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        if "step" in values:
            capturable = optimizer.param_groups[0].get("capturable")
            values["step"] = values["step"].to(parameter.device if capturable else "cpu")
