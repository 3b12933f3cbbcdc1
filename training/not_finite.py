"""Steps in a row that gave something not finite: whose images they were."""

from __future__ import annotations

from hardware.guard import ENOUGH, Guard
from loading.batches import TrainBatches

MOST_NAMED = 20


class NotFinite(ArithmeticError):
    """Several steps in a row gave something that is not finite."""


def refuse_not_finite(guard: Guard, batches: TrainBatches) -> None:
    """:raises NotFinite: naming steps and training images, if the guard has seen enough of them in a row."""
    last = int(guard.last)
    if last < 0:
        return
    steps = range(last - ENOUGH + 1, last + 1)
    numbers = batches.split.numbers.cpu()
    bad = {
        int(numbers[row])
        for rows, marked in zip(map(batches.global_rows, steps), guard.examples.cpu(), strict=True)
        for row in rows[marked[: len(rows)]]
    }
    named = ", ".join(map(str, sorted(bad)[:MOST_NAMED])) + (", …" if len(bad) > MOST_NAMED else "")
    who = f"training images {named}" if bad else "no single image, but the gradient or the new weights"
    raise NotFinite(f"steps {', '.join(str(step + 1) for step in steps)} were not finite: {who}")
