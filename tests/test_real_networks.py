"""The two trained MNIST networks inside advertorch's wheel: real, independent models to try the attack on."""

import pytest
import torch

from benchmarks import search_passes
from benchmarks.compare_with_advertorch import robust_by_advertorch, robust_by_ours, wheel_network
from loading.datasets import load_test


@pytest.mark.parametrize("name", ["advtrained", "clntrained"])
def test_robust_accuracy_equals_advertorchs(mnist_root, name):
    """From the image itself the same images fall; from random starts the accuracies agree within noise."""
    batch = load_test("mnist", mnist_root, test_size=200, device=torch.device("cpu")).split.everything()
    model = wheel_network(name)
    ours, theirs = (f(model, batch.x, batch.y, False) for f in (robust_by_ours, robust_by_advertorch))
    assert (ours != theirs).sum() <= 1
    ours, theirs = (f(model, batch.x, batch.y, True) for f in (robust_by_ours, robust_by_advertorch))
    assert abs(ours.double().mean() - theirs.double().mean()) <= 0.03
    if name == "advtrained":
        assert ours.double().mean() > 0.8
    else:
        assert ours.double().mean() < 0.1


@pytest.mark.parametrize("guess", ["attack", "last visit"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", search_passes.NETWORKS)
def test_four_secant_passes_come_within_a_hundredth(mnist_root, name, norm, guess):
    """95 % of the images within 1 % of eps_max of a long bisection, every one inside the bracket."""
    x, y, _ = load_test("mnist", mnist_root, test_size=200, device=torch.device("cpu")).split.everything()
    found = search_passes.compare(name, norm, guess, 4, x, y)
    assert found.near >= 0.95 and found.inside
