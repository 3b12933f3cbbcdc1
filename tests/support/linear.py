"""Linear networks, whose margins are known in closed form: two classes of any inputs, and the ten digits."""

import json
import math

import pytest
import torch
from torch import nn

import evaluate_on_pgd_attacks
from config import PRESETS
from evaluations.flags import PgdFlags, parse_flags
from evaluations.subject import load_subject
from loading.datasets import load_dataset, load_test
from records import checkpoint
from validation import stored_config

CPU = torch.device("cpu")

# --- two classes ------------------------------------------------------------------------------------------------------

MAX_EPS, SEARCH_STEPS = 0.2, 14


class TwoClasses(nn.Module):
    """On inputs of any rank: logits +-(w x + b) / 2, so LM = SLM = -(2y - 1)(w x + b)."""

    def __init__(self, shape, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def score(self, x):
        return (x * self.w).flatten(1).sum(1) + self.b

    def forward(self, x):
        half = self.score(x) / 2
        return torch.stack([-half, half], dim=1)

    def margin(self, x, norm):
        dual = self.w.abs().sum() if norm == "Linf" else self.w.norm()
        return (self.score(x).abs() / dual).detach()


def problem(shape, batch, norm, seed=0):
    """Points near the middle of [0, 1], right by construction, with margins in (0.01, 0.12): clipping stays inactive."""
    model = TwoClasses(shape, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = 0.5 + 0.02 * torch.randn(batch, *shape, generator=g, dtype=torch.float64)
    w = model.w.detach()
    dual, unit = (w.abs().sum(), w.sign()) if norm == "Linf" else (w.norm(), w / w.norm())
    wanted = (0.01 + 0.11 * torch.rand(batch, generator=g, dtype=torch.float64)) * torch.where(
        torch.rand(batch, generator=g) < 0.5, -1, 1
    )
    shift = (wanted - model.score(x).detach() / dual).reshape(-1, *[1] * len(shape))
    x = x + shift * unit
    assert (x - 0.5).abs().max() < 0.5 - MAX_EPS
    return model, x, (wanted > 0).long()


# --- the digits, and files that hold such a network -------------------------------------------------------------------


def with_corners(batch, shape, seed=1):
    """Images of which a third of the pixels is 0 and a third is 1."""
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.rand(batch, *shape, generator=g, dtype=torch.float64) - 1).clamp(0, 1)


def boxed_margin(norm, x, gradient, rise):
    """(B,): the length of the shortest d with gradient . d = rise and x + d in [0, 1], by halving its multiplier."""
    gradient, room = gradient.flatten(1), torch.where(gradient > 0, 1 - x, x).flatten(1)
    low, high = torch.zeros(len(x), 1, dtype=x.dtype), torch.full((len(x), 1), 1e6, dtype=x.dtype)
    for _ in range(100):
        middle = (low + high) / 2
        d = torch.minimum(middle * (gradient.abs() if norm == "L2" else 1), room)
        short = (gradient.abs() * d).sum(1, keepdim=True) < rise[:, None]
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return d.norm(dim=1) if norm == "L2" else d.amax(1)


class Function(nn.Module):
    """A network without weights: any function of the images."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


class Linear(nn.Module):
    """Any weights."""

    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.linear = nn.Linear(channels * height * width, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Negative(Linear):
    """The same weights, other logits."""

    def forward(self, x):
        return -super().forward(x)


def state_of(weight, bias):
    """Of `Linear`, from (classes, pixels) and (classes,)."""
    return {"linear.weight": weight.contiguous(), "linear.bias": bias.contiguous()}


def save_run(folder, norm="Linf", rows=slice(None), **changes):
    """A run folder whose network is fitted by least squares to these training images of the digits."""
    changes = {"network": "linear:Linear", "hinge_maxeps": 0.3, **changes}
    config = stored_config({**PRESETS["digits", norm].to_dict(), **changes})
    train = load_dataset("digits", val_size=config.val_size, test_size=0, seed=config.seed, device=CPU).train
    images, labels = train.images[rows].flatten(1).float() / 255, train.labels[rows]
    x = torch.cat([images, torch.ones(len(labels), 1)], dim=1)
    solution = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ (10 * torch.eye(10)[labels])).T
    state = state_of(solution[:, :-1], solution[:, -1])
    folder.mkdir()
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": state, "config": config.to_dict()})
    return folder


ATTACK = [*("--device", "cpu", "--network", "linear:Linear", "--nb_iter", "5", "--nb_restart", "2")]
SMALL = [*ATTACK, "--test_size", "40"]


def attack(run, *flags):
    """The status of repeated PGD on a few of its images."""
    return evaluate_on_pgd_attacks.main(["--model", str(run), *SMALL, *map(str, flags)])


def subject_of(run, *flags):
    return load_subject(parse_flags(PgdFlags, ["--model", str(run), *SMALL, *map(str, flags)]), CPU)


# --- zeros against ones, whose worst case within a ball and [0, 1] is known ---------------------------------------------

FAR = -1000.0  # the logits of the eight digits that nobody predicts


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, on one thread: thousands of small operations only wait for a second one."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    """(x, y) of the test set."""
    x, y, _ = load_test("digits", "data", test_size=None, device=CPU).split.everything()
    return x, y


@pytest.fixture
def network(digits, tmp_path):
    """See `save_zeros_against_ones`."""
    return save_zeros_against_ones(digits, tmp_path / "net")


def save_zeros_against_ones(digits, folder):
    """A bare state dict in a folder of its own: logits f, -f, and FAR, with f between the means of zeros and ones."""
    x, y = digits
    zeros, ones = (x[y == k].flatten(1).mean(0) for k in (0, 1))
    f = zeros - ones
    bias = -(f @ (zeros + ones)) / 2
    weights = torch.stack([f, -f, *[torch.zeros_like(f)] * 8])
    folder.mkdir()
    torch.save(state_of(weights, torch.stack([bias, -bias, *(FAR - torch.arange(8.0))])), folder / "net.pt")
    return folder / "net.pt"


def arguments(path, norm="Linf", **flags):
    named = {"dataset": "digits", "norm": norm, "network": "linear:Linear", "device": "cpu", "model": path, **flags}
    return [str(part) for name, value in named.items() for part in (f"--{name}", value)]


def result(path, attack="autoattack", norm="Linf"):
    return json.loads((path.parent / f"eval_{attack}_{norm}.json").read_text())


def worst_margins(path, digits, norm, eps):
    """(N,) the smallest value that y's side of f takes within eps and [0, 1]; -inf for the other eight digits."""
    x, y = digits
    state = torch.load(path, weights_only=True)
    weight, bias = state["linear.weight"][0].double(), state["linear.bias"][0].double()
    side = torch.where(y == 0, 1.0, -1.0)[:, None].double()
    x = x.flatten(1).double()
    free = torch.where(side * weight > 0, x, 1 - x)  # as far as each pixel can move against y
    if norm == "Linf":
        moved = free.clamp(max=eps)
    else:  # along the gradient until the box stops a pixel; what is left goes to the other pixels
        low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
        for _ in range(80):
            middle = (low + high) / 2
            inside = torch.minimum(middle * weight.abs(), free).norm(dim=1, keepdim=True) <= eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        moved = torch.minimum(low * weight.abs(), free)
    margin = (side * (x @ weight + bias)[:, None])[:, 0] - (moved * weight.abs()).sum(1)
    return torch.where(y <= 1, margin, -math.inf)
