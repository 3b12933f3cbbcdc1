"""The one place that makes advertorch 0.2.3 importable: `from advertorch_compat import advertorch`.

advertorch imports `zero_gradients` from `torch.autograd.gradcheck`, gone since torch 1.9. A function of that name is
put there before the import; the installed package is not touched.
"""

from __future__ import annotations

import importlib

from torch import Tensor

# `import torch.autograd.gradcheck as module` would give the *function* gradcheck.
_gradcheck = importlib.import_module("torch.autograd.gradcheck")


def _zero_gradients(x: Tensor) -> None:
    """Set x.grad to zero in place, if there is one."""
    if x.grad is not None:
        x.grad.detach_()
        x.grad.zero_()


if not hasattr(_gradcheck, "zero_gradients"):
    _gradcheck.zero_gradients = _zero_gradients  # type: ignore[attr-defined]  # it was there once

import advertorch  # noqa: E402

__all__ = ["advertorch"]
