"""Out of memory in an evaluation: the batch is halved and tried again, said and recorded."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from errors import UserError

Result = TypeVar("Result")
# What torch and its libraries say where they have no exception of their own for it.
SAYINGS = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that the host or the device has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAYINGS)


class BatchSize:
    """How many images pass through the network together: `asked`, and what `used` memory sufficed for."""

    def __init__(self, asked: int, flag: str, say: Callable[[str], None]) -> None:
        self.asked = self.used = asked
        self.flag, self.say = flag, say

    def run(self, work: Callable[[int], Result]) -> Result:
        """`work(used)`, again with half of it, for good, as often as memory does not suffice.

        :raises UserError: if it does not suffice for one image.
        """
        while True:
            try:
                return work(self.used)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Only here are the error, its frames and the tensors in them gone.
            self._halve()

    def attack(self, attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`attack(model, x, y, ...)`, made on fewer rows at a time where memory does not suffice; rows do not influence
        each other. For processes that must all go on with the same batches."""

        def in_parts(model: nn.Module, x: Tensor, y: Tensor, **settings: object) -> Tensor:
            def rows(value: object, part: slice) -> object:
                return value[part] if isinstance(value, Tensor) and value.dim() else value

            def work(size: int) -> Tensor:
                made = attack.resize(size) if hasattr(attack, "resize") else attack
                parts = [slice(first, first + size) for first in range(0, len(x), size)]
                return (
                    torch.cat(
                        [
                            made(model, x[part], y[part], **{k: rows(v, part) for k, v in settings.items()}).clone()
                            for part in parts
                        ]
                    )
                    if len(parts) > 1
                    else made(model, x, y, **settings)
                )

            return self.run(work)

        return in_parts

    def _halve(self) -> None:
        if self.used == 1:
            raise UserError(
                f"{self.flag} 1: memory does not suffice for one image through this network: end other programs, "
                "or take another --device or machine"
            )
        self.used //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory: going on with {self.used} images a batch instead of {self.asked} ({self.flag})")

    def as_settings(self) -> dict[str, int]:
        """For the JSON; `batch_size_asked` only where it is not what was used."""
        return {"batch_size": self.used} | ({"batch_size_asked": self.asked} if self.used != self.asked else {})
