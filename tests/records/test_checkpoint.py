"""Checkpoints: round trip, checksum, damage, the reference's format. Hostile pickles: see tests/test_bad_input.py."""

import os
import random
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from errors import UserError
from networks.foreign import our_keys
from networks.lenet import LeNet5Madry
from records import checkpoint
from support import ROOT

CONTENT = {
    "step": 7,
    "margin": float("-inf"),
    "none": None,
    "flag": True,
    "lr": ((0, 0.1), (5, 0.01)),
    "sums": [1.5, 2.0],
    "model": {"w": torch.randn(50, 3), "scalar": torch.tensor(3), "empty": torch.empty(0)},
    "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
}


def same(a, b):
    return checkpoint.digest(a) == checkpoint.digest(b)


def test_round_trip(tmp_path):
    path, previous = tmp_path / "last.pt", tmp_path / "last.prev.pt"
    checkpoint.save(path, CONTENT, previous=previous)
    loaded = checkpoint.load(path)
    assert same(loaded, CONTENT) and torch.equal(loaded["model"]["w"], CONTENT["model"]["w"])
    checkpoint.save(path, {**CONTENT, "step": 8}, previous=previous)
    assert checkpoint.load(path)["step"] == 8 and checkpoint.load(previous)["step"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.prev.pt", "last.pt"]


def test_digest_sees_every_change():
    changes = [
        {"step": 8},
        {"margin": 0.0},
        {"flag": 1},
        {"lr": ((0, 0.1), (5, 0.02))},
        {"model": {**CONTENT["model"], "w": CONTENT["model"]["w"] * 1.0000001}},
    ]
    digests = {checkpoint.digest({**CONTENT, **change}) for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1
    w = torch.randn(2, 3, 4, 4)
    assert same(w, w.to(memory_format=torch.channels_last))
    with pytest.raises(TypeError):
        checkpoint.digest({"a": object()})


def test_no_flipped_byte_and_no_truncation_goes_unnoticed(tmp_path):
    """Damage is either refused with one line, or has not touched the content."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, CONTENT)
    good = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for trial in range(200):
        bad = bytearray(good)
        if trial % 2:
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        else:
            del bad[draw.randrange(len(bad)) :]
        path.write_bytes(bad)
        try:
            assert same(checkpoint.load(path), CONTENT)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 120


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "net", "network", "bare", "safetensors"])
def test_usual_containers(tmp_path, name):
    """With what people save beside their weights."""
    model, file = nn.Linear(3, 2), tmp_path / "theirs"
    state, beside = model.state_dict(), {"args": Namespace(lr=0.1), "acc": np.float64(93.5), "epoch": np.int64(3)}
    if name == "safetensors":
        safetensors.torch.save_file(state, file, {"config": "not JSON"})
    elif name == "bare":
        torch.save({**state, "epoch": 3, "acc": 93.5, "n_averaged": torch.tensor(2)}, file)
    else:
        torch.save({name: state, **beside}, file)
    found = checkpoint.load_model_file(str(file))
    assert torch.equal(found.weights["weight"], model.weight) and found.config is None
    assert found.accuracy == (None if name == "safetensors" else pytest.approx(0.935)) and not found.notes


def test_of_several_networks_in_one_file_it_says_which_it_takes(tmp_path):
    state, average = nn.Linear(3, 2).state_dict(), {f"module.{k}": v for k, v in nn.Linear(3, 2).state_dict().items()}
    torch.save(
        {"state_dict_ema": average, "state_dict": state, "optimizer": {"step": torch.zeros(1)}}, tmp_path / "two"
    )
    found = checkpoint.load_model_file(str(tmp_path / "two"))
    assert torch.equal(found.weights["weight"], state["weight"])
    assert "several networks, state_dict_ema, state_dict: state_dict is taken" in found.notes[0]


class Settings:
    """Anyone's class."""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: model, "holds a whole network, a torch.nn.modules.linear.Linear"),
        (lambda model: {"net": model, "epoch": 3}, "there is net, epoch"),
        (lambda model: {"net": model.state_dict(), "args": Settings()}, "there is net, args"),
        (lambda model: {"ema": model.state_dict(), "epoch": 3}, "ema could be"),
        (lambda model: [3, model.state_dict()], "holds a list, not a dict"),
        (lambda model: {key: value.numpy() for key, value in model.state_dict().items()}, "it asks to run code"),
    ],
)
def test_a_refusal_names_the_line_that_converts_the_file(tmp_path, monkeypatch, make, said, legacy):
    """The line is run: what it writes is read."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    torch.save(make(model), "theirs.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=said) as error:
        checkpoint.load_model_file("theirs.pt")
    exec(re.search(r"torch\.save\(.*", str(error.value))[0], {"torch": torch})
    assert torch.equal(checkpoint.load_model_file("weights.pt").weights["bias"], model.bias)


def test_torchscript_and_files_without_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 2)
    torch.jit.script(model).save("script.pt")
    with pytest.raises(UserError, match="is TorchScript") as error:
        checkpoint.load_model_file("script.pt")
    exec(re.search(r"torch\.save\(.*", str(error.value))[0], {"torch": torch})
    assert torch.equal(checkpoint.load_model_file("weights.pt").weights["bias"], model.bias)
    torch.save({"epoch": 3, "lr": 0.1}, "none.pt")
    with pytest.raises(UserError, match="no weights in it, there is epoch, lr"):
        checkpoint.load_model_file("none.pt")
    safetensors.torch.save_file(model.state_dict(), "damaged.safetensors")
    Path("damaged.safetensors").write_bytes(Path("damaged.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged safetensors"):
        checkpoint.load_model_file("damaged.safetensors")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04", "README.md", "docs/idea.png"])
def test_other_files_are_refused_and_not_said_to_run_code(tmp_path, content):
    path = ROOT / content if isinstance(content, str) else tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"truncated, damaged, or another kind of file") as error:
        checkpoint.load(path)
    assert str(path) in str(error.value) and "code" not in str(error.value)
    for name in ("absent.pt", "."):
        with pytest.raises(UserError, match="cannot be read"):
            checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_references_files(tmp_path, legacy):
    """`{"epoch", "model"}` as torch 1.0 wrote it, with DataParallel's keys; a folder or a file."""
    model, path = LeNet5Madry(), tmp_path / "model_best.pt"
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "model": state}, path, _use_new_zipfile_serialization=not legacy)
    for name in (path, tmp_path):
        file = checkpoint.load_model_file(str(name))
        assert file.config is None and file.path == path
        other = LeNet5Madry()
        checkpoint.load_weights(other, our_keys(file.weights, other.state_dict()).weights, path)
        assert torch.equal(other.linear2.bias, model.linear2.bias)


def test_settings_of_another_program_are_not_taken_for_a_runs(tmp_path):
    theirs = {"dataset": "digits", "norm": "Linf", "network": "mlp", "lr": 0.1}
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "config": theirs}, tmp_path / "theirs.pt")
    assert checkpoint.load_model_file(str(tmp_path / "theirs.pt")).config is None


def test_weights_of_another_network_are_named(tmp_path):
    with pytest.raises(UserError, match=r"linear2\.weight is 7x1024 there, 10x1024"):
        checkpoint.load_weights(LeNet5Madry(), LeNet5Madry(num_classes=7).state_dict(), tmp_path)
    with pytest.raises(UserError, match=r"other\.weight is a number, whole there, absent in"):
        checkpoint.load_weights(LeNet5Madry(), {"other.weight": torch.tensor(1)}, tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, CONTENT)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {**CONTENT, "step": 9}, previous=tmp_path / "last.prev.pt")
    assert checkpoint.load(path)["step"] == 7
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_its_network_says_how_to_make_it():
    """As those whose settings and figures are committed, but not their weights."""
    with pytest.raises(UserError, match=r"train\.py --config \S*STD-sd0-fast/config\.json --savepath runs/mnist"):
        checkpoint.load_model_file(str(ROOT / "trained_models" / "mnist-Linf-STD-sd0-fast"))


def test_our_own_file_names_the_accuracy_of_its_check(tmp_path):
    """Which the sanity checks of an evaluation compare with theirs."""
    config = {"dataset": "digits", "norm": "Linf", "network": "lenet5"}
    for checks, said in (
        ({"val": {"clean_acc": 0.9}, "test": {"clean_acc": 0.8}}, 0.8),
        ({"val": {"clean_acc": 0.9}}, 0.9),
        ({"test": {"clean_acc": "93 %"}, "val": {"clean_acc": 93.0}}, None),
        ({}, None),
    ):
        content = {"model": nn.Linear(3, 2).state_dict(), "config": config, "metrics": checks}
        checkpoint.save(tmp_path / "model_best.pt", content)
        assert checkpoint.load_model_file(str(tmp_path / "model_best.pt")).accuracy == said
