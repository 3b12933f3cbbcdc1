"""Minimum-norm attacks on networks whose distances are known: linear ones, and ones that no attack can break."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate_on_minimum_norm
from command_lines import fails, found_in
from config import PRESETS
from evaluate_on_minimum_norm import MinimumNormFlags
from evaluations.flags import parse_flags
from evaluations.minimum_norm import (
    ATTACKS,
    best_known,
    confirmed,
    figures_of,
    local_optimality,
    settings_of,
    shortest_distances,
)
from evaluations.results import accuracy_of, wilson
from evaluations.subject import load_subject
from linear import CPU, Linear
from loading.datasets import load_test
from records import checkpoint

CLASSES, SIDE, COUNT = 3, 8, 24


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
        model.linear.bias.copy_(-0.5 * model.linear.weight.sum(1))
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


CLOSE = [  # steps, and how far above the closed form a distance may lie
    ("L2", "cw", 60, 0.02),
    ("L2", "ddn", 100, 0.03),
    ("L2", "fmn", 211, 0.01),
    ("Linf", "fmn", 131, 0.02),
    ("Linf", "apgd", 330, 0.01),
    ("Linf", "apgdt", 601, 0.01),
    *((norm, attack, 160, 0.006) for norm in ("L2", "Linf") for attack in ("anpgd", "anpgd_projected")),
]


@pytest.mark.parametrize(("norm", "attack", "steps", "above"), CLOSE)
def test_distances_equal_the_closed_form(here, norm, attack, steps, above, capsys):
    assert evaluate(here / norm, "--attacks", attack, "--steps", steps) == 0
    out, found, exact = capsys.readouterr().out, found_in(here / norm, attack, norm)[-1], closed_form(here / norm, norm)
    distances = torch.tensor(found["distances"], dtype=torch.float64)
    assert found["n"] == 24 and found["not_found"] == 0 and (exact == 0).sum() == 3
    assert torch.equal(distances == 0, exact == 0), "misclassified, and only these: distance 0"
    right = exact > 0
    assert (distances[right] >= exact[right] * (1 - 1e-4)).all()
    assert (distances[right] <= exact[right] * (1 + above)).all(), (distances[right] / exact[right]).max()
    assert found["clean_acc"] == 21 / 24 and 0 < found["passes"] <= steps * (9 if attack == "cw" else 1)
    assert found["mean"] == pytest.approx(distances.mean().item())
    assert found["quartiles"] == pytest.approx(np.quantile(distances, [0.25, 0.5, 0.75]))
    assert f"{found['mean']:.4f}" in out and f"{found['quartiles'][1]:.4f}" in out
    assert found["local_optimality"] == {"value": 1.0, "best_of": [attack]}
    assert not list((here / norm).glob("partial_*"))


@pytest.mark.parametrize("budget", [151, 200])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_every_attack_keeps_the_budget(here, norm, budget):
    """And says what it used: all but the one pass that confirms each answer."""
    subject, rows = load_subject(parse_flags(MinimumNormFlags, argv_of(norm)), CPU), torch.arange(0, 24, 3)
    images = []  # that went through the network, by pass
    subject.model.register_forward_pre_hook(lambda model, given: images.append(len(given[0])))
    logits = subject.model(subject.test.everything().x)
    for attack in [attack for attack in ATTACKS[norm] if attack != "cw"]:
        images.clear()
        settings = settings_of(attack, norm, budget, CLASSES)
        _, passes = shortest_distances(subject, attack, settings, rows, logits, seed=0)
        assert sum(images) - passes == (2 if attack == "fmn" else 1) * len(rows)
        assert 0.7 * budget <= passes / len(rows) <= budget


def test_local_optimality():
    """By hand: areas up to 3 of 4 images, one of them wrong already; A* = 6/4, and 9/4 of what finds nothing."""
    best = torch.tensor([0.0, 1, 2, 3])
    assert local_optimality(torch.tensor([0.0, 1, 3, math.inf]), best) == pytest.approx(1 - (7 - 6) / (9 - 6))
    assert local_optimality(best, best) == 1 and local_optimality(best.where(best == 0, math.inf), best) == 0
    unknown = torch.tensor([0.0, 1, 2, math.inf])  # cut where the farthest known one lies
    assert local_optimality(torch.tensor([0.0, 1.5, 2, 9]), unknown) == pytest.approx(1 - 0.5 / (6 - 5))
    for nothing in ([0.0, math.inf], [2.0, 2.0]):
        assert local_optimality(torch.tensor(nothing), torch.tensor(nothing)) is None


def test_the_curve_is_a_count(here, capsys):
    """Of each image the nearest that any attack found; one at a fixed eps counts as found there."""
    assert evaluate(here / "L2", "--attacks", "anpgd", "--steps", 60, "--curve") == 0
    assert "curve_L2.csv" in capsys.readouterr().out
    subject = load_subject(parse_flags(MinimumNormFlags, argv_of("L2")), CPU)
    distances = found_in(here / "L2", "anpgd", "L2")[-1]["distances"]
    figures = {"clean_acc": 1, "clean_ci95": [0.8, 1], **accuracy_of("1" * 12 + "0" * 12)}
    subject.add_rows("pgd", [subject.row(0, {}, eps=0.1, **figures)])
    nearer = distances[:12] + [min(d, 0.1) for d in distances[12:]]
    for known in (distances, nearer):
        assert sum(a != b for a, b in zip(distances, nearer, strict=True)) >= 5
        eps, accuracy, low, high = np.loadtxt(here / "L2" / "curve_L2.csv", delimiter=",", skiprows=1).T
        for radius in [*known, *np.linspace(0, 1, 30)]:
            place = np.searchsorted(eps, radius, side="right") - 1
            standing = sum(d > radius for d in known)
            assert accuracy[place] == standing / 24 and [low[place], high[place]] == wilson(standing, 24)
        assert evaluate(here / "L2", "--attacks", "anpgd", "--steps", 60, "--curve") == 0


def test_what_no_attack_breaks_is_counted_and_has_no_distance(here, capsys):
    """Also not Carlini-Wagner, for which foolbox then gives a black image, here indeed of another class."""
    for norm in ("L2", "Linf"):
        folder = here / f"black-{norm}"
        if norm == "L2":
            assert evaluate(folder, "--steps", 5, "--attacks", "cw", network="AllButBlack") == 0
        others = ",".join(set(ATTACKS[norm]) - {"cw"})
        assert evaluate(folder, "--steps", 160, "--attacks", others, network="AllButBlack") == 0
        zeros = load_test("imagefolder", "pictures", test_size=None, device=CPU).split.labels == 0
        for attack in ATTACKS[norm]:
            found = found_in(folder, attack, norm)[-1]
            assert found["distances"] == [None if zero else 0.0 for zero in zeros]
            assert found["not_found"] == zeros.sum() and found["mean"] is None and found["mean_of_found"] == 0
            assert found["quartiles"][0] == 0 and found["quartiles"][2] is None
            assert found["local_optimality"]["value"] is None
        assert "not found" in capsys.readouterr().out


def test_the_best_known_distance_counts_what_lies_beside_the_model(here, capsys):
    assert evaluate(here / "L2", "--attacks", "ddn", "--steps", 60) == 0
    assert evaluate(here / "L2", "--attacks", "fmn", "--steps", 15) == 0
    fmn, ddn = (found_in(here / "L2", attack, "L2")[-1] for attack in ("fmn", "ddn"))
    assert fmn["local_optimality"]["best_of"] == ["ddn", "fmn"] and fmn["local_optimality"]["value"] < 1
    subject = load_subject(parse_flags(MinimumNormFlags, argv_of("L2")), CPU)
    nearest = [math.inf if a is None else min(a, b) for a, b in zip(fmn["distances"], ddn["distances"], strict=True)]
    best, _ = best_known(subject, {})
    assert best.tolist() == [min(a, b) for a, b in zip(nearest, ddn["distances"], strict=True)]
    before = (here / "L2" / "eval_ddn_L2.json").read_bytes()
    capsys.readouterr()
    assert evaluate(here / "L2", "--attacks", "ddn", "--steps", 60) == 0
    out, optimality = capsys.readouterr().out, local_optimality(torch.tensor(ddn["distances"]).double(), best)
    assert "already done" in out and f"{ddn['mean']:.4f}" in out and f"{optimality:.4f}" in out and optimality < 1
    assert (here / "L2" / "eval_ddn_L2.json").read_bytes() == before
    nearer = json.loads(before)
    nearer["results"][0]["mean_of_found"] = nearer["results"][0]["mean"] = 0.001
    for name in ("local_optimality", "passes", "seconds"):  # which an older row lacks
        del nearer["results"][0][name]
    (here / "L2" / "eval_ddn_L2.json").write_text(json.dumps(nearer))
    assert evaluate(here / "L2", "--attacks", "ddn", "--steps", 60, "--overwrite") == 0
    assert "0.0010" in capsys.readouterr().out, "of the row that stays"
    (here / "L2" / "eval_ddn_L2.json").write_bytes(before)
    farther = subject.row(0, {}) | {"distances": (best + 1).tolist()}
    assert torch.equal(best_known(subject, {"ddn": farther})[0], best)


def test_quartiles_beside_what_was_not_found():
    assert figures_of(torch.tensor([math.inf, 1.0, 0.0, math.inf]))["quartiles"] == [0.75, None, None]
    assert figures_of(torch.tensor([0.0, 1.0, 2.0, 3.0, math.inf]))["quartiles"] == [1.0, 2.0, 3.0]


def test_mistakes(here, capsys):
    for argv, *parts in (
        (argv_of("L2", "--attacks", "cw,pgd"), "--attacks", "pgd", "cw,ddn,fmn"),
        (argv_of("Linf", "--attacks", "ddn"), "--attacks ddn", "not under Linf", "--norm"),
        (argv_of("L2", "--attacks", "anpgd", "--steps", "20"), "--steps 20", "too few for anpgd", "39"),
        (["--model", "L2", "--device", "cpu"], f"--network {__name__}:Linear", "if you trust it"),
    ):
        fails(capsys, evaluate_on_minimum_norm.main, argv, *parts)


def test_attacks_that_a_small_budget_does_not_suffice_for_are_left_out(here, capsys):
    """Of those that are not named; where it suffices for none, the first is refused."""
    assert evaluate(here / "Linf", "--steps", 50, "--test_size", 4) == 0
    assert "left out: --steps 50: too few for apgdt: give 151 or more" in capsys.readouterr().out
    assert not (here / "Linf" / "eval_apgdt_Linf.json").exists() and (here / "Linf" / "eval_fmn_Linf.json").exists()
    fails(capsys, evaluate_on_minimum_norm.main, argv_of("Linf", "--steps", "12"), "too few for fmn: give 13 or more")


def test_how_many_images_by_default(here, capsys, monkeypatch):
    """The paper's 1000, fewer for cw on a CPU; all where there are fewer."""
    monkeypatch.setattr(evaluate_on_minimum_norm, "CW_SIZE_ON_CPU", 6)
    monkeypatch.setattr(evaluate_on_minimum_norm, "PAPER_SIZE", 9)
    for attacks, count in (("cw,ddn", 6), ("fmn", 9)):
        assert evaluate(here / "L2", "--attacks", attacks, "--steps", 15) == 0
        assert f"--test_size not given: {count} images" in capsys.readouterr().out
        assert found_in(here / "L2", attacks.split(",")[-1], "L2")[-1]["n"] == count


def test_an_output_that_is_not_a_number_breaks_an_image_and_an_image_that_is_none_does_not():
    subject = SimpleNamespace(norm="Linf", model=lambda x: torch.stack([x.flatten(1)[:, 0], x.flatten(1)[:, 0] * 0], 1))
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 1] = 0.4, math.nan
    model = subject.model
    subject.model = lambda images: torch.where(images.flatten(1)[:, :1] < 0.45, math.nan, model(images))
    assert confirmed(subject, x, y, x_adv).tolist() == pytest.approx([0.1, math.inf, math.inf])
