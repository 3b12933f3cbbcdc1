"""Each family of networks: shapes, sizes, BatchNorms, activations, names; and state dicts of other programs."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import evaluate_on_pgd_attacks
import train
from command_lines import ATTACK, SMALL, fails
from errors import UserError
from hardware.precision import BFloat16Twin
from networks.build import build_model
from networks.keys import our_keys
from networks.shapes import shape_of
from networks.standardisation import PerImageStandardize
from records import checkpoint

CIFAR = (3, 32, 32, 10)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model, *shape):
    """Of convolutions and linear layers, for one image."""
    found = []

    def count(layer, _, output):
        found.append(output[0].numel() * layer.weight[0].numel())

    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.rand(1, *shape))
    return sum(found)


def wide_resnet_parameters(depth, k):
    """In closed form: stem, three groups with a 1x1 shortcut where the width changes, BatchNorms, last layer."""
    n, total, before = (depth - 4) // 6, 3 * 16 * 9, 16
    for width in (16 * k, 32 * k, 64 * k):
        total += 9 * before * width + (2 * n - 1) * 9 * width * width + (before != width) * before * width
        total += 2 * before + (2 * n - 1) * 2 * width
        before = width
    return total + 2 * before + 10 * before + 10


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (28, 4), (34, 10), (40, 2)])
def test_wide_resnets(depth, width):
    with torch.device("meta"):
        from networks.wide_resnet import WideResNet

        model = WideResNet(depth, width)
    assert parameters(model) == wide_resnet_parameters(depth, width)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == depth - 4 + 1
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 3 + (3 if width > 1 else 2)


def test_wrn28_4_has_one_function_and_two_names():
    first = build_model("wrn28_4", *CIFAR)
    second = build_model("wrn_28_4", *CIFAR)
    assert list(first.state_dict()) == list(second.state_dict())
    assert "1.convgroup2.layer.0.conv_shortcut.weight" in first.state_dict()


def test_preact_resnet18():
    """11.17 million parameters and 0.56 billion multiply-adds, as the fast-AT code's."""
    model = build_model("preact_resnet18", *CIFAR)
    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    convolutions = 27 * 64 + sum(9 * (a * b + 3 * b * b) + (a * b if a != b else 0) for a, b in stages)
    batchnorms = 2 * (sum(a + 3 * b for a, b in stages) + 512)
    assert parameters(model) == convolutions + batchnorms + 5130
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 17
    assert multiply_adds(model, 3, 32, 32) == pytest.approx(0.5564e9, rel=0.01)
    keys = set(model.state_dict())
    assert {"1.conv1.weight", "1.layer1.0.bn1.weight", "1.layer2.0.shortcut.0.weight", "1.linear.bias"} <= keys
    assert "1.layer1.0.shortcut.0.weight" not in keys


def test_the_small_one_is_small():
    model = build_model("small_resnet", *CIFAR)
    assert parameters(model) <= 100_000
    assert multiply_adds(model, 3, 32, 32) <= 15e6
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 7


@pytest.mark.parametrize("network", ["lenet5", "wrn_10_2", "preact_resnet18", "small_resnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (3, 33, 30, 7)])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_network_on_other_images_with_either_activation(network, shape, activation):
    torch.manual_seed(0)
    model = build_model(network, *shape, activation)
    x = torch.rand(4, *shape[:-1], requires_grad=True)
    logits = model(x)
    assert logits.shape == (4, shape[-1]) and model.eval()(x[:0]).shape == (0, shape[-1])
    model.train()
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0
    assert torch.equal(copy.deepcopy(model).eval()(x), model.eval()(x))
    torch.testing.assert_close(BFloat16Twin(model)(x), model(x), atol=0.1, rtol=0.1)
    if network != "lenet5":  # behind standardisation: brighter or paler images are the same
        torch.testing.assert_close(model(0.1 + 0.5 * x), model(x), atol=1e-4, rtol=1e-4)
    other = build_model(network, *shape, {"relu": "silu", "silu": "relu"}[activation]).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(x), model(x), atol=1e-4)


def test_lenet_with_silu_pools_what_it_has_activated():
    model, x = build_model("lenet5", 1, 8, 8, 3, "silu"), torch.randn(5, 1, 8, 8)
    by_hand = x
    for conv in (model.conv1, model.conv2):
        by_hand = F.max_pool2d(F.silu(conv(by_hand)), 2)
    torch.testing.assert_close(model(x), model.linear2(F.silu(model.linear1(by_hand.flatten(1)))))


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        ("wrn_27_4", ["10, 16, 22, 28", "did you mean wrn_28_4?"]),
        ("wrn_4_1", ["10, 16, 22, 28"]),
        ("wrn_28_0", ["no such width"]),
        ("wrn-34-10", ["did you mean wrn_34_10?"]),
        ("WRN-27-4", ["10, 16, 22, 28", "did you mean wrn_28_4?"]),
        ("resnet_small", ["did you mean small_resnet?"]),
        ("WideResNet-28-10", ["did you mean wrn_28_10?"]),
        ("resnet18", ["did you mean preact_resnet18?"]),
        ("preactresnet18", ["did you mean preact_resnet18?"]),
        ("small_renset", ["did you mean small_resnet?"]),
        ("quite_other", ["lenet5, wrn28_4", "wrn_D_W", "path/to/file.py:callable"]),
    ],
)
def test_unknown_networks_suggest_the_nearest(network, parts, capsys, tmp_path):
    fails(capsys, train.main, [*SMALL, "--network", network, "--savepath", tmp_path / "no"], network, *parts)
    with pytest.raises(UserError, match=network):
        build_model(network, *CIFAR)


# --- other programs' state dicts: networks built here from the papers, with those programs' names -------------------


class TheirWideBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.convShortcut = None if inside == outside else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x):
        before = self.bn1(x).relu()
        hidden = self.conv2(self.bn2(self.conv1(before)).relu())
        return hidden + (x if self.convShortcut is None else self.convShortcut(before))


class TheirGroup(nn.Module):
    def __init__(self, blocks, inside, outside, stride):
        super().__init__()
        rest = [TheirWideBlock(outside, outside, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(TheirWideBlock(inside, outside, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class TheirWideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016, with RobustBench's names."""

    def __init__(self, depth, k):
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = TheirGroup(n, 16, 16 * k, 1)
        self.block2 = TheirGroup(n, 16 * k, 32 * k, 2)
        self.block3 = TheirGroup(n, 32 * k, 64 * k, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64 * k), nn.Linear(64 * k, 10)

    def forward(self, x):
        x = self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))).relu()
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class TheirPreActBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False))

    def forward(self, x):
        hidden = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return hidden + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class TheirPreAct18(nn.Module):
    """He et al. 2016, with the fast-AT code's names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        for i, (inside, outside) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            blocks = TheirPreActBlock(inside, outside, min(i, 2)), TheirPreActBlock(outside, outside, 1)
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.bn, self.linear = nn.BatchNorm2d(512), nn.Linear(512, 10)

    def forward(self, x):
        for layer in (self.conv1, self.layer1, self.layer2, self.layer3, self.layer4, self.bn):
            x = layer(x)
        return self.linear(F.avg_pool2d(x.relu(), 4).flatten(1))


def trained(model):
    """With statistics and weights as after training: no two of them alike."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("network", "theirs"),
    [
        ("wrn_16_4", lambda: TheirWideResNet(16, 4)),
        ("wrn_10_1", lambda: TheirWideResNet(10, 1)),
        ("preact_resnet18", TheirPreAct18),
    ],
)
def test_state_dicts_of_others_load_with_equal_logits(network, theirs):
    reference, ours = trained(theirs()), build_model(network, *CIFAR).eval()
    assert parameters(reference) == parameters(ours)
    with pytest.raises(RuntimeError):
        ours.load_state_dict(reference.state_dict())
    ours.load_state_dict(our_keys(reference.state_dict(), ours.state_dict()))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(PerImageStandardize()(x)), rtol=1e-4, atol=1e-4)


def test_keys_that_fit_or_fit_in_no_way_stay():
    model = build_model("wrn_10_1", *CIFAR)
    own = model.state_dict()
    assert list(our_keys(own, own)) == list(own)
    lenet = build_model("lenet5", 1, 8, 8, 3).state_dict()
    assert list(our_keys(lenet, own)) == list(lenet) and list(our_keys(lenet, lenet)) == list(lenet)


def test_state_dicts_of_others_with_a_prefix_and_a_group_that_no_image_passes():
    """TRADES' WideResNet, which many of RobustBench's are, has `sub_block1`; others lie in a wrapper as `model`."""
    reference, ours = trained(TheirWideResNet(10, 1)), build_model("wrn_10_1", *CIFAR).eval()
    theirs = reference.state_dict()
    more = {key.replace("block1.", "sub_block1."): value for key, value in theirs.items() if key.startswith("block1.")}
    assert more
    found = our_keys({f"model.{key}": value for key, value in (theirs | more).items()}, ours.state_dict())
    assert all(torch.equal(value, expected) for value, expected in zip(found.values(), theirs.values(), strict=True))
    ours.load_state_dict(found)
    normalised = {"mu": torch.zeros(1, 3, 1, 1), **theirs}  # which ours would leave out
    with pytest.raises(UserError, match="mu is"):
        checkpoint.load_weights(ours, our_keys(normalised, ours.state_dict()), Path("theirs.pt"))


def test_a_foreign_checkpoint_on_the_command_line(tmp_path, capsys):
    """Digits have one channel: their WideResNet with another stem, attacked and taken as a start."""
    torch.manual_seed(0)
    reference = TheirWideResNet(10, 1)
    reference.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
    torch.save(reference.state_dict(), tmp_path / "theirs.pt")
    named = ["--network", "wrn_10_1"]
    digits = ["--dataset", "digits", "--norm", "Linf", "--eps", "0.1"]
    attack = [*ATTACK, "--model", str(tmp_path / "theirs.pt"), *digits]
    assert evaluate_on_pgd_attacks.main([*attack, *named]) == 0
    assert "another program's" in capsys.readouterr().out
    fails(capsys, evaluate_on_pgd_attacks.main, [*attack, "--network", "preact_resnet18"], "of another network")
    start = ["--pretrained", str(tmp_path / "theirs.pt"), "--max_steps", "1", "--savepath", str(tmp_path / "run")]
    assert train.main([*SMALL, *start, *named]) == 0
    assert "another program's" in "".join(capsys.readouterr())
    torch.save({"state_dict": reference.state_dict(), "epoch": 3}, tmp_path / "theirs.pt")
    assert evaluate_on_pgd_attacks.main([*attack, *named, "--overwrite"]) == 0


def test_the_activation_is_the_checkpoints(tmp_path, capsys):
    run = tmp_path / "run"
    small = [*SMALL, "--max_steps", "1", "--network", "small_resnet"]
    assert train.main([*small, "--activation", "silu", "--savepath", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["activation"] == "silu"
    from evaluations.flags import parse_pgd
    from evaluations.subject import load_subject

    subject = load_subject(parse_pgd(["--model", str(run), *ATTACK]), torch.device("cpu"))
    assert subject.model[1].activation is F.silu
    fails(capsys, train.main, [*small, "--resume", "--savepath", run], "--activation relu here, silu there")
    own = ["--network", "mine:net", "--activation", "silu", "--savepath", tmp_path / "no"]
    fails(capsys, train.main, [*SMALL, *own], "--activation", "your own")
    assert math.isfinite(subject.model(torch.rand(1, 1, 8, 8)).sum())


@pytest.mark.parametrize("network", ["lenet5", "wrn_10_2", "preact_resnet18", "small_resnet"])
def test_shapes_are_read_off_the_weights(network):
    for channels in (1, 3):
        model = build_model(network, channels, 8, 8, 7)
        assert shape_of(model.state_dict())[::3] == (channels, 7)
