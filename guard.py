"""A step with anything not finite in it is taken back, on the device and without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

ENOUGH = 3  # skipped steps in a row that end a run


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """() bool on the device."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return get_total_norm(floating, norm_type=float("inf")).isfinite()


class Guard:
    """Keeps what a step changes, to put it back: parameters, buffers, optimizer. Counts the steps taken back.

    Call `remember()` before a step and `settle(ok)` after it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: int, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.waits_for_nothing = device.type == "cpu"
        self.copies: list[Tensor] = []
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.since_row = torch.zeros_like(self.in_a_row)
        self.last = torch.full_like(self.in_a_row, -1)  # the step that made ENOUGH in a row; -1: none
        self.examples = torch.zeros(ENOUGH, rows, dtype=torch.bool, device=device)  # not finite, in the last such steps

    def changing(self) -> list[Tensor]:
        """Everything that a step overwrites."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.model.parameters(), *self.model.buffers(), *(v for v in state if isinstance(v, Tensor))]

    @torch.no_grad()
    def remember(self) -> None:
        tensors = self.changing()
        if [t.shape for t in tensors] != [
            c.shape for c in self.copies
        ]:  # the optimizer makes its state at its first step
            self.copies = [torch.empty_like(tensor) for tensor in tensors]
        by_kind: dict[tuple, list[int]] = {}
        for i, tensor in enumerate(tensors):
            by_kind.setdefault((tensor.dtype, tensor.device), []).append(i)
        for members in by_kind.values():
            torch._foreach_copy_([self.copies[i] for i in members], [tensors[i] for i in members])

    @torch.no_grad()
    def settle(self, finite: Tensor, gradients: Sequence[Tensor], step: int) -> Tensor:
        """() bool: whether the step counts; if not, everything is as `remember` found it.

        finite: (B,) bool, by example; gradients: what the optimizer was given; step: its number.
        """
        new = self.changing()
        ok = finite.all() & all_finite(gradients) & all_finite(new)
        if not (self.waits_for_nothing and ok):
            old = [*self.copies, *(torch.zeros_like(tensor) for tensor in new[len(self.copies):])]  # fmt: skip
            for tensor, before in zip(new, old, strict=True):
                tensor.copy_(torch.where(ok.to(tensor.device), tensor, before))
        self._count(ok, finite, step)
        return ok

    def _count(self, ok: Tensor, finite: Tensor, step: int) -> None:
        bad = ~ok
        row = torch.zeros_like(self.examples[0])
        row[: len(finite)] = ~finite
        going_on = bad & (self.last < 0)  # what ended the run is not forgotten
        self.examples = torch.where(going_on, torch.cat([self.examples[1:], row[None]]), self.examples)
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last = torch.where((self.in_a_row == ENOUGH) & (self.last < 0), step, self.last)
        self.since_row += bad
