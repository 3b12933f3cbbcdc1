"""What a GPU would be asked to do, seen without one: operations on their way to the CPU or `meta`, and graphs replayed there."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

# What gives a value, or a shape that depends on values, to the host.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2", "bincount"}


def reads(name, args):
    """Whether the operation makes the host wait for the device."""
    if name == "index" or name == "index_put_":  # by a mask: its shape depends on the values
        return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in READS


class Launches(TorchDispatchMode):
    """Counts what is launched, what waits for the device, and refuses tensors of two devices in one operation."""

    def __init__(self):
        super().__init__()
        self.launched, self.waited = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.dim()}  # a number on the host may go along
        if len(devices) > 1 and name not in ("copy_", "_to_copy", "_foreach_copy_"):
            raise AssertionError(f"{name} on {devices}")
        if reads(name, args):
            self.waited[name] += 1
        elif tensors and not any(a.alias_info and not a.alias_info.is_write for a in func._schema.returns):  # a view
            self.launched[name] += 1
        return func(*args, **(kwargs or {}))


def replayed(fn, inputs):
    """What `record_on_cuda` does, without a GPU: `fn` reads the same inputs and writes the same outputs at each replay."""
    for _ in range(3):
        fn(*inputs)
    outputs = tree_map(lambda out: None if out is None else out.clone(), fn(*inputs))

    def replay():
        (own, shape), (new, new_shape) = tree_flatten(outputs), tree_flatten(fn(*inputs))
        assert shape == new_shape
        for old, value in zip(own, new, strict=True):
            if value is not None:
                old.copy_(value)

    return replay, outputs
