"""The guard as a GPU runs it: nothing is read, little is launched, and it does what reading everything does."""

import copy

import pytest
import torch
from torch import nn

from hardware.guard import Guard
from hardware.kept import Kept, largest
from launches import Launches
from networks.build import build_model
from records.checkpoint import digest
from tiny_runs import tiny_trainer


def assorted():
    torch.manual_seed(0)
    return [
        torch.randn(3, 4, 5, 6),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(4, 7).T,
        torch.randn(6, 8)[::2, 1:5],  # with gaps
        torch.tensor(3.0),
        torch.arange(5),
        torch.tensor(7),
        torch.randn(3, dtype=torch.float64),
        torch.empty(0),
        torch.tensor([True, False]),
        torch.randn(3, 1, 2, 1),
    ]


@pytest.mark.parametrize("unless", [True, False])
def test_kept_tensors_of_every_layout_are_put_back(unless):
    tensors = assorted()
    before = [tensor.clone() for tensor in tensors]
    kept = Kept(tensors)
    for tensor in tensors:
        tensor.copy_(
            (tensor * 0).bool()
            if tensor.dtype == torch.bool
            else tensor * torch.nan
            if tensor.is_floating_point()
            else tensor + 1
        )
    changed = [tensor.clone() for tensor in tensors]
    kept.put_back(unless=torch.tensor(unless))
    for tensor, expected in zip(tensors, changed if unless else before, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, None])
def test_largest_magnitude(odd):
    tensors = assorted()
    expected = max(float(t.abs().max()) for t in tensors if t.is_floating_point() and t.numel())
    if odd is not None:
        tensors[1][0, 0, 0, 0] = odd
        assert not largest(tensors).isfinite()
    else:
        assert float(largest(tensors)) == pytest.approx(expected)
    assert float(largest([])) == 0 and float(largest([torch.tensor(5)])) == 0


class Sometimes(nn.Sequential):
    """Not finite where the first pixel is bright, in train mode."""

    def forward(self, x):
        out = super().forward(x)
        return torch.where(x[:, :1, 0, 0] > 0.8, torch.nan, out) if self.training else out


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_without_reading_it_does_the_same(optimizer, share):
    """Bit for bit, over steps that count and steps that are taken back, the first among them."""
    found = []
    for reads_are_free in (True, False):
        torch.manual_seed(0)
        model = Sometimes(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        trainer = tiny_trainer(model=model, optimizer=optimizer)
        bright = torch.rand(len(trainer.data.train), generator=torch.Generator().manual_seed(3)) < share
        trainer.data.train.images[:, :, 0, 0] = torch.where(bright, 255, 100)[:, None].to(torch.uint8)
        trainer.guard.reads_are_free = reads_are_free
        guard, states = trainer.guard, []
        for _ in range(9):
            trainer.train_step()
            state = trainer.state()
            states.append(digest([state[key] for key in ("model", "eps", "sums", "skipped")]))
        states.append(digest(trainer.optimizer.state_dict()) if share < 1 else "new, or all 0")
        found.append([*states, guard.examples.tolist(), int(guard.last), int(guard.in_a_row), int(guard.since_row)])
    assert found[0] == found[1]
    assert found[0][-1] == {0.0: 0, 0.3: found[0][-1], 1.0: 9}[share] and (share != 0.3 or 0 < found[0][-1] < 9)


def on_meta(network, images, **optimizer):
    """A guard of `network` with everything on `meta`, where nothing can be read."""
    model = build_model(network, *images, 10)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), 128, torch.device("cpu"))
    guard.model = copy.deepcopy(model).to("meta")
    guard.optimizer = torch.optim.SGD(guard.model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    for name in ("in_a_row", "since_row", "last", "examples"):
        setattr(guard, name, getattr(guard, name).to("meta"))
    guard.reads_are_free = False
    for parameter in guard.model.parameters():
        parameter.grad = torch.empty_like(parameter)
    return guard


@pytest.mark.parametrize(("network", "images", "most"), [("lenet5", (1, 28, 28), 45), ("wrn28_4", (3, 32, 32), 55)])
def test_a_guarded_step_is_a_handful_of_launches_and_no_reading(network, images, most):
    """The optimizer's own included; one tensor at a time WRN-28-4 takes 1 028 (105: LeNet5)."""
    guard = on_meta(network, images)
    finite = torch.empty(128, dtype=torch.bool, device="meta")
    for number in range(2):  # the first one makes the optimizer's state
        with Launches() as seen:
            guard.remember()
            guard.step(finite, number)
    assert not seen.waited
    assert seen.launched.total() <= most, seen.launched.most_common()
