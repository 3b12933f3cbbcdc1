"""Trained networks, margins and MMA in people's own code: whichever `utils` was imported first, and whoever pickles."""

import copy
import json
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from operator import methodcaller

import pytest
import torch

import hubconf
from support import ROOT

RUN = "digits-Linf-MMA-0.3-sd0"
TAKEN = ("config", "utils", "errors", "losses")

with hubconf._ours.in_place():  # as the hub sees it
    from records import pretrained

HEAD = f"""
import copy, sys, torch
ROOT, RUN = {str(ROOT)!r}, {RUN!r}
x = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
def load(entry, **settings):
    return torch.hub.load(ROOT, entry, source="local", **settings)
def mine_alone():
    import config, errors, losses, utils
    assert all(module.MINE for module in (config, errors, losses, utils))
    assert not [name for name in sys.modules if getattr(sys.modules[name], "__file__", None)
                and sys.modules[name].__file__.startswith(ROOT + "/") and "/.venv/" not in sys.modules[name].__file__
                and not name.startswith("_mma_networks")]
    assert ROOT not in sys.path
"""
LOAD = """
network = load("mma", name=RUN)
mine_alone()
torch.save({"network": copy.deepcopy(network), "logits": network(x)}, "network.pt")
objective = load("mma_objective", count=2, norm="Linf", d_max=0.3, eps_min=0.05)
margins = load("margins", norm="Linf", max_eps=0.3, steps=5)
robust_accuracy = load("robust_accuracy", norm="Linf", eps=0.1, steps=5, restarts=1)
ensemble = load("robust_accuracy", norm="Linf", eps=0.9, attack="autoattack")  # the first attack ends it
mine_alone()
y = network(x).argmax(1)
assert objective(network, x, y, torch.arange(2)).eps.shape == margins(network, x, y).eps.shape == (2,)
assert robust_accuracy(network, x, y).flags.shape == ensemble(network, x, y).flags.shape == (2,)
mine_alone()
"""
AGAIN = """
load("mma", name=RUN)
saved = torch.load("network.pt", weights_only=False)
assert torch.equal(saved["network"](x), saved["logits"]) and saved["network"].config["hinge_maxeps"] == 0.3
mine_alone()
"""


def test_a_run_here_comes_before_a_committed_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "mnist-L2-MMA-2.0-sd0-fast"
    assert hubconf.mma(name).config["dataset"] == "mnist"
    shutil.copytree(ROOT / "trained_models" / RUN, name)
    assert hubconf.mma(name).config["dataset"] == "digits"


def test_second_derivatives_functions_and_threads():
    """Of a network with frozen parameters, whose first convolution has a gradient of its own."""
    with ThreadPoolExecutor(4) as pool:
        network, *alike = pool.map(hubconf.mma, [RUN] * 4)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for one in alike:
        assert torch.equal(one(x), network(x))
    x, network = x.double(), network.double()
    plain = copy.deepcopy(network)  # its parameters ask for gradients: torch's own convolution
    network.requires_grad_(False)
    want, found = (torch.autograd.functional.hvp(lambda z, m=m: m(z).square().sum(), x, x)[1] for m in (plain, network))
    torch.testing.assert_close(found, want)

    def loss(model, image):
        return model(image[None])[0].logsumexp(0)

    each = torch.vmap(torch.func.grad(partial(loss, network)))(x)
    for image, gradient in zip(x, each, strict=True):
        (own,) = torch.autograd.grad(loss(plain, image.requires_grad_()), image)
        torch.testing.assert_close(gradient, own)


def test_their_modules_are_left_alone_in_either_order_and_networks_are_pickled(tmp_path):
    """In somebody's project, whose files have the names of ours; each in a process of its own."""
    for name in TAKEN:
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    for code in (LOAD, "import config, errors, losses, utils\n" + LOAD, AGAIN):
        argv = [sys.executable, "-c", HEAD + code]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_network_is_ready_to_use():
    network = hubconf.load_pretrained(RUN)
    assert not network.training and network.config["norm"] == "Linf"
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert copy.deepcopy(network).config == network.config
    assert type(network).__module__ == "_mma_networks.lenet"
    by_path = hubconf.load_pretrained(str(ROOT / "trained_models" / RUN))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), by_path.parameters(), strict=True))


@pytest.mark.slow
def test_a_spawned_process_is_given_a_network():
    """And reads it, though it has loaded none."""
    network, x = hubconf.load_pretrained(RUN).requires_grad_(False), torch.rand(3, 1, 8, 8)
    network.linear2.bias += 1  # what it is now, not what its file says
    with ProcessPoolExecutor(1, get_context("spawn")) as one:
        found = one.submit(methodcaller("forward", x), network).result()
        assert torch.equal(found, network(x))


def test_unknown_names_are_answered_with_those_there_are(tmp_path):
    for name in ("digits-Linf-MMA-0.4-sd0", "", "x" * 5000, "a\0b", str(tmp_path / "gone")):
        with pytest.raises(ValueError, match=RUN):
            hubconf.load_pretrained(name)
    for name in ("digits-Linf-STD-sd0", str(tmp_path)):
        with pytest.raises(ValueError, match="holds no model_best"):
            hubconf.load_pretrained(name)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Committed networks that a test may change."""
    shutil.copytree(ROOT / "trained_models" / RUN, tmp_path / "trained_models" / RUN)
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    monkeypatch.setattr(pretrained, "SUMS", tmp_path / "trained_models" / "SHA256SUMS")
    shutil.copy(ROOT / "trained_models" / "SHA256SUMS", pretrained.SUMS)
    return tmp_path / "trained_models" / RUN


def test_changed_weights_are_refused(clone, tmp_path):
    hubconf.load_pretrained(RUN)
    shutil.copytree(clone, tmp_path / "mine")
    file = torch.load(clone / "model_best.pt", weights_only=True)
    del file["checksum"]  # a whole, sound checkpoint, of other weights
    file["model"]["linear2.bias"] += 1e-3
    torch.save(file, clone / "model_best.pt")
    with pytest.raises(ValueError, match=r"sha256 is .*SHA256SUMS says .*git checkout"):
        hubconf.load_pretrained(RUN)
    pretrained.SUMS.write_text(pretrained.SUMS.read_text().replace(f"  {RUN}", f" {RUN}"))
    with pytest.raises(ValueError, match=r"SHA256SUMS: line \d+ is damaged: restore"):
        hubconf.load_pretrained(RUN)
    raw = bytearray((tmp_path / "mine" / "model_best.pt").read_bytes())  # not committed, its own checksum is in it
    raw[len(raw) // 2] ^= 1
    (tmp_path / "mine" / "model_best.pt").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        hubconf.load_pretrained(str(tmp_path / "mine"))


def test_a_network_of_ones_own_is_given_the_weights(tmp_path):
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    config = json.loads((ROOT / "trained_models" / RUN / "config.json").read_text()) | {"network": "mine:net"}
    torch.save({"model": own.state_dict(), "config": config}, tmp_path / "model_best.pt")
    with pytest.raises(ValueError, match="network="):
        hubconf.load_pretrained(str(tmp_path))
    given = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    assert hubconf.load_pretrained(str(tmp_path), given) is given
    assert torch.equal(given[1].weight, own[1].weight)
