"""A function of tensors recorded once as a CUDA graph and replayed: no launch overhead, no waiting for the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from errors import UserError
from hardware.layout import tuned
from hardware.memory import out_of_memory
from hardware.rehearsal import why_not

Outputs = tuple[Tensor | None, ...]
Fn = Callable[..., Outputs]
Record = Callable[[Fn, tuple[Tensor, ...]], tuple[Callable[[], None], Outputs]]


def record_on_cuda(fn: Fn, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Outputs]:
    """Record `fn(*inputs)`, which has been run before: what replays it, and the outputs it writes into."""
    graph = torch.cuda.CUDAGraph()
    # Other threads go on meanwhile: one that pins memory of a streamed data set would spoil a global recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = fn(*inputs)
    return graph.replay, outputs


class Captured:
    """`fn`, recorded at the first call with `rows` rows and replayed at every later one.

    fn: tensors -> tuple of tensors, with no shape that depends on data; run more often than called while it is recorded,
    with `module`'s buffers and the generators put back after. Outputs hold until the next call. Other numbers of rows run
    `fn` itself, and so does everything if `why_not` finds that it cannot be recorded, which is said once. record: None
    never records. tune: let cuDNN time its kernels for this shape.
    """

    def __init__(
        self,
        fn: Fn,
        rows: int,
        record: Record | None = record_on_cuda,
        module: nn.Module | None = None,
        tune: bool = False,
    ) -> None:
        self.fn, self.rows, self.record, self.module, self.tune = fn, rows, record, module, tune
        self.inputs: tuple[Tensor, ...] | None = None
        self.replay: Callable[[], None] | None = None
        self.outputs: Outputs = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        if not self._is_ready(inputs):
            with tuned(self.tune and len(inputs[0]) == self.rows):
                return self.fn(*inputs)
        self._take(inputs)
        assert self.replay is not None
        self.replay()
        return self.outputs

    def repeat(self, state: Tensor, varying: Sequence[Tensor], *constants: Tensor) -> Tensor:
        """A call for each of `varying`, on the first output of the one before, from `state` on, on it, and on `constants`."""
        if not varying:
            return state
        if not self._is_ready((state, varying[0], *constants)):
            with tuned(self.tune and len(state) == self.rows):
                for value in varying:
                    state = _present(self.fn(state, value, *constants)[0])
            return state
        own, own_value, *_ = self._take((state, varying[0], *constants))
        assert self.replay is not None
        for turn, value in enumerate(varying):
            if turn:
                own.copy_(_present(self.outputs[0]))
                own_value.copy_(value)
            self.replay()
        return _present(self.outputs[0])

    def _take(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.inputs is not None
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.inputs

    def _is_ready(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether there is a recording for these inputs; the first of them that can be recorded are.

        :raises UserError: if the recording fails, after which CUDA's generator cannot be relied on.
        """
        if self.record is None or len(inputs[0]) != self.rows:
            return False
        if self.inputs is None:
            self.inputs = tuple(tensor.clone() for tensor in inputs)
            with tuned(self.tune):
                if reason := why_not(self.fn, self.inputs, self.module):
                    warnings.warn(
                        f"CUDA graph: not recorded ({reason}): going on without it, slower", RuntimeWarning, 2
                    )
                    self.record = None
                    return False
                self._record()
        return self.replay is not None

    def _record(self) -> None:
        assert self.record is not None
        assert self.inputs is not None
        try:
            self.replay, self.outputs = self.record(self.fn, self.inputs)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f"--cuda_graphs: the recording failed ({reason}): give --no-cuda_graphs") from error


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
