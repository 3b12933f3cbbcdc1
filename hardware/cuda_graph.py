"""A function of tensors recorded once as a CUDA graph and replayed: no launch overhead, no waiting for the host.

Only what is known to be recordable is recorded: the built-in networks, which draw no random number on the host and leave
their buffers in place. Anyone's own network runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errors import UserError
from hardware.layout import tuned
from utils import batchnorms

Fn = Callable[..., Any]
Record = Callable[[Fn, tuple[Tensor | None, ...]], tuple[Callable[[], None], Any]]
WARM_UPS = 3  # passes before a recording, in which kernels are chosen and memory is taken


class Recorded(NamedTuple):
    """What of a run is recorded; None or False: it runs as it is."""

    gradient: bool  # the whole gradient of a step
    attack_rows: int | None  # the attack of a step, padded to so many rows
    check_rows: int | None  # the check's attack, likewise


NOTHING = Recorded(gradient=False, attack_rows=None, check_rows=None)


def recorded_parts(model: nn.Module, device: torch.device, slice_size: int, check_size: int, alone: bool) -> Recorded:
    """The whole gradient or, with BatchNorm, whose statistics count the right rows alone, each attack; on CUDA only.

    model: a built-in network. slice_size: images of a step on this process; check_size: of a check's batch; alone:
    whether there is one process.
    """
    if device.type != "cuda":
        return NOTHING
    gradient = alone and not batchnorms(model)
    return Recorded(gradient, None if gradient else slice_size, check_size)


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
    """

    def __init__(self, fn: Fn, rows: int, record: Record = record_on_cuda, tune: bool = False) -> None:
        self.fn, self.rows, self.record, self.tune = fn, rows, record, tune
        self.inputs: tuple[Tensor | None, ...] = ()
        self.replay: Callable[[], None] | None = None
        self.outputs: Any = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        if inputs[0] is None or len(inputs[0]) != self.rows:
            return self.fn(*inputs)
        replay = self._recorded(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        replay()
        return self.outputs

    def repeat(self, state: Tensor, varying: Sequence[Tensor], *constants: Tensor) -> Tensor:
        """A call for each of `varying`, on the output of the one before, from `state` on, on it, and on `constants`."""
        for value in varying:
            state = self(state, value, *constants)
        return state

    def _recorded(self, inputs: tuple[Tensor | None, ...]) -> Callable[[], None]:
        """:raises UserError: if the recording fails, after which CUDA's generator cannot be relied on."""
        if self.replay is None:
            self.inputs = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
            try:
                with tuned(self.tune):
                    self.replay, self.outputs = self.record(self.fn, self.inputs)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"--cuda_graphs: the recording failed ({reason}): give --no-cuda_graphs") from error
        return self.replay
