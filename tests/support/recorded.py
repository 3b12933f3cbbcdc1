"""A recorder that replays on the CPU what CUDA graphs would."""


def replayed(fn, inputs):
    """What `record_on_cuda` does, without a GPU: `fn` reads the same inputs and writes the same outputs at each replay."""
    for _ in range(3):
        fn(*inputs)
    outputs = tuple(None if out is None else out.clone() for out in fn(*inputs))

    def replay():
        for own, new in zip(outputs, fn(*inputs), strict=True):
            assert (own is None) == (new is None)
            if own is not None:
                own.copy_(new)

    return replay, outputs
