"""A function of tensors recorded once as a CUDA graph and replayed: no launch overhead, no waiting for the host.

Only what is known to be recordable is recorded: the built-in networks, which draw no random number on the host and leave
their buffers in place. Anyone's own network runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError
from hardware.layout import tuned
from utils import batchnorms

Fn = Callable[..., Any]
Record = Callable[[Fn, tuple[Tensor | None, ...]], tuple[Callable[[], None], Any]]
WARM_UPS = 3  # passes before a recording, in which kernels are chosen and memory is taken


def recorded_parts(
    model: nn.Module, device: torch.device, slice_size: int, check_size: int, alone: bool
) -> tuple[bool, int | None, int | None]:
    """What of a run is recorded, on CUDA alone: the whole gradient of a step or, with BatchNorm, whose statistics count
    the right rows alone, its attack, padded to so many rows; and the check's attack, likewise. None: it runs as it is.

    model: a built-in network. slice_size: images of a step on this process; check_size: of a check's batch; alone:
    whether there is one process.
    """
    if device.type != "cuda":
        return False, None, None
    gradient = alone and not batchnorms(model)
    return gradient, None if gradient else slice_size, check_size


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

    def __init__(self, fn: Fn, rows: int, record: Record = record_on_cuda, tune: bool = False) -> None:
        self.fn, self.rows, self.record, self.tune = fn, rows, record, tune
        self.inputs: tuple[Tensor | None, ...] = ()
        self.replay: Callable[[], None] | None = None
        self.outputs: Any = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        if inputs[0] is None or len(inputs[0]) != self.rows:
            return self.fn(*inputs)
        if self.replay is None:
            self.inputs = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
            try:
                with tuned(self.tune):
                    self.replay, self.outputs = self.record(self.fn, self.inputs)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"--cuda_graphs: the recording failed ({reason}): give --no-cuda_graphs") from error
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.replay()
        return self.outputs
