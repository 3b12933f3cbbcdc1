"""A step with anything not finite in it changes nothing: on a GPU without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from loading.batches import TrainBatches

ENOUGH = 3  # skipped steps in a row that end a run
MOST_NAMED = 20


class NotFinite(ArithmeticError):
    """Several steps in a row gave something that is not finite, or a weight is not."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """() bool on the device. The ends tell: either is not finite if one value is not."""
    ends = [end for tensor in tensors if tensor.is_floating_point() and tensor.numel() for end in tensor.aminmax()]
    return torch.stack([end.double() for end in ends]).isfinite().all() if ends else torch.ones((), dtype=torch.bool)


class Guard:
    """Takes optimizer steps but those that are not finite, of which it puts BatchNorm's statistics back. Counts them.

    Call `remember()` before the passes of a step, which move these statistics, and `step` after its backward. On a GPU
    the optimizer must be a fused one, which leaves a step out by itself.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: int, device: torch.device) -> None:
        self.model, self.optimizer = model, optimizer
        self.reads_are_free = device.type == "cpu"
        self.before: list[Tensor] = []  # the buffers before the step
        self.odd = [name for name, buffer in model.named_buffers() if not all_finite([buffer])]  # as a mask of -inf
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.since_row = torch.zeros_like(self.in_a_row)
        self.last = torch.full_like(self.in_a_row, -1)  # the step that made ENOUGH in a row; -1: none
        self.examples = torch.zeros(ENOUGH, rows, dtype=torch.bool, device=device)  # not finite, in the last such steps

    def watched(self) -> list[Tensor]:
        """The buffers that must stay finite."""
        return [buffer for name, buffer in self.model.named_buffers() if name not in self.odd]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the buffers as they are."""
        self.before = [buffer.clone() for buffer in self.model.buffers()]

    @torch.no_grad()
    def step(self, finite: Tensor, number: int) -> Tensor:
        """() bool: whether the step `number` counts; if not, nothing has changed since `remember`.

        finite: (B,) bool, by example. The gradients lie in the parameters.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        counts = finite.all() & all_finite([*gradients, *self.watched()])
        if not self.reads_are_free:
            self.optimizer.found_inf = (~counts).float()  # type: ignore[attr-defined]  # torch's name, read by fused ones
            self.optimizer.step()
        elif counts:
            self.optimizer.step()
            self.in_a_row.zero_()
            return counts
        for buffer, before in zip(self.model.buffers(), self.before, strict=True):
            buffer.copy_(torch.where(counts, buffer, before))
        self._count(~counts, finite, number)
        return counts

    def _count(self, bad: Tensor, finite: Tensor, number: int) -> None:
        row = torch.zeros_like(self.examples[0])
        row[: len(finite)] = ~finite
        going_on = bad & (self.last < 0)  # what ended the run is not forgotten
        self.examples = torch.where(going_on, torch.cat([self.examples[1:], row[None]]), self.examples)
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        self.last = torch.where((self.in_a_row == ENOUGH) & (self.last < 0), number, self.last)
        self.since_row += bad

    def refuse_not_finite(self, batches: TrainBatches) -> None:
        """:raises NotFinite: naming steps and training images, if it has seen enough of them in a row."""
        last = int(self.last)
        if last < 0:
            return
        steps = range(last - ENOUGH + 1, last + 1)
        numbers = batches.split.numbers.cpu()
        bad = {
            int(numbers[row])
            for rows, marked in zip(map(batches.global_rows, steps), self.examples.cpu(), strict=True)
            for row in rows[marked[: len(rows)]]
        }
        named = ", ".join(map(str, sorted(bad)[:MOST_NAMED])) + (", …" if len(bad) > MOST_NAMED else "")
        who = f"training images {named}" if bad else "no single image, but the gradient"
        raise NotFinite(f"steps {', '.join(str(step + 1) for step in steps)} were not finite: {who}")
