"""A recorder that replays on the CPU what CUDA graphs would."""

from torch.utils._pytree import tree_flatten, tree_map


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
