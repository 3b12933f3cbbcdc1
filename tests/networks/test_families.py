"""Each family of networks: shapes, sizes, names, advertorch's outputs; and state dicts of other programs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import evaluate_on_pgd_attacks
import train
from command_lines import ATTACK, SMALL, fails
from errors import UserError
from evaluations.advertorch_compat import advertorch
from evaluations.flags import EvaluationFlags, PgdFlags, parse_flags
from evaluations.subject import load_subject
from folders import pictures
from hardware.precision import BFloat16Twin
from networks.build import build_model
from networks.foreign import our_keys, shape_of
from networks.lenet import LeNet5Madry
from networks.probes import Needs, probe
from networks.resnets import PerImageStandardize
from their_networks import TheirPreAct18, TheirStandardised, TheirWideResNet

CIFAR = (3, 32, 32, 10)
BUILT_IN = ("lenet5", "wrn_10_2", "preact_resnet18", "preact_resnet18_v2", "small_resnet")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("wrn28_4", (3, 32, 32))])
@pytest.mark.parametrize("training", [False, True])
def test_same_keys_and_outputs_as_advertorchs(name, shape, training):
    assert advertorch
    import advertorch_examples.models as theirs

    reference = theirs.LeNet5Madry() if name == "lenet5" else theirs.get_cifar10_wrn28_widen_factor(4)
    ours = build_model(name, *shape, 10)
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


def test_sizes_names_and_initialisation():
    assert parameters(build_model("small_resnet", *CIFAR)) <= 100_000 and parameters(LeNet5Madry()) == 3_274_634
    torch.manual_seed(0)
    first, second = build_model("wrn28_4", *CIFAR), build_model("wrn_28_4", *CIFAR)
    assert list(first.state_dict()) == list(second.state_dict())
    assert "1.convgroup2.layer.0.conv_shortcut.weight" in first.state_dict()
    assert first[1].fc.bias.abs().max() == 0
    for conv in [m for m in first.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 5000]:
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


@pytest.mark.parametrize("network", BUILT_IN)
@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (3, 33, 30, 7)])
def test_every_network_on_other_images(network, shape):
    torch.manual_seed(0)
    model = build_model(network, *shape)
    x = torch.rand(4, *shape[:-1], requires_grad=True)
    logits = model(x)
    assert logits.shape == (4, shape[-1]) and model.eval()(x[:0]).shape == (0, shape[-1])
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    if network == "small_resnet":  # the others take seconds on CPUs without such instructions
        torch.testing.assert_close(BFloat16Twin(model)(x), model(x), atol=0.1, rtol=0.1)
    if network != "lenet5":  # behind standardisation: brighter or paler images are the same
        torch.testing.assert_close(model(0.1 + 0.5 * x), model(x), atol=1e-4, rtol=1e-4)
    assert shape_of(model.state_dict())[::3] == (shape[0], shape[-1])


class Unused(nn.Module):
    """Works on no empty batch, and leaves a parameter out."""

    def __init__(self):
        super().__init__()
        self.unused, self.used = nn.Linear(9, 2), nn.Linear(9, 2)

    def forward(self, x):
        return self.used(x.flatten(1)) / x.max()


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), Needs(one_row=True, no_row=True, uses_all=True)),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9)), Needs(one_row=False, no_row=True, uses_all=True)),
        (Unused(), Needs(one_row=True, no_row=False, uses_all=False)),
        (nn.Flatten(), Needs(one_row=True, no_row=True, uses_all=True)),
    ],
)
def test_what_a_network_needs_is_found_without_a_trace(model, needs):
    before, x = copy.deepcopy(model.state_dict()), torch.rand(1, 1, 3, 3)
    with torch.no_grad():
        assert probe(model, x) == needs
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        ("wrn_27_4", ["10, 16, 22, 28", "did you mean wrn_28_4?"]),
        ("WRN-27-4", ["10, 16, 22, 28", "did you mean wrn_28_4?"]),
        ("wrn_28_0", ["no such width"]),
        ("WideResNet-28-10", ["did you mean wrn_28_10?"]),
        ("resnet18", ["did you mean preact_resnet18?"]),
        ("quite_other", ["lenet5, wrn28_4", "wrn_D_W", "path/to/file.py:callable"]),
    ],
)
def test_unknown_networks_suggest_the_nearest(network, parts):
    with pytest.raises(UserError, match=network) as error:
        build_model(network, *CIFAR)
    assert all(part in str(error.value) for part in parts)


# --- other programs' state dicts: networks built from the papers, with those programs' names --------------------------


def trained(model):
    """With statistics and weights as after training: no two of them alike."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
    return model.eval()


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NUMBERS = ",".join(map(str, MEAN + STD))


class Behind(nn.Module):
    """A network behind a normalisation of its program's, with its mean and deviation as buffers of these names, or of none."""

    def __init__(self, model, mean=None, std=None):
        super().__init__()
        self.model = trained(model)
        for name, value in zip((mean, std), (MEAN, STD), strict=True):
            if name:
                self.register_buffer(name, torch.tensor(value).reshape(1, 3, 1, 1))

    def forward(self, x):
        mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (MEAN, STD))
        return self.model((x - mean) / std)


def plain(channels, height, width, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


@pytest.mark.parametrize(
    ("network", "theirs", "asked", "said"),
    [
        ("wrn_10_1", lambda: TheirWideResNet(10, 1), "none", "none"),
        ("wrn28_4", TheirStandardised, "image", "image"),
        ("wrn_10_1", lambda: Behind(TheirWideResNet(10, 1)), NUMBERS, NUMBERS),
        ("wrn_10_1", lambda: Behind(TheirWideResNet(10, 1), "mu", "sigma"), None, NUMBERS),
        ("wrn_10_1", lambda: nn.DataParallel(Behind(TheirWideResNet(10, 1), "mean", "std")), None, NUMBERS),
        ("preact_resnet18", TheirPreAct18, "none", "none"),
        ("preact_resnet18_v2", lambda: TheirPreAct18(v2=True), "none", "none"),
        ("preact_resnet18", lambda: Behind(TheirPreAct18(), "new_mean", "new_std"), None, NUMBERS),
        (f"{__name__}:plain", lambda: Behind(plain(*CIFAR), "mu", "std"), None, NUMBERS),
        (f"{__name__}:plain", lambda: Behind(plain(*CIFAR)), NUMBERS, NUMBERS),
        (f"{__name__}:plain", lambda: plain(*CIFAR), None, None),
    ],
)
def test_other_programs_networks_give_their_own_logits(tmp_path, network, theirs, asked, said):
    """From the file and the flag to the network that is attacked, against the module that wrote the file."""
    reference = theirs().eval()
    reference = reference if NUMBERS in (asked, said) else trained(reference)
    torch.save({"state_dict": reference.state_dict()}, tmp_path / "theirs.pt")
    pictures(tmp_path / "data", 1, 1, classes="abcdefghij", size=32)
    flags = ["--model", str(tmp_path / "theirs.pt"), "--dataset", "imagefolder", "--norm", "Linf", "--network", network]
    flags += ["--data_root", str(tmp_path / "data"), *(["--standardise", asked] if asked else [])]
    subject = load_subject(parse_flags(PgdFlags, flags), torch.device("cpu"))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(subject.model(x), reference(x), rtol=1e-4, atol=1e-4)
    assert subject.overrides.get("standardise") == said


def test_keys_that_fit_or_fit_in_no_way_stay():
    own = build_model("wrn_10_1", *CIFAR).state_dict()
    lenet = build_model("lenet5", 1, 8, 8, 3).state_dict()
    for weights, wanted in ((own, own), (lenet, own), (lenet, lenet)):
        found = our_keys(weights, wanted)
        assert list(found.weights) == list(weights) and not found.renamed


@pytest.mark.parametrize(
    "prefixes",
    ["module.", "_orig_mod.module.", "model.", "model.module.", "net.", "attacker.model.", "module.network.", "1."],
)
def test_prefixes_are_taken_off_where_the_network_asked_for_lacks_them(prefixes):
    """What a network's own parameters are called stays; of what is taken off, nothing need be said."""
    plain = nn.Linear(3, 2).state_dict()
    wrapped = {prefixes + key: value for key, value in plain.items()}
    found = our_keys(wrapped, plain)
    assert list(found.weights) == list(plain) and found.weights["bias"] is plain["bias"] and not found.renamed
    assert list(our_keys(wrapped, wrapped).weights) == list(wrapped)
    deeper = {f"module.{key}": value for key, value in wrapped.items()}
    assert list(our_keys(deeper, wrapped).weights) == list(wrapped)


def test_state_dicts_of_others_in_wrappers():
    """Of TRADES, which many of RobustBench's are; of an old torch; of the robustness package, with its network twice."""
    theirs = trained(TheirWideResNet(10, 1)).state_dict()
    sub = {key.replace("block1.", "sub_block1."): value for key, value in theirs.items() if key.startswith("block1.")}
    old = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    twice = {f"module.{side}model.{key}": value for side in ("", "attacker.") for key, value in theirs.items()}
    ours = build_model("wrn_10_1", *CIFAR)
    for file in ({f"model.{key}": value for key, value in (theirs | sub).items()}, old, twice):
        found = our_keys(file, ours.state_dict())
        ours.load_state_dict(found.weights)
        assert found.renamed
        for key, value in our_keys(theirs, ours.state_dict()).weights.items():
            assert key.endswith("num_batches_tracked") or torch.equal(found.weights[key], value)


def test_a_networks_own_normalisation_is_no_other_programs():
    """Buffers of these names that the network asked for has are its own."""
    own = Behind(nn.Linear(3, 2), "mean", "std").state_dict()
    found = our_keys({f"module.{key}": value for key, value in own.items()}, own)
    assert list(found.weights) == list(own) and not found.normalisation


def test_a_foreign_checkpoint_on_the_command_line(tmp_path, capsys):
    """Digits have one channel: their WideResNet with another stem, attacked and taken as a start."""
    torch.manual_seed(0)
    state, file = TheirWideResNet(10, 1, channels=1).state_dict(), tmp_path / "theirs.pt"
    torch.save(state, file)
    named = ["--network", "wrn_10_1"]
    digits = ["--dataset", "digits", "--norm", "Linf", "--eps", "0.1"]
    attack = [*ATTACK, "--model", str(file), *digits]
    fails(capsys, evaluate_on_pgd_attacks.main, [*attack, *named], "--standardise none")
    for how, wrong in (
        ("", "--standardise: is empty"),
        ("0.3;0.4", "as 0.13,0.31"),
        ("0.5,0.5,0.5", "3 numbers for images of 1 channel"),
        ("127,64", "255"),
    ):
        fails(capsys, evaluate_on_pgd_attacks.main, [*attack, *named, "--standardise", how], wrong)
    plain = ["--standardise", "NONE"]
    assert evaluate_on_pgd_attacks.main([*attack, *named, *plain]) == 0
    assert "standardise: none" in capsys.readouterr().out
    rows = json.loads((tmp_path / "eval_pgd_Linf.json").read_text())["results"]
    assert [row["settings"]["overrides"]["standardise"] for row in rows] == ["none"]
    assert evaluate_on_pgd_attacks.main([*attack, *named, "--standardise", "image"]) == 0
    assert "already done" not in capsys.readouterr().out, "another function of the same file"
    fails(capsys, evaluate_on_pgd_attacks.main, [*attack, "--network", "preact_resnet18"], "of another network")
    start = ["--pretrained", str(file), "--max_steps", "1", "--savepath", str(tmp_path / "run")]
    assert train.main([*SMALL, *start, *named]) == 0
    assert "each image is standardised before them" in "".join(capsys.readouterr())
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()} | {"module.mu": torch.ones(3, 2)}}, file
    )
    fails(capsys, evaluate_on_pgd_attacks.main, [*attack, *named], "in mu in a form not known here")
    torch.save({"state_dict": state, "best_acc": 99.0}, file)
    assert evaluate_on_pgd_attacks.main([*attack, *named, *plain, "--overwrite"]) == 0
    assert "sanity check failed: clean accuracy as the file says" in capsys.readouterr().out


def test_a_network_file_is_the_same_from_wherever_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from torch import nn\n\ndef net(channels, height, width, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    Path("mine.py").write_text(code)
    torch.save({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, "weights.pt")
    flags = {"model": "weights.pt", "dataset": "digits", "norm": "Linf"}
    here, there = (
        load_subject(EvaluationFlags(network=f"{folder}mine.py:net", **flags), torch.device("cpu")).overrides
        for folder in ("", f"{tmp_path}/")
    )
    assert here == there and here["network"].startswith("mine.py:net, sha256 ")
