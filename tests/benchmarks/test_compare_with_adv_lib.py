"""adv-lib beside foolbox: what is measured of an attack's images, and what is said without the package."""

import math
import sys

import pytest
import torch

from benchmarks import compare_with_adv_lib
from command_lines import fails


@pytest.mark.parametrize(("norm", "expected"), [("L2", [0.5, math.inf, math.inf]), ("Linf", [0.4, math.inf, math.inf])])
def test_only_images_that_are_wrong_have_a_distance(norm, expected):
    """Of a classifier of two pixels by their sum: one was broken, one was not, of one the attack left [0, 1]."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([-0.8, 0.0]))
    x = torch.tensor([[0.6, 0.5], [1.0, 1.0], [0.1, 0.8]]).view(3, 1, 1, 2)
    moved = torch.tensor([[-0.4, -0.3], [-0.1, -0.1], [-0.6, 0.1]]).view(3, 1, 1, 2)
    found = compare_with_adv_lib.distances(
        lambda model, x, y: x + moved, norm, model, x, torch.zeros(3, dtype=torch.long)
    )
    assert found.tolist() == pytest.approx(expected)


def test_without_adv_lib_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", None)
    fails(capsys, compare_with_adv_lib.main, [], "adv-lib is not there: pip install adv-lib")
