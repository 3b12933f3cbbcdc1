"""PGD as training and evaluation run it: in the arithmetic asked for, on CUDA as one graph. `pgd` stays the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardware.cuda_graph import Captured, Record, record_on_cuda
from hardware.precision import BFloat16Twin, tf32
from pgd import LossFn, as_rows, pgd


class FastPgd:
    """Called as `pgd` is, always with the one network it was made for.

    precision: of the passes through the network, "fp32", "tf32" or "bf16". rows: if given, every batch is padded to so
    many rows and the loop is a CUDA graph; what comes back then holds until the next call.
    """

    def __init__(
        self, model: nn.Module, precision: str, rows: int | None = None, record: Record = record_on_cuda
    ) -> None:
        self.model, self.precision, self.rows, self.record = model, precision, rows, record
        self.twin = BFloat16Twin(model) if precision.startswith("bf16") else None
        self.graphs: dict[tuple, Captured] = {}

    def resize(self, rows: int) -> FastPgd:
        """The same attack for batches of at most `rows`; nothing happens where batches are not padded."""
        if self.rows not in (None, rows):
            self.rows = rows
            self.graphs.clear()
        return self

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
    ) -> Tensor:
        """See `pgd`."""
        assert model is self.model
        if not len(x):
            return x
        network = model if self.twin is None else self.twin
        if self.twin is not None:
            self.twin.refresh(model)

        def attack(x: Tensor, y: Tensor, eps: Tensor, step_size: Tensor, *noise: Tensor) -> tuple[Tensor]:
            return (
                pgd(
                    network,
                    x,
                    y,
                    loss_fn=loss_fn,
                    norm=norm,
                    eps=eps,
                    step_size=step_size,
                    steps=steps,
                    noise=noise[0] if noise else None,
                ),
            )

        inputs = (x, y, as_rows(eps, x), as_rows(step_size, x), *([] if noise is None else [noise]))
        with tf32(self.precision != "fp32"):
            if self.rows is None or len(x) > self.rows:
                return attack(*inputs)[0]
            captured = self.graphs.setdefault(
                (loss_fn, norm, steps, noise is None), Captured(attack, self.rows, self.record)
            )
            padding = torch.arange(self.rows, device=x.device).clamp(max=len(x) - 1)
            return captured(*(tensor[padding] for tensor in inputs))[0][: len(x)]
