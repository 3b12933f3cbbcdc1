"""What is recorded and how: with a recorder that replays on the CPU, and `torch.cuda` stubbed."""

import contextlib

import pytest
import torch

from errors import UserError
from hardware.cuda_graph import NOTHING, Captured, record_on_cuda, recorded_parts
from hardware.fast_pgd import FastPgd
from hardware.layout import PLAIN, layout_for, tuned
from launches import Launches
from losses import cross_entropy, cw_loss
from pgd import pgd
from recorded import replayed
from tiny_runs import batch_for, network, rand, tiny_trainer


class Counted:
    """A recorder that keeps what was recorded."""

    def __init__(self):
        self.seen = []

    def __call__(self, fn, inputs):
        with Launches() as seen:
            fn(*inputs)
        self.seen.append(seen)
        return replayed(fn, inputs)


def test_built_in_networks_are_recorded_on_cuda_and_the_whole_gradient_without_batchnorm():
    cuda = torch.device("cuda")
    assert recorded_parts(network(), torch.device("cpu"), 6, 9, True) == NOTHING
    assert recorded_parts(network(batchnorm=False), cuda, 6, 9, True) == (True, None, 9)
    assert recorded_parts(network(batchnorm=False), cuda, 3, 9, False) == (False, 3, 9)
    assert recorded_parts(network(), cuda, 6, 9, True) == (False, 6, 9)
    assert tiny_trainer().gradient.__name__ == "_gradient"  # somebody's own network, on a CPU


def test_a_recording_that_fails_ends_the_run_naming_the_flag():
    def fail(fn, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda_graphs"):
        Captured(lambda x: x + 1, 2, fail)(torch.zeros(2))


def test_other_threads_may_go_on_while_it_is_recorded_after_warm_ups_on_a_stream_of_their_own(monkeypatch):
    """`thread_local`: one that pins memory spoils a global recording."""
    seen = []

    class Graph:
        def replay(self):
            seen.append("replayed")

    class Stream:
        def wait_stream(self, other):
            seen.append("waits")

    @contextlib.contextmanager
    def within(name):
        seen.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("aside"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **given: within(given))
    replay, outputs = record_on_cuda(lambda x: (seen.append("runs"), x + 1)[1], (torch.zeros(2),))
    replay()
    recorded = [{"capture_error_mode": "thread_local"}, "runs", "replayed"]
    assert seen == ["waits", "aside", "runs", "runs", "runs", "waits", *recorded] and outputs.tolist() == [1, 1]


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_recording_holds_one_step_of_pgd_whatever_the_number_of_steps(norm, decays):
    model, counts = network(), []
    batch = batch_for(model)
    for steps in (1, 7):
        recorder = Counted()
        fast = FastPgd(model, "fp32", rows=16, record=recorder)
        how = {"norm": norm, "eps": 0.1, "step_size": 0.03, "steps": steps, "noise": rand(*batch.x.shape)}
        how["decays"] = decays
        for loss_fn in (cross_entropy, cw_loss, cross_entropy):
            for _ in range(2):
                found = fast(model, batch.x, batch.y, loss_fn=loss_fn, **how)
                expected = pgd(model, batch.x, batch.y, loss_fn=loss_fn, **how)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert len(recorder.seen) == 2, "one recording a loss"
        counts.append([seen.launched["convolution"] for seen in recorder.seen])
    assert counts == [[1, 1], [1, 1]]


def test_the_rule_of_layouts():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert layout_for(cuda, "fp32", False) == (False, True)
    assert all(layout_for(cuda, precision, False) == (True, True) for precision in ("tf32", "bf16", "bf16_all"))
    assert all(layout_for(cuda, precision, True) == PLAIN for precision in ("fp32", "tf32", "bf16"))
    assert layout_for(cpu, "fp32", False) == layout_for(cpu, "bf16", True) == (True, False)


def test_kernels_are_timed_for_fixed_shapes_only():
    """A search on the right rows alone has another number of them at each step, and each would be timed."""
    model, seen = network(), []
    batch = batch_for(model)
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    how = {"loss_fn": cross_entropy, "norm": "Linf", "eps": 0.1, "step_size": 0.03, "steps": 2}
    for rows, tune, expected in ((16, True, True), (16, False, False), (None, True, False), (8, True, False)):
        seen.clear()
        FastPgd(model, "fp32", rows, replayed, tune=tune)(model, batch.x, batch.y, **how)
        assert seen[0] is expected  # a replay on the CPU calls the network, one on a GPU does not
    with pytest.raises(KeyError), tuned(True):
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert not torch.backends.cudnn.benchmark
