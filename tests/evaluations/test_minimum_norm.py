"""Minimum-norm attacks on networks whose distances are known: linear ones, and ones that no attack can break."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate_on_minimum_norm
from check import check_split
from command_lines import fails
from config import PRESETS
from evaluate_on_minimum_norm import MinimumNormFlags
from evaluations.flags import parse_flags
from evaluations.minimum_norm import best_known, summary
from evaluations.subject import load_subject
from loading.datasets import load_test
from records import checkpoint

CLASSES, SIDE, COUNT = 3, 8, 24
CPU = torch.device("cpu")


class Linear(nn.Module):
    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.linear = nn.Linear(channels * height * width, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1) - 0.5)


class AllButBlack(nn.Module):
    """Class 0 for every image but a black one, without a gradient that would show the way."""

    def __init__(self, *_):
        super().__init__()
        self.register_buffer("high", torch.tensor(10.0))

    def forward(self, x):
        zero = (1e4 * x.flatten(1).sum(1)).clamp(max=10)
        return torch.stack([zero, torch.full_like(zero, 5), torch.zeros_like(zero)], dim=1)


def save(folder, model, norm, hinge_maxeps=0.5):
    """A run folder whose model_best.pt holds `model`, named as what lives in this file."""
    folder.mkdir()
    changes = {"hinge_maxeps": hinge_maxeps, "attack_mineps": 0.01, "data_root": "pictures"}
    config = replace(PRESETS["imagefolder", norm], network=f"{__name__}:{type(model).__name__}", **changes)
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": model.state_dict(), "config": config.to_dict()})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`pictures`, grey noise far from the ends of [0, 1], every eighth under a wrong class; linear networks for both norms."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    model = Linear(1, SIDE, SIDE, CLASSES)
    with torch.no_grad():  # equally far apart, so that the class with the nearest logit is the nearest
        model.linear.weight.copy_(8 * torch.linalg.qr(torch.randn(SIDE * SIDE, CLASSES)).Q.T)
    nn.init.zeros_(model.linear.bias)
    pixels = np.random.default_rng(0).integers(70, 186, (1000, SIDE, SIDE), dtype=np.uint8)
    top = model(torch.from_numpy(pixels[:, None]).float() / 255).topk(3)
    clear = (top.values[:, :2] - top.values[:, 1:] > 1).all(1)  # also which other class is nearest
    pixels, predicted = pixels[clear][:COUNT], top.indices[clear][:COUNT, 0].numpy()
    labels = np.where(np.arange(COUNT) % 8 == 7, (predicted + 1) % CLASSES, predicted)
    for label in range(CLASSES):
        folder = root / "pictures" / "test" / f"class{label}"
        folder.mkdir(parents=True)
        for number in np.flatnonzero(labels == label):
            Image.fromarray(pixels[number]).save(folder / f"{number:02}.png")
    for norm in ("L2", "Linf"):
        save(root / norm, model, norm)
        save(root / f"black-{norm}", AllButBlack(), norm)
    return root


@pytest.fixture
def here(place, here):
    """A copy of it, which is the current folder."""
    return shutil.copytree(place, here, dirs_exist_ok=True)


def argv_of(folder, *flags, network="Linear"):
    return ["--model", str(folder), "--device", "cpu", "--network", f"{__name__}:{network}", *map(str, flags)]


def evaluate(folder, *flags, **more):
    return evaluate_on_minimum_norm.main(argv_of(folder, *flags, **more))


def result(folder, attack, norm):
    """The row that was written last, of most steps."""
    return json.loads((folder / f"eval_{attack}_{norm}.json").read_text())["results"][-1]


def closed_form(folder, norm):
    """(N,): the smallest over the other classes of the logits' difference over the dual norm of the weights'."""
    split = load_test("imagefolder", "pictures", test_size=None, device=CPU).split
    model = Linear(1, SIDE, SIDE, CLASSES)
    model.load_state_dict(checkpoint.load(folder / "model_best.pt")["model"])
    x, y, _ = split.everything()
    weight, logits = model.linear.weight.detach().double(), model(x).detach().double()
    apart = torch.linalg.vector_norm(weight[y][:, None] - weight, ord=2 if norm == "L2" else 1, dim=2)
    distance = torch.where(apart > 0, (logits.gather(1, y[:, None]) - logits) / apart, math.inf).amin(1)
    return distance.clamp(min=0)


@pytest.mark.parametrize(
    ("norm", "attack", "steps", "above"),
    [("L2", "cw", 60, 0.02), ("L2", "ddn", 100, 0.03), ("L2", "fmn", 100, 0.01), ("Linf", "fmn", 60, 0.02)],
)
def test_distances_equal_the_closed_form_and_stand_beside_the_trainings_check(here, norm, attack, steps, above, capsys):
    assert evaluate(here / norm, "--attacks", attack, "--steps", steps) == 0
    out, found, exact = capsys.readouterr().out, result(here / norm, attack, norm), closed_form(here / norm, norm)
    distances = torch.tensor(found["distances"], dtype=torch.float64)
    assert found["n"] == 24 and found["not_found"] == 0 and (exact == 0).sum() == 3
    assert torch.equal(distances == 0, exact == 0), "misclassified, and only these: distance 0"
    right = exact > 0
    assert (distances[right] >= exact[right] * (1 - 1e-4)).all()
    assert (distances[right] <= exact[right] * (1 + above)).all(), (distances[right] / exact[right]).max()
    assert found["clean_acc"] == 21 / 24 and found["settings"]["steps"] == steps
    assert found["mean"] == pytest.approx(distances.mean().item())
    assert found["quartiles"] == pytest.approx(np.quantile(distances, [0.25, 0.5, 0.75]))
    assert f"{found['mean']:.4f}" in out and f"{found['quartiles'][1]:.4f}" in out
    assert not list((here / norm).glob("partial_*"))
    subject, anpgd = load_subject(parse_flags(MinimumNormFlags, argv_of(norm)), CPU), found["anpgd"]
    margins = check_split(subject.model, subject.test, subject.training, 1, 0).margins.double()
    assert anpgd["distances"] == margins.tolist() and anpgd["mean"] == pytest.approx(margins.mean().item())
    assert anpgd["ratio"]["n"] == 21 and anpgd["ratio"]["best_of"] == [attack] and anpgd["at_search_end"] == 0
    assert anpgd["ratio"]["mean"] == pytest.approx((margins / distances)[right].mean().item(), rel=1e-6)
    assert 0.98 < anpgd["ratio"]["quartiles"][1] < 1.2


def test_margins_at_the_end_of_the_search_are_no_distances(here):
    model = Linear(1, SIDE, SIDE, CLASSES)
    model.load_state_dict(checkpoint.load(here / "L2" / "model_best.pt")["model"])
    folder = save(here / "short", model, "L2", hinge_maxeps=0.15)
    assert evaluate(folder, "--attacks", "ddn", "--steps", 60) == 0
    exact, column = closed_form(folder, "L2"), result(folder, "ddn", "L2")["anpgd"]
    assert 3 < (exact > 0.1575).sum() <= column["at_search_end"] <= (exact > 0.12).sum() < 18
    assert column["search_end"] == pytest.approx(0.1575) and column["ratio"]["n"] == 21 - column["at_search_end"]


def test_what_no_attack_breaks_is_counted_and_has_no_distance(here, capsys):
    """Also not Carlini-Wagner, for which foolbox then gives a black image, here indeed of another class."""
    for norm, attacks in (("L2", ("cw", "ddn", "fmn")), ("Linf", ("fmn",))):
        folder = here / f"black-{norm}"
        assert evaluate(folder, "--steps", 5, network="AllButBlack") == 0
        zeros = load_test("imagefolder", "pictures", test_size=None, device=CPU).split.labels == 0
        for attack in attacks:
            found = result(folder, attack, norm)
            assert found["distances"] == [None if zero else 0.0 for zero in zeros]
            assert found["not_found"] == zeros.sum() and found["mean"] is None and found["mean_of_found"] == 0
            assert found["quartiles"][0] == 0 and found["quartiles"][2] is None
            assert found["anpgd"]["ratio"]["n"] == 0
        assert "not found" in capsys.readouterr().out


def test_the_best_known_distance_counts_what_lies_beside_the_model(here):
    assert evaluate(here / "L2", "--attacks", "ddn", "--steps", 60) == 0
    assert evaluate(here / "L2", "--attacks", "fmn", "--steps", 2) == 0
    fmn, ddn = (result(here / "L2", attack, "L2") for attack in ("fmn", "ddn"))
    assert fmn["anpgd"]["ratio"]["best_of"] == ["ddn", "fmn"]
    subject = load_subject(parse_flags(MinimumNormFlags, argv_of("L2")), CPU)
    nearest = [math.inf if a is None else min(a, b) for a, b in zip(fmn["distances"], ddn["distances"], strict=True)]
    best, _ = best_known(subject, {})
    assert best.tolist() == [min(a, b) for a, b in zip(nearest, ddn["distances"], strict=True)]
    assert torch.equal(best_known(subject, {"ddn": best + 1})[0], best)


def test_summary():
    assert summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {"mean": 3.0, "quartiles": [2.0, 3.0, 4.0]}
    assert summary([0.0, 1.0, math.inf, math.inf]) == {"mean": None, "quartiles": [0.75, None, None]}
    assert summary([0.0, 1.0, 2.0, 3.0, math.inf])["quartiles"] == [1.0, 2.0, 3.0]
    assert summary([]) == {"mean": None, "quartiles": [None] * 3}


def test_mistakes(here, capsys):
    for argv, *parts in (
        (argv_of("L2", "--attacks", "cw,pgd"), "--attacks", "pgd", "cw,ddn,fmn"),
        (argv_of("Linf", "--attacks", "ddn"), "--attacks ddn", "not under Linf", "--norm L2"),
        (["--model", "L2", "--device", "cpu"], f"--network {__name__}:Linear", "if you trust it"),
    ):
        fails(capsys, evaluate_on_minimum_norm.main, argv, *parts)


def test_what_is_done_is_not_done_again_and_the_rest_stands_beside(here, capsys, monkeypatch):
    argv = ["--attacks", "ddn", "--test_size", 12]
    assert evaluate(here / "L2", *argv, "--steps", 4) == evaluate(here / "L2", *argv, "--steps", 8) == 0
    path = here / "L2" / "eval_ddn_L2.json"
    before = json.loads(path.read_text())
    assert [row["settings"]["steps"] for row in before["results"]] == [4, 8]
    capsys.readouterr()
    assert evaluate(here / "L2", *argv, "--steps", 4) == 0
    assert "already done" in capsys.readouterr().out and json.loads(path.read_text()) == before
    assert evaluate(here / "L2", *argv, "--steps", 4, "--overwrite") == 0
    assert "already done" not in capsys.readouterr().out
    again = json.loads(path.read_text())["results"]
    assert [row["distances"] for row in again] == [row["distances"] for row in before["results"]]
    assert evaluate(here / "L2", "--attacks", "ddn", "--steps", 8) == 0
    many, *_, few = json.loads(path.read_text())["results"]
    assert many["n"] == 24 and many["distances"][:12] != few["distances"], "in an image folder a selection"


def test_how_many_images_by_default(here, capsys, monkeypatch):
    """The paper's 1000, fewer for cw on a CPU; all where there are fewer."""
    monkeypatch.setattr(evaluate_on_minimum_norm, "CW_SIZE_ON_CPU", 6)
    monkeypatch.setattr(evaluate_on_minimum_norm, "PAPER_SIZE", 9)
    for attacks, count in (("cw,ddn", 6), ("fmn", 9)):
        assert evaluate(here / "L2", "--attacks", attacks, "--steps", 2) == 0
        assert f"--test_size not given: {count} images" in capsys.readouterr().out
        assert result(here / "L2", attacks.split(",")[-1], "L2")["n"] == count
    assert evaluate(here / "Linf", "--steps", 2, "--test_size", 12) == 0
    assert result(here / "Linf", "fmn", "Linf")["n"] == 12
