"""PGD as training and evaluation run it: in the arithmetic asked for, on CUDA as a graph. `pgd` stays the algorithm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hardware.cuda_graph import Captured
from hardware.precision import BFloat16Twin, tf32
from pgd import GEOMETRY, LossFn, as_rows, ascend, pgd, step_sizes
from utils import eval_mode, frozen


class FastPgd:
    """Called as `pgd` is, always with the one network it was made for.

    precision: of the passes through the network, "fp32", "tf32" or "bf16". rows: if given, every batch is padded to so
    many rows and a step is a CUDA graph; what comes back then holds until the next call. tune: see `Captured`.
    """

    def __init__(self, model: nn.Module, precision: str, rows: int | None = None, tune: bool = False) -> None:
        self.model, self.precision, self.rows, self.tune = model, precision, rows, tune
        self.twin = BFloat16Twin(model) if precision.startswith("bf16") else None
        self.steps: dict[tuple[LossFn, str], Captured] = {}  # one step of the attack on a loss under a norm

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss_fn: LossFn,
        norm: str,
        eps: float | Tensor,
        step_size: float | Tensor,
        steps: int,
        noise: Tensor | None = None,
        decays: bool = False,
    ) -> Tensor:
        """See `pgd`."""
        assert model is self.model
        if self.twin is not None:
            self.twin.refresh(model)
        runs = model if self.twin is None else self.twin
        with tf32(self.precision != "fp32"):
            if self.rows is None or not 0 < len(x) <= self.rows:
                how: dict[str, Any] = {"loss_fn": loss_fn, "norm": norm, "steps": steps, "decays": decays}
                return pgd(runs, x, y, eps=eps, step_size=step_size, noise=noise, **how)
            eps, step_size = as_rows(eps, x), as_rows(step_size, x)
            x_adv = x if noise is None else GEOMETRY[norm].start(x, eps, noise)
            padding = torch.arange(self.rows, device=x.device).clamp(max=len(x) - 1)
            x_adv, size, *constants = (tensor[padding] for tensor in (x_adv, step_size, x, y, eps))
            step = self._step(runs, loss_fn, norm)
            for step_size in step_sizes(size, steps, decays):
                x_adv = step(x_adv, step_size, *constants)
            return x_adv[: len(x)]

    def _step(self, runs: nn.Module, loss_fn: LossFn, norm: str) -> Captured:
        """x_adv (B, ...), step size (B,), x (B, ...), y, eps (B,) -> x_adv one step on."""

        def step(x_adv: Tensor, step_size: Tensor, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
            with eval_mode(runs), frozen(runs):
                return ascend(lambda x_adv: loss_fn(runs(x_adv), y), norm, x_adv, x, eps, step_size).detach()

        if (loss_fn, norm) not in self.steps:
            self.steps[loss_fn, norm] = Captured(step, self.rows or 0, self.tune)
        return self.steps[loss_fn, norm]
