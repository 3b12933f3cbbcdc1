"""A step with anything not finite in it is taken back, on the device and without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hardware.kept import Kept, largest

ENOUGH = 3  # skipped steps in a row that end a run
# Below, a step of Adam or SGD cannot overflow float32: (1e15 + 1e3 * 1e15)^2 is the largest that comes up.
SAFE_VALUE, SAFE_RATE, SAFE_DECAY, SAFE_MOMENTUM = 1e15, 1e10, 1e3, 1.0


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """() bool on the device."""
    return largest(tensors).isfinite()


class Guard:
    """Takes optimizer steps, and takes back those that are not finite: parameters, buffers, optimizer. Counts them.

    Call `remember()` before the passes of a step, which move BatchNorm's statistics, and `step` after its backward.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: int, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.reads_are_free = device.type == "cpu"
        self.buffers = Kept([])
        self.odd = [name for name, buffer in model.named_buffers() if not all_finite([buffer])]  # as a mask of -inf
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.since_row = torch.zeros_like(self.in_a_row)
        self.last = torch.full_like(self.in_a_row, -1)  # the step that made ENOUGH in a row; -1: none
        self.examples = torch.zeros(ENOUGH, rows, dtype=torch.bool, device=device)  # not finite, in the last such steps

    def changing(self) -> list[Tensor]:
        """Everything that a step overwrites and that must be finite."""
        return [*self._watched(), *self._optimized()]

    def _watched(self) -> list[Tensor]:
        return [buffer for name, buffer in self.model.named_buffers() if name not in self.odd]

    def _optimized(self) -> list[Tensor]:
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.model.parameters(), *(value for value in state if isinstance(value, Tensor))]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the buffers as they are."""
        self.buffers = Kept(self.model.buffers())

    @torch.no_grad()
    def step(self, finite: Tensor, number: int) -> Tensor:
        """() bool: whether the step `number` counts; if not, nothing has changed since `remember`.

        finite: (B,) bool, by example. The gradients lie in the parameters.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        ok = finite.all() & all_finite([*gradients, *self._watched()])
        if self.reads_are_free and ok and self._cannot_overflow(gradients):
            self.optimizer.step()  # most steps on a CPU: nothing is copied
        elif not self.reads_are_free or ok:
            ok = self._step_and_look(ok)
        if not (self.reads_are_free and ok):
            self.buffers.put_back(unless=ok)
        self._count(ok, finite, number)
        return ok

    def _step_and_look(self, ok: Tensor) -> Tensor:
        """() bool: whether what the optimizer made is finite; if it is not, or `ok` is false, it is taken back."""
        own = self._optimized()
        before = Kept(own)
        self.optimizer.step()
        after = self._optimized()
        made = Kept.as_zeros(after[len(own) :])  # by the first step
        good = ok & all_finite(after)
        if not (self.reads_are_free and good):
            before.put_back(unless=good)
            made.put_back(unless=good)
        return good

    def _cannot_overflow(self, gradients: list[Tensor]) -> bool:
        values = [*gradients, *self._optimized()]
        rates = all(
            g["lr"] < SAFE_RATE and g["weight_decay"] < SAFE_DECAY and g.get("momentum", 0) <= SAFE_MOMENTUM
            for g in self.optimizer.param_groups
        )
        wide = all(value.dtype in (torch.float32, torch.float64) for value in gradients)
        return rates and wide and bool(largest(values) < SAFE_VALUE)

    def _count(self, ok: Tensor, finite: Tensor, number: int) -> None:
        if self.reads_are_free and ok:
            self.in_a_row.zero_()
            return
        bad = ~ok
        row = torch.zeros_like(self.examples[0])
        row[: len(finite)] = ~finite
        going_on = bad & (self.last < 0)  # what ended the run is not forgotten
        self.examples = torch.where(going_on, torch.cat([self.examples[1:], row[None]]), self.examples)
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last = torch.where((self.in_a_row == ENOUGH) & (self.last < 0), number, self.last)
        self.since_row += bad
