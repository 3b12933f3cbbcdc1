"""What is recorded and what is not, decided before: with a recorder that replays on the CPU, and `torch.cuda` stubbed."""

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from errors import UserError
from hardware import cuda_graph, rehearsal
from hardware.cuda_graph import Captured, record_on_cuda
from hardware.fast_pgd import FastPgd
from hardware.layout import PLAIN, layout_for, tuned
from hardware.rehearsal import why_not
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


def never(fn, inputs):
    raise AssertionError("recorded")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))


class Waits(Net):
    def forward(self, x):
        return x * self.weight if float(x.sum()) > 0 else -x


class WaitsForAShape(Net):
    def forward(self, x):
        return x * len(x[x > 0.5])


class HostRandom(Net):
    def forward(self, x):
        return x * (self.weight if random.random() < 0.5 else 1) + 0 * x.sum()


class NumpyRandom(Net):
    def forward(self, x):
        return x * float(np.random.rand())


class Alternates(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.calls % 2)


class Replaces(Net):
    def forward(self, x):
        self.seen = self.seen + 1
        return x * self.weight


class Spectral(Net):
    """Moves its buffer in place, as spectral norm's power iteration."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))

    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def reading_waits(monkeypatch):
    """On the CPU a value that is read raises, as CUDA's does under set_sync_debug_mode("error")."""

    class Refuse(Launches):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = super().__torch_dispatch__(func, types, args, kwargs)
            if self.waited:
                raise RuntimeError("called a synchronizing CUDA operation\nmore")
            return found

    monkeypatch.setattr(rehearsal, "waiting_refused", lambda device: Refuse())


REFUSED = {
    Waits: "the host waits for the device: called a synchronizing CUDA operation",
    WaitsForAShape: "the host waits for the device",
    HostRandom: "random numbers on the host",
    NumpyRandom: "random numbers on the host",
    Alternates: "two passes from the same state differ",
    Replaces: "other tensors in its buffers' places",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_a_recording_would_freeze_is_not_recorded_and_said_once(kind, reading_waits):
    model, x = kind(), torch.rand(4, 3)
    captured = Captured(lambda x: (model(x),), 4, never, model)
    with pytest.warns(RuntimeWarning, match=REFUSED[kind]) as said:
        outs = [captured(x)[0] for _ in range(6)]
    assert len(said) == 1
    if kind is HostRandom:
        return
    assert kind is NumpyRandom or torch.equal(outs[0], kind().forward(x)) or kind is Alternates
    if kind is Alternates:
        assert not torch.equal(outs[0], outs[1]), "still its own"


@pytest.mark.parametrize("kind", [Net, Spectral])
def test_the_others_are_recorded_and_nothing_has_moved(kind, reading_waits):
    model, x, done = kind(), torch.rand(4, 3), []
    forward = model.forward if kind is Spectral else lambda x: x * model.weight + torch.rand(3)
    torch.manual_seed(5)
    before = [value.clone() for value in model.state_dict().values()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    assert why_not(lambda x: (forward(x), done.append(1))[:1], (x,), model) is None
    assert len(done) == 3
    assert all(torch.equal(own, old) for own, old in zip(model.state_dict().values(), before, strict=True))
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_replayed_training_leaves_moving_buffers_where_plain_training_leaves_them():
    """Spectral norm's u, whose power iteration runs at every pass in train mode."""

    def model():
        torch.manual_seed(0)
        norm = torch.nn.utils.parametrizations.spectral_norm
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), norm(nn.Linear(144, 4)))

    def step_of(trainer):
        def step(x):
            trainer.model.train()
            return (trainer.model(x),)

        return step

    plain, fast = tiny_trainer(model=model()), tiny_trainer(model=model())
    images = [torch.rand(6, 1, 8, 8) for _ in range(3)]
    captured = Captured(step_of(fast), 6, recorded_as_cuda_does, fast.model)
    for x in images:
        torch.testing.assert_close(captured(x)[0], step_of(plain)(x)[0], rtol=0, atol=0)
    for own, other in zip(fast.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(own, other)


def recorded_as_cuda_does(fn, inputs):
    """Recording itself runs nothing: buffers stay."""
    outputs = []

    def replay():
        new = fn(*inputs)
        outputs[:] = new if not outputs else [own.copy_(value) for own, value in zip(outputs, new, strict=True)]

    class Late(tuple):
        def __getitem__(self, index):
            return outputs[index]

    return replay, Late()


def test_a_recording_that_fails_ends_the_run_naming_the_flag():
    def fail(fn, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda_graphs"):
        Captured(lambda x: (x + 1,), 2, fail)(torch.zeros(2))


@pytest.mark.parametrize("record", [cuda_graph.record_on_cuda, never])
def test_out_of_memory_stays_what_it_is(record, monkeypatch):
    """So that a check goes on in smaller batches."""

    def full(fn, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def greedy(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for captured in (Captured(lambda x: (x,), 2, full), Captured(greedy, 2, record)):
        with pytest.raises(torch.OutOfMemoryError):
            captured(torch.zeros(2))


def test_without_a_recorder_nothing_is_recorded_nor_rehearsed():
    calls = []
    captured = Captured(lambda x: (calls.append(1), x + 1)[1:], 2, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captured(torch.zeros(2))[0].tolist() == [1, 1] and len(calls) == 1


def test_other_threads_may_go_on_while_it_is_recorded(monkeypatch):
    """`thread_local`: one that pins memory spoils a global recording."""
    modes = []

    class Graph:
        def replay(self):
            modes.append("replayed")

    @contextlib.contextmanager
    def graph(_graph, **given):
        modes.append(given)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    replay, outputs = record_on_cuda(lambda x: (x + 1,), (torch.zeros(2),))
    replay()
    assert modes == [{"capture_error_mode": "thread_local"}, "replayed"] and outputs[0].tolist() == [1, 1]


def test_waiting_is_an_error_while_it_is_rehearsed(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with contextlib.suppress(KeyError), rehearsal.waiting_refused(torch.device("cuda")):
        assert modes[-1] == "error"
        raise KeyError
    assert modes == ["default", "error", "default"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_recording_holds_one_step_of_pgd_whatever_the_number_of_steps(norm):
    model, counts = network(), []
    batch = batch_for(model)
    for steps in (1, 7):
        recorder = Counted()
        fast = FastPgd(model, "fp32", rows=16, record=recorder)
        how = {"norm": norm, "eps": 0.1, "step_size": 0.03, "steps": steps, "noise": rand(*batch.x.shape)}
        for loss_fn in (cross_entropy, cw_loss, cross_entropy):
            for _ in range(2):
                found = fast(model, batch.x, batch.y, loss_fn=loss_fn, **how)
                torch.testing.assert_close(
                    found, pgd(model, batch.x, batch.y, loss_fn=loss_fn, **how), rtol=0, atol=1e-12
                )
        assert len(recorder.seen) == 2, "one recording a loss"
        counts.append([seen.launched["convolution"] for seen in recorder.seen])
    assert counts == [[1, 1], [1, 1]]


def test_a_network_that_cannot_be_recorded_is_said_once_for_all_losses(reading_waits):
    class Waiting(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (1 if float(x.detach().sum()) > 0 else 2)

    model = Waiting(*network())
    batch = batch_for(model)
    fast = FastPgd(model, "fp32", rows=16, record=never)
    how = {"norm": "Linf", "eps": 0.1, "step_size": 0.03, "steps": 3}
    with pytest.warns(RuntimeWarning) as said:
        for loss_fn in (cross_entropy, cw_loss, cross_entropy):
            found = fast(model, batch.x, batch.y, loss_fn=loss_fn, **how)
            torch.testing.assert_close(found, pgd(model, batch.x, batch.y, loss_fn=loss_fn, **how), rtol=0, atol=1e-12)
    assert len(said) == 1


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
    for rows, record, expected in ((16, replayed, True), (16, None, True), (None, None, False), (8, replayed, False)):
        seen.clear()
        FastPgd(model, "fp32", rows, record, tune=True)(model, batch.x, batch.y, **how)
        assert seen[0] is expected  # a replay on the CPU calls the network, one on a GPU does not
        assert set(seen) == {expected} or record is replayed, (rows, record)
        seen.clear()
        FastPgd(model, "fp32", rows, record, tune=False)(model, batch.x, batch.y, **how)
        assert set(seen) == {False}
    with pytest.raises(KeyError), tuned(True):
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert not torch.backends.cudnn.benchmark
