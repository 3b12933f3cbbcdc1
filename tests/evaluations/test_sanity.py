"""The sanity battery: silent about an honest network, loud about each way of fooling an evaluation."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evaluations.accuracy import accuracy_of, as_flags
from evaluations.repeated_pgd import Images, Protocol, Running, clean_attacked, repeated_pgd
from evaluations.results import average_accuracies
from evaluations.sanity import as_json, battery, images_for, lines
from linear_problem import problem
from loading.batches import Split
from losses import cross_entropy
from settings.evaluation import eval_grid

EPS = 0.05


class Subject(SimpleNamespace):
    def result_file(self, attack):
        return self.folder / f"eval_{attack}_{self.norm}.json"


def subject(tmp_path, wrap=lambda model: model, norm="Linf"):
    model, x, y = problem((1, 8, 8), 40, norm)
    images = (x * 255).round().to(torch.uint8)
    x = images.float() / 255
    model = model.float().eval()
    y = model(x).argmax(1)
    test = Split(images, y, torch.arange(40))
    return Subject(model=wrap(model).eval(), norm=norm, test=test, sha256="abc", dataset="mnist", folder=tmp_path)


def attacked(s, eps=EPS):
    images, run = Images(*s.test.everything()), Running(40)
    protocol = Protocol((cross_entropy,), s.norm, eps, eps / 4, 20, seed=0)
    return repeated_pgd(s.model, images, protocol, clean_attacked(s.model, images, run), run)


def failed(found):
    return {name for name, finding in found.items() if finding.ok is False}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_honest_network_passes(norm, tmp_path):
    s = subject(tmp_path, norm=norm)
    state = attacked(s)
    found = battery(s, EPS, state.x_adv, state.robust, 40)
    assert failed(found) == set()
    assert [name for name, finding in found.items() if finding.ok is None] == [
        f"{name} not stronger" for name in ("square", "spsa", "transfer", "autoattack")
    ]
    assert len(lines(found)) == 1 and "0 failed; not run: square" in lines(found)[0]
    json.dumps(as_json(found))


class Softmax(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).softmax(1)


class Noisy(Softmax):
    def forward(self, x):
        return self.model(x) + 1e-3 * torch.randn(len(x), 2)


class Rounded(Softmax):
    """Hides its gradient: the attack goes nowhere, small or large."""

    def forward(self, x):
        return self.model((x * 8).round() / 8)


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (Softmax, {"network"}),
        (Noisy, {"network"}),
        (Rounded, {"gradients", "a huge eps leaves about none"}),
    ],
)
def test_networks_that_fool_an_attack(wrap, names, tmp_path):
    s = subject(tmp_path, wrap)
    state = attacked(s)
    found = battery(s, EPS, state.x_adv, state.robust, 40)
    assert names <= failed(found)
    assert sum(line.startswith("WARNING: sanity check failed") for line in lines(found)) == len(failed(found))


class Deaf(Softmax):
    def forward(self, x):
        return self.model(x.detach())


class Broken(Softmax):
    def forward(self, x):
        return self.model(x) * float("nan")


def test_no_gradient_and_no_numbers(tmp_path):
    honest = subject(tmp_path)
    state = attacked(honest)
    found = battery(subject(tmp_path, Deaf), EPS, state.x_adv, state.robust, 20)
    assert failed(found) == {"gradients"} and "no gradient" in found["gradients"].value
    found = battery(subject(tmp_path, Broken), EPS, state.x_adv, state.robust, 20)
    assert "not finite" in found["network"].value and {"network", "gradients"} <= failed(found)


def test_a_selection_of_an_image_folder_is_not_compared(tmp_path):
    s = subject(tmp_path)
    s.dataset = "imagefolder"
    state = attacked(s)
    row = {"eps": EPS, **accuracy_of("0" * 20)}
    s.result_file("square").write_text(
        json.dumps({"model_sha256": "abc", "dataset": "imagefolder", "n": 20, "results": [row]})
    )
    assert battery(s, EPS, state.x_adv, state.robust, 20)["square not stronger"].ok is None


def test_train_mode_and_images_out_of_bounds(tmp_path):
    s = subject(tmp_path)
    state = attacked(s)
    s.model.train()
    x_adv = state.x_adv.clone()
    x_adv[3, 0, 2, 2] = 1.2
    found = battery(s, EPS, x_adv, state.robust, 20)
    assert {"network", "inputs in [0, 1]", "perturbations within eps"} <= failed(found)


@pytest.mark.parametrize(("theirs", "ok"), [(0, False), (30, True)])
def test_another_attack_beside_the_model_that_is_stronger(theirs, ok, tmp_path):
    s = subject(tmp_path)
    state = attacked(s)
    robust = torch.arange(40) < 30
    row = {"eps": EPS, **accuracy_of(as_flags(torch.arange(40) < theirs))}
    s.result_file("square").write_text(
        json.dumps({"model_sha256": "abc", "dataset": "mnist", "n": 40, "results": [row]})
    )
    s.result_file("spsa").write_text("{")
    s.result_file("autoattack").write_text(
        json.dumps({"model_sha256": "other", "dataset": "mnist", "n": 40, "results": [row]})
    )
    found = battery(s, EPS, state.x_adv, robust, 20)
    assert found["square not stronger"].ok is ok
    assert found["spsa not stronger"].ok is None and found["autoattack not stronger"].ok is None


def test_the_battery_stays_small():
    assert images_for(10_000 * 1000) == 100
    assert images_for(40_000) == 22
    assert images_for(10) == 10


def test_averages_and_grids():
    assert average_accuracies(0.9, [0.6, 0.3]) == pytest.approx({"avg_acc": 0.6, "avg_rob_acc": 0.45})
    assert eval_grid("cifar10", "Linf", 0.1) == pytest.approx([4 * k / 255 for k in range(1, 9)])
    assert eval_grid("mnist", "L2", 6.0) == (1, 2, 3, 4)
    assert eval_grid("digits", "Linf", 0.3) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
