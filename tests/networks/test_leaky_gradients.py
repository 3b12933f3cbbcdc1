"""Leaky gradients: values stay, gradients are a leaky ReLU's, and an attack sees past ReLUs that are off."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import hidden_images
from command_lines import fails
from networks.build import build_model
from networks.leaky_gradients import LeakyGradients
from support import ROOT


@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU(), nn.ReLU(inplace=True), lambda z: F.relu(input=z)],
    ids=["functional", "torch", "method", "module", "module in place", "by keyword"],
)
@pytest.mark.parametrize("slope", [0.0, 0.05, 1.0])
def test_values_of_the_relu_gradients_of_a_leaky_one(relu, slope):
    z = torch.linspace(-2, 2, 40).requires_grad_(True)
    with LeakyGradients(slope):
        values = relu(z * 1)
    torch.testing.assert_close(values, z.clamp_min(0), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((values * torch.arange(40)).sum(), z)
    (expected,) = torch.autograd.grad((F.leaky_relu(z, slope) * torch.arange(40)).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_network_and_nothing_stays_afterwards(dtype):
    torch.manual_seed(0)
    model = build_model("lenet5", 1, 28, 28, 10).eval().to(dtype)
    x = torch.rand(2, 1, 28, 28, dtype=dtype).requires_grad_(True)

    def logits_and_gradient():
        logits = model(x)
        return logits, torch.autograd.grad(logits[:, 0].sum(), x)[0]

    plain, gradient = logits_and_gradient()
    with LeakyGradients(0.1):
        leaky, other = logits_and_gradient()
    again, same = logits_and_gradient()
    assert torch.equal(plain, leaky) and torch.equal(plain, again) and torch.equal(gradient, same)
    assert not torch.equal(gradient, other)


class Hiding(nn.Module):
    """Class 0 up to a mean of 0.9; what says so is off below 0.8, so that nothing there has a gradient."""

    def forward(self, x):
        over = F.relu(x.flatten(1).mean(1) - 0.8)
        return torch.stack([torch.full_like(over, 0.1), over], 1)


def test_an_attack_sees_past_relus_that_are_off():
    x, y = torch.full((5, 1, 4, 4), 0.65), torch.zeros(5, dtype=torch.long)
    assert hidden_images.broken(Hiding(), x, y, 0.3, 0.05, 0.0) == 0
    assert hidden_images.broken(Hiding(), x, y, 0.3, 0.05, 0.05) == 5


def test_only_what_stands_under_pgd_and_falls_to_autoattack_is_hidden():
    rows = {"pgd": "11010", "autoattack": "1001"}
    evaluations = [{"attack": name, "results": [{"eps": 0.3, "flags": flags}]} for name, flags in rows.items()]
    assert hidden_images.hidden(evaluations, 0.3) == [1]


def test_a_run_without_autoattack_is_refused(capsys):
    run = ROOT / "trained_models" / "mnist-Linf-MMA-0.45-sd0-fast-scale1-4150steps"
    fails(capsys, hidden_images.main, [str(run)], "no autoattack at eps 0.3 beside the network")
