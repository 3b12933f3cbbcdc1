"""A step with anything not finite in it is taken back, on the device and without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

ENOUGH = 3  # skipped steps in a row that end a run
# Below, a step of Adam or SGD cannot overflow float32: (1e15 + 1e3 * 1e15)^2 is the largest that comes up.
SAFE_VALUE, SAFE_RATE, SAFE_DECAY, SAFE_MOMENTUM = 1e15, 1e10, 1e3, 1.0


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """() on the device: the largest magnitude; not finite if one value is not."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if floating and floating[0].device.type == "cpu":  # where a norm takes ten times as long
        return torch.stack([end.double() for tensor in floating for end in tensor.aminmax()]).abs().max()
    return get_total_norm(floating, norm_type=float("inf"))


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
        self.buffers: list[Tensor] = []
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
        self.buffers = [buffer.clone() for buffer in self.model.buffers()]

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
            before = [tensor.clone() for tensor in self._optimized()]
            self.optimizer.step()
            after = self._optimized()
            ok = ok & all_finite(after)
            before += [torch.zeros_like(tensor) for tensor in after[len(before) :]]  # what the first step made
            _put_back(after, before, ok)
        _put_back(list(self.model.buffers()), self.buffers, ok)
        self._count(ok, finite, number)
        return ok

    def _cannot_overflow(self, gradients: list[Tensor]) -> bool:
        values = [*gradients, *self._optimized()]
        rates = all(
            g["lr"] < SAFE_RATE and g["weight_decay"] < SAFE_DECAY and g.get("momentum", 0) <= SAFE_MOMENTUM
            for g in self.optimizer.param_groups
        )
        wide = all(value.dtype in (torch.float32, torch.float64) for value in gradients)
        return rates and wide and bool(largest(values) < SAFE_VALUE)

    def _count(self, ok: Tensor, finite: Tensor, number: int) -> None:
        bad = ~ok
        row = torch.zeros_like(self.examples[0])
        row[: len(finite)] = ~finite
        going_on = bad & (self.last < 0)  # what ended the run is not forgotten
        self.examples = torch.where(going_on, torch.cat([self.examples[1:], row[None]]), self.examples)
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last = torch.where((self.in_a_row == ENOUGH) & (self.last < 0), number, self.last)
        self.since_row += bad


def _put_back(tensors: list[Tensor], before: list[Tensor], ok: Tensor) -> None:
    """Overwrite `tensors` unless `ok`; a CPU's is simply read."""
    if ok.device.type == "cpu" and ok:
        return
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(ok, tensor, old))
