"""The sanity battery: silent about an honest network, loud about each way of fooling an evaluation."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evaluate_on_pgd_attacks
from evaluations import white_box_attack
from evaluations.accuracy import accuracy_of
from evaluations.flags import eval_grid
from evaluations.others import not_stronger, overestimates
from evaluations.repeated_pgd import Attacked, Images, Protocol, Running, clean_attacked, repeated_pgd
from evaluations.results import Head, checkpoint_rows
from evaluations.rows import average_accuracies
from evaluations.sanity import as_json, battery, lines, pgd_battery
from hardware.fast_pgd import FastPgd
from linear_problem import problem
from loading.batches import Split
from loading.datasets import load_test
from losses import cross_entropy, logit_margin
from networks.build import build_model
from pgd import pgd
from records.checkpoint import load_model_file, load_weights
from reports.make_tables import make_page
from support import ROOT

EPS = 0.05


class Subject(SimpleNamespace):
    def result_file(self, attack):
        return self.folder / f"eval_{attack}_{self.norm}.json"

    def rows(self, attack):
        return checkpoint_rows(self.result_file(attack), Head(attack, self.norm, self.sha256, self.dataset))


def subject(tmp_path, wrap=lambda model: model, norm="Linf", count=120):
    model, x, y = problem((1, 8, 8), count, norm)
    images = (x * 255).round().to(torch.uint8)
    x = images.float() / 255
    model = model.float().eval()
    y = model(x).argmax(1)
    test = Split(images, y, torch.arange(count))
    return Subject(
        model=wrap(model).eval(), norm=norm, test=test, sha256="abc", dataset="mnist", folder=tmp_path, split="test"
    )


def evaluated(s, attack=pgd, eps=EPS, steps=20):
    """What an evaluation by this attack says of itself: protocol, how it was run, state."""
    images, run = Images(*s.test.everything()[:2], s.test.numbers), Running(50, attack)
    protocol = Protocol((cross_entropy,), s.norm, eps, eps / 4, steps, seed=0)
    return protocol, run, repeated_pgd(s.model, images, protocol, clean_attacked(s.model, images, run), run)


def failed(found):
    return {name for name, finding in found.items() if finding.ok is False}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_honest_network_passes(norm, tmp_path):
    s = subject(tmp_path, norm=norm)
    found = pgd_battery(s, *evaluated(s))
    assert failed(found) == set()
    assert [name for name, finding in found.items() if finding.ok is None] == [
        f"{name} not stronger" for name in ("square", "spsa", "transfer")
    ]
    assert len(lines(found)) == 1 and "0 failed; not run: square" in lines(found)[0]
    json.dumps(as_json(found))


# --- attacks that are broken ---------------------------------------------------------------------------------------


def nothing(model, x, y, **settings):
    return x.clone()


def at_its_start(model, x, y, **settings):
    return pgd(model, x, y, **{**settings, "steps": 0})


def wrong_sign(model, x, y, *, loss_fn, **settings):
    return pgd(model, x, y, loss_fn=lambda logits, y: -loss_fn(logits, y), **settings)


def short_steps(model, x, y, *, step_size, **settings):
    return pgd(model, x, y, step_size=step_size / 100, **settings)


class StaleGraph:
    """Replays the answer to the first batch."""

    answer = None

    def __call__(self, model, x, y, **settings):
        if self.answer is None:
            self.answer = pgd(model, x, y, **settings)
        return self.answer[: len(x)]


def judged_on_the_clean_images(s, keep):
    """As `evaluated`, but every image that is classified right is called robust; `keep`: whose images are written."""
    protocol, run, state = evaluated(s)
    x, y, _ = s.test.everything()
    return protocol, run, Attacked(state.x_adv if keep else x, logit_margin(s.model(x), y))


BROKEN = {
    "the attack moves the images": lambda s: evaluated(s, nothing),
    "the attack leaves its start": lambda s: evaluated(s, at_its_start),
    "the attack raises its loss": lambda s: evaluated(s, wrong_sign),
    "the attack takes whole steps": lambda s: evaluated(s, short_steps),
    "the attack answers for its own batch": lambda s: evaluated(s, StaleGraph()),
    "judged on the perturbed images": lambda s: judged_on_the_clean_images(s, keep=False),
}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_attack_is_caught_by_name(name, norm, tmp_path):
    s = subject(tmp_path, norm=norm)
    found = pgd_battery(s, *BROKEN[name](s))
    assert name in failed(found)
    assert any(line.startswith(f"WARNING: sanity check failed: {name}: ") for line in lines(found))
    if name in ("the attack moves the images", "judged on the perturbed images"):  # others break a few by luck
        assert "plain PGD breaks no more" in failed(found)


def test_judged_on_clean_images_is_caught_in_what_was_kept_too(tmp_path):
    s = subject(tmp_path)
    found = pgd_battery(s, *judged_on_the_clean_images(s, keep=True))
    assert "judged on the perturbed images" in failed(found)


HONEST = [  # far smaller and larger balls than its own, and a network at its initial weights, right by luck alone
    (True, "Linf", 0.02, "fp32"),
    (True, "Linf", 0.2, "bf16"),
    (True, "L2", 0.5, "bf16"),
    (True, "L2", 1.5, "tf32"),
    (False, "Linf", 0.2, "fp32"),
]


@pytest.mark.parametrize(("trained", "norm", "eps", "precision"), HONEST)
def test_honest_attacks_raise_no_warning(trained, norm, eps, precision, tmp_path):
    s = digits(tmp_path, norm, trained)
    found = pgd_battery(s, *evaluated(s, FastPgd(s.model, precision), eps, steps=10))
    assert failed(found) == set(), {name: found[name].value for name in failed(found)}


@pytest.mark.parametrize("name", ["the attack moves the images", "the attack takes whole steps"])
def test_a_trained_network_and_broken_attacks(name, tmp_path):
    s = digits(tmp_path, "Linf", trained=True)
    assert name in failed(pgd_battery(s, *BROKEN[name](s)))


def digits(tmp_path, norm, trained):
    """The first 150 test images before the network in trained_models/, or before one that is not trained."""
    test, _ = load_test("digits", "none", test_size=150, device=torch.device("cpu"))
    torch.manual_seed(0)
    model = build_model("lenet5", 1, 8, 8, 10).eval().requires_grad_(False)
    if trained:
        file = load_model_file(str(ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"))
        load_weights(model, file.weights, file.path)
    return Subject(model=model, norm=norm, test=test, sha256="abc", dataset="digits", folder=tmp_path, split="test")


def test_a_radius_of_nothing_has_no_checks_of_the_attack(tmp_path):
    s = subject(tmp_path)
    found = pgd_battery(s, *evaluated(s, eps=0.0))
    assert failed(found) == set() and "the attack moves the images" not in found


def test_one_image(tmp_path):
    s = subject(tmp_path, count=1)
    found = pgd_battery(s, *evaluated(s))
    assert failed(found) == set() and found["the attack answers for its own batch"].ok is None


# --- networks that fool an attack ----------------------------------------------------------------------------------


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
    found = pgd_battery(s, *evaluated(s))
    assert names <= failed(found)
    assert sum(line.startswith("WARNING: sanity check failed") for line in lines(found)) == len(failed(found))


class OneClass(Softmax):
    """What adversarial training at too large a radius ends as."""

    def forward(self, x):
        return self.model(x) * 1e-3 + torch.tensor([0.0, 1.0])


def test_a_network_that_always_says_the_same_is_named(tmp_path):
    found = battery(subject(tmp_path, OneClass), EPS, 50)["a huge eps leaves about none"]
    assert found.ok is False and found.value.endswith("; it says class 1 of every image")


class Deaf(Softmax):
    def forward(self, x):
        return self.model(x.detach())


class Broken(Softmax):
    def forward(self, x):
        return self.model(x) * float("nan")


def test_no_gradient_and_no_numbers(tmp_path):
    made = evaluated(subject(tmp_path))
    found = pgd_battery(subject(tmp_path, Deaf), *made)
    assert failed(found) == {"gradients"} and "no gradient" in found["gradients"].value
    found = battery(subject(tmp_path, Broken), EPS, 50)
    assert "not finite" in found["network"].value and {"network", "gradients"} <= failed(found)


class DeafTo(nn.Module):
    """No gradient at the first `count` images."""

    def __init__(self, model, x, count):
        super().__init__()
        self.model, self.images = model, x[:count]

    def forward(self, x):
        hears = torch.tensor([not any(torch.equal(one, image) for image in self.images) for one in x])
        return self.model(torch.where(hears.view(-1, 1, 1, 1), x, x.detach()))


@pytest.mark.parametrize(("count", "ok"), [(4, True), (5, False)])
def test_gradients_at_95_of_100_images_are_too_few(count, ok, tmp_path):
    s = subject(tmp_path)
    s.model = DeafTo(s.model, s.test.everything().x, count).eval()
    assert battery(s, EPS, 50)["gradients"] == (ok, f"{count}.0% zero or not finite")


def test_train_mode_and_images_out_of_bounds(tmp_path):
    s = subject(tmp_path)
    protocol, run, state = evaluated(s)
    s.model.train()
    state.x_adv[3, 0, 2, 2] = 1.2
    found = pgd_battery(s, protocol, run, state)
    assert {"network", "inputs in [0, 1]", "perturbations within eps"} <= failed(found)


# --- other attacks beside the model --------------------------------------------------------------------------------


def write(s, attack, flags, eps=EPS, **more):
    row = {"eps": eps, **accuracy_of(flags)}
    content = {
        "attack": attack,
        "model_sha256": s.sha256,
        "dataset": s.dataset,
        "norm": s.norm,
        "n": len(flags),
        "clean_acc": 1.0,
    }
    s.result_file(attack).write_text(json.dumps({**content, "results": [row], **more}))


@pytest.mark.parametrize(("theirs", "ok"), [(0, False), (30, True)])
def test_another_attack_beside_the_model_that_is_stronger(theirs, ok, tmp_path):
    s = subject(tmp_path, count=40)
    protocol, run, state = evaluated(s)
    state = state._replace(margin=torch.where(torch.arange(40) < 30, -1.0, 1.0))
    write(s, "square", "1" * theirs + "0" * (40 - theirs))
    s.result_file("spsa").write_text("{")
    write(s, "transfer", "0" * 40, model_sha256="other")
    found = pgd_battery(s, protocol, run, state)
    assert found["square not stronger"].ok is ok
    assert found["spsa not stronger"].ok is None and found["transfer not stronger"].ok is None
    assert "autoattack not stronger" not in found  # it is meant to be


def test_a_selection_of_an_image_folder_is_not_compared(tmp_path):
    s = subject(tmp_path, count=40)
    s.dataset = "imagefolder"
    write(s, "square", "0" * 20)
    assert not_stronger(s, "square", EPS, torch.ones(40, dtype=torch.bool)).ok is None
    write(s, "square", "0" * 40)
    assert not_stronger(s, "square", EPS, torch.ones(40, dtype=torch.bool)).ok is False


@pytest.mark.parametrize("order", [("pgd", "autoattack"), ("autoattack", "pgd")])
def test_by_how_much_pgd_overestimates_whichever_came_first(order, tmp_path):
    s = subject(tmp_path, count=40)
    assert overestimates(s) == []
    flags = {"pgd": "1" * 30 + "0" * 10, "autoattack": "1" * 9 + "0" * 11}  # on the first 20: 100 % against 45 %
    for attack in order:
        write(s, attack, flags[attack])
    (said,) = overestimates(s)
    assert "PGD overestimates by 55.0 points at 0.05" in said and "AutoAttack leaves 45.0%" in said and "20" in said
    write(s, "autoattack", flags["pgd"])
    assert overestimates(s) == [], "as strong"
    write(s, "autoattack", flags["autoattack"], eps=0.1)
    assert overestimates(s) == []
    s.result_file("autoattack").write_text("{")
    assert overestimates(s) == []


def test_a_search_for_the_nearest_image_breaks_every_radius_beyond(tmp_path):
    """Of the first 20 images PGD leaves all; FMN finds 4 that are wrong or not beyond eps, DDN all of the ten it saw."""
    s = subject(tmp_path, count=40)
    write(s, "pgd", "1" * 30 + "0" * 10)
    near = {"mean": None, "quartiles": [None] * 3, "clean_acc": 1.0}
    found = {"fmn": [0.0, EPS / 2, EPS, EPS * 0.99, EPS * 1.01, None, *[0.3] * 14], "ddn": [0.0] * 10}
    for attack, distances in found.items():
        write(s, attack, "1" * len(distances))
        content = json.loads(s.result_file(attack).read_text())
        del content["results"]
        s.result_file(attack).write_text(json.dumps({**content, **near, "distances": distances}))
    (said,) = overestimates(s)
    assert "PGD overestimates by 20.0 points at 0.05: FMN leaves 80.0%, PGD 100.0%, of the same 20 images" in said
    content = json.loads(s.result_file("fmn").read_text())
    s.result_file("fmn").write_text(json.dumps({**content, "distances": [1.0] * 20}))  # it finds nothing, DDN does
    (said,) = overestimates(s)
    assert "by 100.0 points at 0.05: DDN leaves 0.0%" in said and "10 images" in said


def test_averages_and_grids():
    assert average_accuracies(0.9, [0.6, 0.3]) == pytest.approx({"avg_acc": 0.6, "avg_rob_acc": 0.45})
    assert eval_grid("cifar10", "Linf", 0.1) == pytest.approx([4 * k / 255 for k in range(1, 9)])
    assert eval_grid("mnist", "L2", 6.0) == (1, 2, 3, 4)
    assert eval_grid("digits", "Linf", 0.3) == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])


# --- the command ---------------------------------------------------------------------------------------------------


class DoesNothing(FastPgd):
    def __call__(self, model, x, y, **settings):
        return x.clone()


@pytest.mark.parametrize("attack", [FastPgd, DoesNothing])
def test_the_command_says_so_loudly_and_goes_on(attack, tmp_path, capsys, monkeypatch):
    """WARNING in print, false in the JSON, the mark in the tables; the exit status is 0."""
    run = tmp_path / "digits-Linf-MMA-0.3-sd0"
    shutil.copytree(ROOT / "trained_models" / run.name, run, ignore=shutil.ignore_patterns("eval_*"))
    monkeypatch.setattr(white_box_attack, "FastPgd", attack)
    argv = f"--model {run} --eps 0.2 --nb_iter 10 --nb_restart 1 --test_size 100 --device cpu --eps_iter 0.05"
    assert evaluate_on_pgd_attacks.main(argv.split()) == 0
    warned = "WARNING: sanity check failed: the attack moves the images: 0 of 100" in capsys.readouterr().out
    said = json.loads((run / "eval_pgd_Linf.json").read_text())["sanity"]
    page, _ = make_page([run])
    honest = attack is FastPgd
    assert warned is not honest and said["the attack moves the images"]["ok"] is honest
    assert said["plain PGD breaks no more"]["ok"] is honest and ("⚠" in page) is not honest
