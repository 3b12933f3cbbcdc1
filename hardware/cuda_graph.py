"""A function of tensors recorded once as a CUDA graph and replayed: no launch overhead, no waiting for the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Outputs = tuple[Tensor | None, ...]
Fn = Callable[..., Outputs]
Record = Callable[[Fn, tuple[Tensor, ...]], tuple[Callable[[], None], Outputs]]


def record_on_cuda(fn: Fn, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Outputs]:
    """Run `fn(*inputs)` thrice to warm up, then record it: what replays it, and the outputs it writes into."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.random.fork_rng([inputs[0].device]):
        for _ in range(3):
            fn(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = fn(*inputs)
    return graph.replay, outputs


class Captured:
    """`fn`, recorded at the first call with `rows` rows and replayed at every later one.

    fn: tensors -> tuple of tensors, with no shape that depends on data and no waiting for the device; run more often
    than called while it is recorded. Outputs hold until the next call. Other numbers of rows run `fn` itself, and so does
    everything if it cannot be recorded, which is said once.
    """

    def __init__(self, fn: Fn, rows: int, record: Record = record_on_cuda) -> None:
        self.fn, self.rows, self.record = fn, rows, record
        self.inputs: tuple[Tensor, ...] | None = None
        self.replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        if len(inputs[0]) != self.rows:
            return self.fn(*inputs)
        if self.inputs is None:
            self._record(inputs)
        if self.replay is None:
            return self.fn(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.replay()
        return self.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        try:
            self.replay, self.outputs = self.record(self.fn, self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"CUDA graph: cannot be recorded ({reason}): going on without it, slower", RuntimeWarning, 2)
