"""The two trained MNIST networks inside advertorch's wheel: real, independent models to try attack and search on."""

import pytest
import torch

from anpgd import Search
from benchmarks.compare_with_advertorch import robust, wheel_network
from loading.datasets import load_test
from losses import soft_logit_margin
from pgd import InnerPgd

NETWORKS = ("advtrained", "clntrained")


@pytest.fixture(scope="module")
def images(mnist_root):
    return load_test("mnist", mnist_root, test_size=200, device=torch.device("cpu")).split.everything()


@pytest.mark.parametrize("name", NETWORKS)
def test_robust_accuracy_equals_advertorchs(images, name):
    """From the image itself the same images fall; from random starts the accuracies agree within noise."""
    model, (x, y, _) = wheel_network(name), images
    ours, theirs = (robust(by, model, x, y, random_start=False) for by in ("ours", "advertorch"))
    assert (ours != theirs).sum() <= 1
    ours, theirs = (robust(by, model, x, y, random_start=True).double().mean() for by in ("ours", "advertorch"))
    assert abs(ours - theirs) <= 0.03
    assert ours > 0.8 if name == "advtrained" else ours < 0.1


@pytest.mark.parametrize("guess", ["attack", "last visit"])
@pytest.mark.parametrize(("norm", "radius", "top"), [("Linf", 0.3, 0.4725), ("L2", 2.0, 4.2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_four_secant_passes_come_within_a_hundredth(images, name, norm, radius, top, guess):
    """95 % of the images within 1 % of eps_max of a bisection of 20 halvings, every one inside the bracket.

    The first guess is the radius of PGD's attack, or the crossing with 15 % noise, as the visit before would leave it.
    """
    torch.manual_seed(0)
    model, (x, y, _) = wheel_network(name), images
    loss = soft_logit_margin(model(x), y).detach()
    x, y, loss = x[loss < 0], y[loss < 0], loss[loss < 0]
    start = torch.full((len(x),), radius)
    direction = (InnerPgd(norm, 6, soft_logit_margin)(model, x, y, start, torch.rand_like(x)) - x) / radius
    exact = Search(soft_logit_margin, top, 20)(model, x, y, direction, start).eps
    if guess == "last visit":
        start = (exact * (1 + 0.15 * torch.randn(len(x)))).clamp(0.1 * radius, top)
    found = Search(soft_logit_margin, top, 4, "secant")(model, x, y, direction, start, loss).eps
    assert ((found - exact).abs() <= 0.01 * top).double().mean() >= 0.95
    assert ((found >= 0) & (found <= top)).all()
