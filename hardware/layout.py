"""How images and weights lie in memory, and whether cuDNN may time its kernels: one rule, by device and arithmetic.

Nothing is timed to choose it, so that a resumed run computes as the one it goes on with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Layout(NamedTuple):
    """The rule's answer."""

    channels_last: bool  # NHWC, else NCHW
    tune: bool  # cudnn.benchmark, where shapes are fixed: elsewhere it would time every number of rows anew

    @property
    def name(self) -> str:
        """For config.json."""
        return ("channels last" if self.channels_last else "channels first") + (
            ", kernels timed by cuDNN" if self.tune else ""
        )


def layout_for(device: torch.device, precision: str, deterministic: bool) -> Layout:
    """The rule; each case was measured at ba45c59 (`benchmarks/benchmark.py --cases layout` there)."""
    if device.type != "cuda":
        return Layout(channels_last=True, tune=False)  # CPU kernels are deterministic in either
    if deterministic:
        return Layout(channels_last=False, tune=False)  # cuDNN's choice by time may differ from run to run
    # Tensor cores want NHWC; float32 kernels without them are reported to be 1.6 times slower in it.
    return Layout(channels_last=precision != "fp32", tune=True)


def lay_out(model: nn.Module, ours: bool, layout: Layout) -> None:
    """Its weights as the layout has them, in place, and with them all that follows from them.

    ours: whether it is a built-in network; anyone's own may call `view` and is left as it is.
    """
    if ours:
        model.to(memory_format=torch.channels_last if layout.channels_last else torch.contiguous_format)
