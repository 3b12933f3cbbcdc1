"""The one place that makes advertorch 0.2.3 importable: `from advertorch_compat import advertorch`.

advertorch imports `zero_gradients` from `torch.autograd.gradcheck`, gone since torch 1.9, for its FAB, which nothing
here uses. The name is put there before the import; the installed package is not touched.
"""

from __future__ import annotations

import importlib

# `import torch.autograd.gradcheck as module` would give the *function* gradcheck.
importlib.import_module("torch.autograd.gradcheck").zero_gradients = None  # type: ignore[attr-defined]

import advertorch  # noqa: E402

__all__ = ["advertorch"]
