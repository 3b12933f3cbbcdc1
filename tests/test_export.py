"""Networks written in the formats of the field: read back by others' code, and refused in one line where they do not fit."""

import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import vnnlib
import vnnlib.compat
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import hubconf
from command_lines import fails, files
from config import PRESETS
from loading.datasets import load_test
from networks.build import build_model
from records import checkpoint
from records.pretrained import load_pretrained
from report_runs import evaluate, row
from scripts.export import EXTRAS, main, model_info
from support import ROOT
from their_networks import TheirStandardised

RUN = "digits-Linf-MMA-0.3-sd0"


def test_vnnlib_properties_are_read_by_its_package_and_hold_the_margin(tmp_path, capsys):
    """At 0.9 of the margin: a box around the image that the image lies in; beyond it the attack's image is one answer."""
    out = tmp_path / "verify"
    assert main([RUN, "--to", "vnnlib", "--out", str(out), "--images", "4", "--share", "1.001"]) == 0
    session = importlib.import_module("onnxruntime").InferenceSession(out / "network.onnx")
    x, y, _ = load_test("digits", "data", test_size=4, device=torch.device("cpu")).split.everything()
    network = hubconf.mma(RUN)
    found = hubconf.margins("Linf", network.config["hinge_maxeps"] * 1.05)(network, x, y)
    instances = (out / "instances.csv").read_text().splitlines()
    assert len(instances) == int(found.found.sum()) >= 2
    for line in instances:
        model, name, _ = line.split(",")
        row = int(name[6:11])
        (case,) = vnnlib.compat.transform(vnnlib.parse_query_file(str(out / name)))
        low, high = torch.tensor(case.input_box, dtype=torch.float64).T
        image, nearest = x[row].flatten().double(), found.x_adv[row].flatten().double()
        assert model == "network.onnx" and (low <= image + 1e-7).all() and (image <= high + 1e-7).all()
        assert float((high - low).max()) == pytest.approx(2 * 1.001 * float(found.eps[row]), rel=1e-4)
        assert (low <= nearest + 1e-6).all() and (nearest <= high + 1e-6).all()
        logits = session.run(["logits"], {"images": found.x_adv[row][None].numpy()})[0][0]
        broken = [(np.array(p.coeff_matrix) @ logits <= np.array(p.rhs) + 1e-5).all() for p in case.output_constraints]
        assert len(broken) == 9 and any(broken)
    fails(capsys, main, [RUN, "--to", "vnnlib", "--out", str(out)], "there already")
    of_l2 = ["mnist-L2-MMA-2.0-sd0-fast", "--to", "vnnlib", "--out", str(tmp_path / "l2")]
    fails(capsys, main, of_l2, "trained under L2")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run folder of WRN-28-4, untrained but for BatchNorm's statistics: (folder, network, sha256)."""
    folder = tmp_path_factory.mktemp("runs") / "cifar10-Linf-MMA-32-sd0"
    folder.mkdir()
    torch.manual_seed(0)
    network = build_model("wrn28_4", 3, 32, 32, 10)
    network.train()(torch.rand(8, 3, 32, 32))
    config = PRESETS["cifar10", "Linf"].to_dict() | {"hinge_maxeps": 32 / 255, "method": "mma"}
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": network.state_dict(), "config": config})
    (folder / "config.json").write_text(json.dumps(config))
    return folder, network.eval(), checkpoint.load_model_file(str(folder)).sha256


def test_robustbenchs_layout_takes_it(wide, tmp_path):
    folder, network, _ = wide
    assert main([str(folder), "--to", "robustbench", "--out", str(tmp_path / "net")]) == 0
    assert json.loads((tmp_path / "net.json").read_text())["architecture"] == "WideResNet-28-4"
    theirs = TheirStandardised()
    theirs.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))  # strict
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(x), network(x), atol=1e-5)


STANDARD = {"standard": True}
PGD8 = {"eps": 8 / 255, "accuracy": 0.47, "n": 100}
WEAKER = {"eps": 8 / 255, "accuracy": 0.8, "n": 10}


@pytest.mark.parametrize(
    ("pgd", "autoattack", "figures"),
    [
        ([PGD8 | {"eps": 4 / 255}], [], {}),
        ([PGD8], [PGD8 | {"settings": {"standard": False}}], {"clean_acc": "98.00", "reported": "47.00"}),
        (
            [PGD8],
            [WEAKER | {"eps": 0.03137255, "settings": STANDARD}],
            {"reported": "47.00", "autoattack_acc": "80.00"},
        ),
        ([PGD8, PGD8 | {"accuracy": 0.9, "n": 900, "split": "val"}, WEAKER], [], {"reported": "47.00"}),
    ],
    ids=["another radius", "not standard", "both", "validation images, fewer images"],
)
def test_model_info_says_what_was_evaluated_and_no_more(pgd, autoattack, figures, wide):
    folder, _, sha256 = wide
    evaluate(folder, "pgd", [row(**one) for one in pgd], sha256=sha256)
    evaluate(folder, "autoattack", [row(**one) for one in autoattack], sha256=sha256)
    info = model_info(load_pretrained(str(folder)))
    assert info | figures == info and info["eps"] == "8/255"
    assert {"reported", "autoattack_acc"} & info.keys() == {"reported", "autoattack_acc"} & figures.keys()
    assert ("100 test images" in info["footnote"]) if figures else "footnote" not in info
    evaluate(folder, "pgd", [row(**one) for one in pgd])  # of another checkpoint
    assert "reported" not in model_info(load_pretrained(str(folder)))


@pytest.mark.parametrize(
    ("run", "shape", "half"),
    [
        (RUN, (1, 8, 8), False),
        ("mnist-L2-MMA-2.0-sd0-fast", (1, 28, 28), True),
        ("cifar10jpeg-Linf-MMA-20-sd0-fast", (3, 32, 32), True),
    ],
)
def test_a_folder_to_upload_is_used_without_our_code(run, shape, half, tmp_path, capsys):
    """Its card's lines are run where nothing of ours can be imported; in float16 if the weights were rounded to it."""
    out = tmp_path / "up"
    assert main([run, "--to", "folder", "--out", str(out)]) == 0
    card, images = (out / "README.md").read_text(), torch.rand(5, *shape)
    np.save(out / "images.npy", images.numpy())
    lines = re.search(r"Without the code, in this folder:\n\n```python\n(.+?)```", card, re.DOTALL)[1]
    assert len(lines.splitlines()) <= 15
    use = "import numpy\nlogits = model(numpy.load('images.npy'))\n"
    if "nn.Sequential" in lines:
        use = "import numpy, torch\nlogits = model(torch.tensor(numpy.load('images.npy'))).detach().numpy()\n"
    save = "import sys\nnumpy.save('logits.npy', logits)\nassert not {'pgd', 'hubconf', 'networks'} & set(sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", lines + use + save], cwd=out, check=True)
    np.testing.assert_allclose(np.load(out / "logits.npy"), hubconf.mma(run)(images).detach().numpy(), atol=1e-4)
    dtypes = {tensor.dtype for tensor in load_file(out / "model.safetensors").values()}
    assert (torch.float16 in dtypes) == half and dtypes <= {torch.float16, torch.float32, torch.int64}
    head = ModelCard(card).data
    values = {result.metric_name: result.metric_value for result in head.eval_results}
    (stored,) = json.loads((out / f"eval_pgd_{'L2' if '-L2-' in run else 'Linf'}.json").read_text())["results"][-1:]
    named = [value for name, value in values.items() if "white-box PGD" in name]
    assert head.license == "mit" and head.library_name == "pytorch" and round(100 * stored["robust_acc"], 2) in named
    assert any(name.startswith("clean accuracy, ") for name in values)
    assert (head.datasets == ["mnist"]) == ("mnist" in run)
    for path in (out, out / "model.safetensors"):  # whose tensors are in an order of their own
        torch.testing.assert_close(hubconf.mma(str(path))(images), hubconf.mma(run)(images), msg="and by ours")
    fails(capsys, main, [run, "--to", "folder", "--out", str(out)], "there already")


def test_an_ending_is_written_once_and_no_file_twice(wide, capsys, tmp_path):
    folder, _, _ = wide
    out = ["--out", str(tmp_path / "a.b" / "net.pt")]
    argv = [str(folder), "--to", "robustbench", *out]
    assert main(argv) == 0
    before = files(tmp_path / "a.b")
    assert sorted(before) == ["net.json", "net.pt"]
    (tmp_path / "a.b" / "net.pt").unlink()
    fails(capsys, main, argv, "net.json", "there already")
    assert files(tmp_path / "a.b") == {"net.json": before["net.json"]}


def test_somebody_s_own_network_is_told_what_to_do(capsys, tmp_path):
    config = json.loads((ROOT / "trained_models" / RUN / "config.json").read_text()) | {"network": "mine.py:net"}
    checkpoint.save(tmp_path / "model_best.pt", {"model": {"weight": torch.zeros(2, 2)}, "config": config})
    fails(capsys, main, [tmp_path, "--to", "safetensors"], "mine.py:net", "torch.hub.load(", "network=")


def test_what_does_not_fit_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ["--out", str(tmp_path / "net")]
    fails(capsys, main, [RUN, "--to", "robustbench", *out], "--to robustbench", "WRN-28-4")
    fails(capsys, main, ["nobody", "--to", "onnx", *out], "nobody", RUN)
    fails(capsys, main, [RUN, "--to", "safetensors", "--out", "/proc/no/net"], "/proc/no: No such file")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_leaves_no_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for _ in range(2):  # the same again says the same
        with pytest.raises(SystemExit, match="2"):
            main([RUN, "--to", "vnnlib", "--out", str(tmp_path / "out"), "--images", "1"])
        assert capsys.readouterr().err.startswith("error: package onnx: not installed")


@pytest.mark.parametrize(("to", "package"), [("safetensors", "safetensors"), ("onnx", "onnxruntime")])
def test_a_missing_package_is_one_line(to, package, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="2"):
        main([RUN, "--to", to, "--out", str(tmp_path / "net")])
    said = capsys.readouterr().err
    assert said.startswith(f"error: package {package}: not installed") and said.count("\n") == 1
    assert (ROOT / EXTRAS).exists() and said.endswith(f"{EXTRAS}\n") and not list(tmp_path.iterdir())


def test_safetensors_hold_the_weights_and_are_not_kept_if_they_read_back_differently(capsys, tmp_path, monkeypatch):
    argv = [RUN, "--to", "safetensors", "--out", str(tmp_path / "net")]
    assert main(argv) == 0
    stored = torch.load(ROOT / "trained_models" / RUN / "model_best.pt", weights_only=True)["model"]
    found = load_file(tmp_path / "net.safetensors")
    assert found.keys() == stored.keys() and all(torch.equal(found[key], stored[key]) for key in stored)
    (tmp_path / "net.safetensors").unlink()
    changed = {key: 1.01 * tensor for key, tensor in found.items()}
    monkeypatch.setattr("safetensors.torch.load_file", lambda path: changed)
    fails(capsys, main, argv, "read back", "removed")
    assert not list(tmp_path.iterdir())
