"""ReLUs whose backward pass is not quite shut, for attacks on networks that hide from their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RELUS = (F.relu, torch.relu, Tensor.relu)


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(z > 0)
        ctx.slope = slope
        return z.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (on,) = ctx.saved_tensors
        return torch.where(on, gradients[0], ctx.slope * gradients[0]), None


class LeakyGradients(TorchFunctionMode):
    """Inside `with LeakyGradients(slope):` a ReLU that is off passes `slope` of its gradient on; values stay what they are.

    A case of the backward pass differentiable approximation (Athalye, Carlini and Wagner 2018): the gradients are those
    of a leaky ReLU at the activations of the real one.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in RELUS:
            z = args[0] if args else kwargs["input"]
            return _Leaky.apply(z, self.slope)
        return func(*args, **(kwargs or {}))
