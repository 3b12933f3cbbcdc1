"""A function of tensors recorded once as a CUDA graph and replayed: no launch overhead, no waiting for the host.

Only what is known to be recordable is recorded: the built-in networks, which draw no random number on the host and leave
their buffers in place. Anyone's own network runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from utils import set_to

Fn = Callable[..., Any]
WARM_UPS = 3  # passes before a recording, in which kernels are chosen and memory is taken


def record_on_cuda(fn: Fn, inputs: tuple[Tensor | None, ...]) -> tuple[Callable[[], None], Any]:
    """Record `fn(*inputs)`: what replays it, and the outputs it writes into."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            fn(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on meanwhile: one that pins memory of a streamed data set would spoil a global recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = fn(*inputs)
    return graph.replay, outputs


class Captured:
    """`fn`, recorded at the first call with `rows` rows and replayed at every later one.

    fn: tensors, or None, -> tensors in any structure, with no shape that depends on data. Outputs hold until the next
    call. Other numbers of rows run `fn` itself. tune: let cuDNN time its kernels for this shape.

    :raises UserError: if the recording fails, after which CUDA's generator cannot be relied on.
    """

    def __init__(self, fn: Fn, rows: int, tune: bool = False) -> None:
        self.fn, self.rows, self.tune = fn, rows, tune
        self.inputs: tuple[Tensor | None, ...] = ()
        self.replay: Callable[[], None] | None = None
        self.outputs: Any = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        if inputs[0] is None or len(inputs[0]) != self.rows:
            return self.fn(*inputs)
        if self.replay is None:
            self.inputs = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
            try:
                with set_to(self.tune, "benchmark", [torch.backends.cudnn]):
                    self.replay, self.outputs = record_on_cuda(self.fn, self.inputs)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"--cuda_graphs: the recording failed ({reason}): give --no-cuda_graphs") from error
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.replay()
        return self.outputs
