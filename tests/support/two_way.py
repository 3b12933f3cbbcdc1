"""A network that tells zeros from ones by a linear function, and command lines that attack it."""

import json
import math

import pytest
import torch
from torch import nn

from loading.datasets import load_test

CPU = torch.device("cpu")


FAR = -1000.0  # the logits of the eight digits that nobody predicts


class TwoWay(nn.Module):
    """Zeros against ones by a linear function f: logits f, -f, and FAR for the other classes."""

    def __init__(self, channels, height, width, classes):
        super().__init__()
        self.linear = nn.Linear(channels * height * width, 1)
        self.register_buffer("others", torch.full((1, classes - 2), FAR) - torch.arange(classes - 2))

    def forward(self, x):
        f = self.linear(x.flatten(1))
        return torch.cat([f, -f, self.others.expand(len(x), -1)], 1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, on one thread: thousands of small operations only wait for a second one."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    """(x, y) of the test set."""
    x, y, _ = load_test("digits", "data", test_size=None, device=CPU).split.everything()
    return x, y


@pytest.fixture
def network(digits, tmp_path):
    """The network as a bare state dict in a folder of its own."""
    return save_two_way(digits, tmp_path / "net")


def save_two_way(digits, folder):
    x, y = digits
    zeros, ones = (x[y == k].flatten(1).mean(0) for k in (0, 1))
    model = TwoWay(1, 8, 8, 10)
    model.linear.weight.data = (zeros - ones)[None]
    model.linear.bias.data = -((zeros - ones) @ (zeros + ones) / 2)[None]
    folder.mkdir()
    torch.save(model.state_dict(), folder / "net.pt")
    return folder / "net.pt"


def arguments(path, norm="Linf", **flags):
    named = {
        "dataset": "digits",
        "norm": norm,
        "network": f"{__name__}:TwoWay",
        "device": "cpu",
        "model": path,
        **flags,
    }
    return [str(part) for name, value in named.items() for part in (f"--{name}", value)]


def result(path, attack="autoattack", norm="Linf"):
    return json.loads((path.parent / f"eval_{attack}_{norm}.json").read_text())


def worst_margins(path, digits, norm, eps):
    """(N,) the smallest value that y's side of f takes within eps and [0, 1]; -inf for the other eight digits."""
    x, y = digits
    state = torch.load(path, weights_only=True)
    weight, bias = state["linear.weight"][0].double(), state["linear.bias"].double()
    side = torch.where(y == 0, 1.0, -1.0)[:, None].double()
    x = x.flatten(1).double()
    room = torch.where(side * weight > 0, x, 1 - x)  # as far as each pixel can move against y
    if norm == "Linf":
        moved = room.clamp(max=eps)
    else:  # along the gradient until the box stops a pixel; what is left goes to the others
        low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
        for _ in range(80):
            middle = (low + high) / 2
            inside = torch.minimum(middle * weight.abs(), room).norm(dim=1, keepdim=True) <= eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        moved = torch.minimum(low * weight.abs(), room)
    margin = (side * (x @ weight + bias)[:, None])[:, 0] - (moved * weight.abs()).sum(1)
    return torch.where(y <= 1, margin, -math.inf)
