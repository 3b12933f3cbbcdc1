"""Whether a function of tensors can be recorded: it is run before, so that no recording has to fail.

A recording holds what the device was told to do. What the host did meanwhile, such as drawing a random number, waiting
for a value, or putting another tensor in a buffer's place, would be frozen in it, or end it half-way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hardware.memory import out_of_memory

SAME = 1e-3  # of a tensor's norm: what two passes may differ by, in networks with sums in an order of their own


def why_not(
    fn: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor], module: nn.Module | None = None
) -> str | None:
    """Why `fn(*inputs)` cannot be recorded, or None if it can; its device is then warm, and everything else as before.

    Three passes, all from the same state: generators, and the buffers of `module`.
    """
    device = inputs[0].device
    with _aside(device):
        with _deterministic_convolutions():
            with unmoved(module, device):
                first = [None if out is None else out.clone() for out in fn(*inputs)]
            with unmoved(module, device):
                before, host = _buffers(module), _host_generators(device)
                try:
                    with waiting_refused(device):
                        second = fn(*inputs)
                except RuntimeError as error:
                    if out_of_memory(error):
                        raise
                    return f"the host waits for the device: {str(error).splitlines()[0]}"
                if _host_generators(device) != host:
                    return "the network draws random numbers on the host"
                if any(own is not old for own, old in zip(_buffers(module), before, strict=True)):
                    return "the network puts other tensors in its buffers' places"
            if any(_differ(a, b) for a, b in zip(first, second, strict=True)):
                return "two passes from the same state differ"
        with unmoved(module, device):
            fn(*inputs)  # with the kernels that the recording will choose
    return None


@contextmanager
def unmoved(module: nn.Module | None, device: torch.device) -> Iterator[None]:
    """The buffers and all generators are put back after what is done inside."""
    owners = [] if module is None else [own for own in module.modules() if own._buffers]
    kept = [
        (own, name, buffer, buffer.clone())
        for own in owners
        for name, buffer in own._buffers.items()
        if buffer is not None
    ]
    on_host = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(on_host[0])
        np.random.set_state(on_host[1])
        with torch.no_grad():
            for own, name, buffer, value in kept:
                own._buffers[name] = buffer.copy_(value)


@contextmanager
def waiting_refused(device: torch.device) -> Iterator[None]:
    """Inside, what makes the host wait for a GPU raises RuntimeError."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as passes before a recording must be."""
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream(device).wait_stream(side)


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    """So that two passes of the same give the same."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _buffers(module: nn.Module | None) -> list[Tensor]:
    return [] if module is None else list(module.buffers())


def _host_generators(device: torch.device) -> tuple[object, ...]:
    """The states of the generators that are not the device's own."""
    kind, keys, *rest = np.random.get_state()
    on_cpu = b"" if device.type == "cpu" else torch.get_rng_state().numpy().tobytes()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest, on_cpu


def _differ(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is not b
    a, b = (tensor.detach().double().nan_to_num() for tensor in (a, b))
    return bool((a - b).norm() > SAME * a.norm())
