"""The networks against advertorch_examples.models, under the same weights."""

import pytest
import torch
from torch import nn

from errors import UserError
from evaluations.advertorch_compat import advertorch
from networks.build import build_model
from networks.lenet import LeNet5Madry
from networks.standardisation import PerImageStandardize
from networks.wide_resnet import wrn28_4
from records.checkpoint import plain_keys


@pytest.fixture(scope="module")
def theirs():
    assert advertorch
    import advertorch_examples.models as models

    return {"lenet5": models.LeNet5Madry(), "wrn28_4": models.get_cifar10_wrn28_widen_factor(4)}


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("wrn28_4", (3, 32, 32))])
@pytest.mark.parametrize("training", [False, True])
def test_same_keys_and_outputs(theirs, name, shape, training):
    reference, ours = theirs[name], build_model(name, *shape, 10)
    assert list(ours.state_dict()) == list(reference.state_dict())
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    ours.load_state_dict(reference.state_dict())
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    reference.train(training)
    ours.train(training)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-4, atol=1e-5)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_size_and_initialisation():
    assert sum(p.numel() for p in LeNet5Madry().parameters()) == 3_274_634
    torch.manual_seed(0)
    net = wrn28_4()[1]
    assert net.fc.bias.abs().max() == 0
    for conv in [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 5000]:
        fan_out = conv.kernel_size[0] ** 2 * conv.out_channels
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_standardisation():
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    x[0] = 0.5  # no variance: divided by 1 / sqrt(192)
    x[1] = 0.5 + 1e-4 * x[1]
    out = PerImageStandardize()(x)
    flat = x.flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True).clamp(min=192**-0.5)
    torch.testing.assert_close(out.flatten(1), expected)
    x.requires_grad_()
    assert torch.isfinite(torch.autograd.grad(PerImageStandardize()(x).square().sum(), x)[0]).all()


@pytest.mark.parametrize(
    ("network", "shape"), [("lenet5", (1, 8, 8)), ("lenet5", (3, 30, 17)), ("wrn28_4", (1, 20, 24))]
)
def test_other_image_sizes(network, shape):
    assert build_model(network, *shape, 7)(torch.rand(2, *shape)).shape == (2, 7)


def test_ones_own_network(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "import torch\n"
        "def tiny(channels, height, width, num_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * height * width, num_classes))\n"
        "def broken(*_): raise KeyError('no')\n"
        "def nothing(*_): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_model("mynets:tiny", 1, 8, 8, 3)(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    for name in ("mynets:broken", "mynets:nothing", "mynets:missing", "nosuchmodule:x"):
        with pytest.raises(UserError, match=name):
            build_model(name, 1, 8, 8, 3)


def test_prefixes_are_taken_off():
    state = {"module._orig_mod.a": 1, "module._orig_mod.b": 2}
    assert dict(plain_keys(state)) == {"a": 1, "b": 2}
    assert dict(plain_keys({"module.a": 1, "b": 2})) == {"module.a": 1, "b": 2}
