"""In which arithmetic a network runs: float32, TF32, or bfloat16 inside PGD.

Images, perturbations, cross-entropy, BatchNorm's statistics and the input standardisation stay float32 in all of them; with
bf16_all the losses of the search, differences of logits, are bfloat16.
"""

from __future__ import annotations

import copy
import re
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import set_to


def tf32(allowed: bool) -> AbstractContextManager[None]:
    """Whether CUDA may round the inputs of float32 matrix products to TF32 inside. No effect on a CPU."""
    return set_to(allowed, "allow_tf32", (torch.backends.cudnn, torch.backends.cuda.matmul))


def remark(device: torch.device, precision: str) -> str | None:
    """What a user should know of this arithmetic on this device."""
    if device.type == "cuda" or precision == "fp32":
        return None
    if precision == "tf32":
        return "--precision tf32: is CUDA's; on this device the arithmetic is float32"
    try:
        has = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:  # no Linux
        return None
    if has & {"amx_bf16", "avx512_bf16", "bf16"}:
        return None
    return (
        f"--precision {precision}: this CPU has no bfloat16 instructions; --precision fp32 is several times faster here"
    )


class BFloat16Twin(nn.Module):
    """A frozen copy of a network, in eval mode, that computes in bfloat16: images (B, ...) -> float32 logits (B, C).

    Autocast, with the weights of convolutions and linear layers held in bfloat16, so that no pass has to cast them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.copy.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                module.to(torch.bfloat16)

    def refresh(self, model: nn.Module) -> None:
        """Take over the weights and running statistics of `model`, the network it is a copy of."""
        with torch.no_grad():
            for tensors in (nn.Module.parameters, nn.Module.buffers):
                for own, source in zip(tensors(self.copy), tensors(model), strict=True):
                    own.copy_(source)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            logits: Tensor = self.copy(x)
            return logits.float()
