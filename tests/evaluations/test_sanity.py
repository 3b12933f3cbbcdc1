"""The sanity battery: silent about an honest network, loud about each way of fooling an evaluation."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

import evaluate_on_pgd_attacks
import hubconf
from config import PRESETS
from evaluations import pgd_attacks
from evaluations.compare_attacks import overestimates
from evaluations.repeated_pgd import AttackState, from_noise, repeated_pgd
from evaluations.results import accuracy_of
from evaluations.sanity import lines, not_stronger, pgd_battery
from evaluations.subject import Subject
from hardware.fast_pgd import FastPgd
from linear import CPU, Function, problem
from loading.batches import Split
from loading.datasets import load_test
from losses import cross_entropy, logit_margin
from networks.lenet import LeNet5Madry
from pgd import pgd
from support import ROOT

EPS = 0.05


def subject_of(model, folder, test, dataset="mnist", norm="Linf"):
    return Subject(model.eval(), folder / "net.pt", "abc", test, PRESETS[dataset, norm], dataset, norm, overrides={})


def subject(tmp_path, wrap=lambda model: model, norm="Linf", count=120):
    model, x, _ = problem((1, 8, 8), count, norm)
    images = (x * 255).round().to(torch.uint8)
    x = images.float() / 255
    model = model.float().requires_grad_(False)
    test = Split(images, model(x).argmax(1), torch.arange(count))
    return subject_of(wrap(model), tmp_path, test, norm=norm)


def evaluated(s, attack=pgd, eps=EPS, steps=20):
    """What an evaluation by this attack says of itself: the attack, how, seed, batch size, state."""
    how = {"loss_fn": cross_entropy, "norm": s.norm, "eps": eps, "step_size": eps / 4, "steps": steps}
    x, y, _ = s.test.everything()
    restarts = [from_noise(attack, **how)]
    state = repeated_pgd(s.model, x, y, s.test.numbers, restarts=restarts, eps=eps, batch_size=50)
    return attack, how, 0, 50, state


def failed(found):
    return {name for name, finding in found.items() if finding["ok"] is False}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_honest_network_passes(norm, tmp_path):
    s = subject(tmp_path, norm=norm)
    found = pgd_battery(s, *evaluated(s))
    assert failed(found) == set()
    assert [name for name, finding in found.items() if finding["ok"] is None] == [
        "clean accuracy as the file says",
        *(f"{name} not stronger" for name in ("square", "spsa", "transfer")),
    ]
    assert len(lines(found)) == 1 and "0 failed; not run: clean accuracy as" in lines(found)[0]
    json.dumps(found)


def test_a_network_that_only_guesses_is_told(tmp_path):
    """As with another normalisation or order of the classes. Of few images nothing is said."""
    for count, ok in ((120, False), (10, None)):
        s = subject(tmp_path, count=count)
        s = replace(s, test=replace(s.test, labels=torch.arange(count) % 2))
        found = pgd_battery(s, *evaluated(s))
        assert found["clean accuracy above chance"]["ok"] is ok
    assert "too few" in found["clean accuracy above chance"]["value"]


# --- attacks that are broken ---------------------------------------------------------------------------------------


def stale_graph(model, x, y, **how):
    """Replays the answer to the first batch."""
    if not hasattr(model, "answer"):
        model.answer = pgd(model, x, y, **how)
    return model.answer[: len(x)]


def judged_on_the_clean_images(s, keep):
    """As `evaluated`, but every image that is classified right is called robust; `keep`: whose images are written."""
    *made, state = evaluated(s)
    x, y, _ = s.test.everything()
    return *made, AttackState(state.x_adv if keep else x, logit_margin(s.model(x), y))


BROKEN = [
    ("the attack moves the images", lambda model, x, y, **how: x.clone()),
    ("the attack leaves its start", lambda *given, **how: pgd(*given, **{**how, "steps": 0})),
    ("the attack raises its loss", lambda *a, loss_fn, **how: pgd(*a, **how, loss_fn=lambda z, y: -loss_fn(z, y))),
    ("the attack takes whole steps", lambda *a, step_size, **how: pgd(*a, **how, step_size=step_size / 100)),
    ("the attack answers for its own batch", stale_graph),
]
JUDGED = "judged on the perturbed images"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("name", "broken"), [*BROKEN, (JUDGED, False), (JUDGED, True)])
def test_each_broken_attack_is_caught_by_name(name, broken, norm, tmp_path):
    s = subject(tmp_path, norm=norm)
    found = pgd_battery(s, *(judged_on_the_clean_images(s, keep=broken) if name == JUDGED else evaluated(s, broken)))
    assert name in failed(found)
    assert any(line.startswith(f"WARNING: sanity check failed: {name}: ") for line in lines(found))
    if name in ("the attack moves the images", JUDGED):  # others break a few by luck
        assert "plain PGD breaks no more" in failed(found)


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
    assert failed(found) == set(), {name: found[name]["value"] for name in failed(found)}


def digits(tmp_path, norm, trained):
    """The first 150 test images before the network in trained_models/, or before one that is not trained."""
    test = load_test("digits", "none", test_size=150, device=CPU).split
    torch.manual_seed(0)
    model = hubconf.mma("digits-Linf-MMA-0.3-sd0") if trained else LeNet5Madry(1, 8, 8)
    return subject_of(model.requires_grad_(False), tmp_path, test, "digits", norm)


def test_no_radius_and_one_image(tmp_path):
    s = subject(tmp_path, count=1)
    found = pgd_battery(s, *evaluated(s))
    assert failed(found) == set() and found["the attack answers for its own batch"]["ok"] is None
    found = pgd_battery(s, *evaluated(s, eps=0.0))
    assert failed(found) == set() and "the attack moves the images" not in found


# --- networks that fool an attack ----------------------------------------------------------------------------------


FOOLING = {
    "probabilities": (lambda model, x: model(x).softmax(1), {"network"}),
    "noise": (lambda model, x: model(x) + 1e-3 * torch.randn(len(x), 2), {"network"}),
    "no number": (lambda model, x: model(x) * float("nan"), {"network", "gradients"}),
    "a class that cannot be": (lambda model, x: model(x) + torch.tensor([0.0, -math.inf]), {"network"}),
    "hidden gradient": (lambda model, x: model((x * 8).round() / 8), {"gradients", "a huge eps leaves about none"}),
    "no gradient": (lambda model, x: model(x.detach()), {"gradients"}),
    "of the batch": (lambda model, x: model(x - x.mean(0, keepdim=True)), {"an image's logits are its own"}),
    "one class": (lambda model, x: model(x) * 1e-3 + torch.tensor([0.0, 1.0]), {"a huge eps leaves about none"}),
}


@pytest.mark.parametrize("name", FOOLING)
def test_networks_that_fool_an_attack(name, tmp_path):
    change, names = FOOLING[name]
    fooled = subject(tmp_path, lambda model: Function(partial(change, model)))
    found = pgd_battery(fooled, *evaluated(subject(tmp_path)))
    assert names <= failed(found) and (name != "no gradient" or failed(found) == names)
    assert sum(line.startswith("WARNING: sanity check failed") for line in lines(found)) == len(failed(found))
    if name == "a class that cannot be":
        assert "large negative logit" in found["network"]["value"]
    if name == "one class":
        assert found["a huge eps leaves about none"]["value"].endswith("; it says class 1 of every image")


def test_logarithms_of_probabilities_are_logits(tmp_path):
    """No loss of the attacks changes if a number is added to all logits of an image."""
    s = subject(tmp_path, lambda model: Function(lambda x: model(x).log_softmax(1)))
    assert failed(pgd_battery(s, *evaluated(s))) == set()


@pytest.mark.parametrize("reverse", [False, True])
def test_images_in_the_order_of_their_classes(reverse, tmp_path):
    """As in a folder of pictures: a network that knows one class alone is right on the first hundred, or on none of them."""
    s = subject(tmp_path, lambda model: Function(lambda x: model(x) * 1e-3 + torch.tensor([0.0, 1.0])), count=300)
    labels = (torch.arange(300) < 150) != reverse
    s = subject_of(s.model, tmp_path, Split(s.test.images, labels.long(), s.test.numbers))
    found = pgd_battery(s, *evaluated(s))
    assert found["clean accuracy above chance"]["value"].startswith("50.0%")
    assert "clean accuracy above chance" in failed(found)


def test_train_mode_and_images_out_of_bounds(tmp_path):
    s = subject(tmp_path)
    made = evaluated(s)
    s.model.train()
    made[-1].x_adv[3, 0, 2, 2] = 1.2
    found = pgd_battery(s, *made)
    assert {"network", "inputs in [0, 1]", "perturbations within eps"} <= failed(found)


# --- other attacks beside the model --------------------------------------------------------------------------------


def write(s, attack, flags="", eps=EPS, model_sha256="abc", **more):
    """The only row of its JSON."""
    row = s.row(0, {}, eps if flags else None, clean_acc=1, clean_ci95=[1, 1], **(accuracy_of(flags) if flags else {}))
    s.result_file(attack).unlink(missing_ok=True)
    replace(s, sha256=model_sha256).add_rows(attack, [row | {"n": len(flags), **more}])


@pytest.mark.parametrize(("theirs", "ok"), [(0, False), (30, True)])
def test_another_attack_beside_the_model_that_is_stronger(theirs, ok, tmp_path):
    s = subject(tmp_path, count=40)
    *made, state = evaluated(s)
    state.margin = torch.where(torch.arange(40) < 30, -1.0, 1.0)
    write(s, "square", "1" * theirs + "0" * (40 - theirs))
    s.result_file("spsa").write_text("{")
    write(s, "transfer", "0" * 40, model_sha256="other")
    found = pgd_battery(s, *made, state)
    assert found["square not stronger"]["ok"] is ok
    assert found["spsa not stronger"]["ok"] is None and found["transfer not stronger"]["ok"] is None
    assert "autoattack not stronger" not in found  # it is meant to be


def test_a_selection_of_an_image_folder_is_not_compared(tmp_path):
    s = replace(subject(tmp_path, count=40), dataset="imagefolder")
    write(s, "square", "0" * 20)
    assert not_stronger(s, "square", EPS, torch.ones(40, dtype=torch.bool))["ok"] is None
    write(s, "square", "0" * 40, images="of another size")
    assert not_stronger(s, "square", EPS, torch.ones(40, dtype=torch.bool))["ok"] is None
    write(s, "square", "0" * 40)
    assert not_stronger(s, "square", EPS, torch.ones(40, dtype=torch.bool))["ok"] is False


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
    near = {"mean": None, "quartiles": [None] * 3, "not_found": 0, "mean_of_found": None}
    found = {"fmn": [0.0, EPS / 2, EPS, EPS * 0.99, EPS * 1.01, None, *[0.3] * 14], "ddn": [0.0] * 10}
    for attack, distances in found.items():
        write(s, attack, **near, n=len(distances), distances=distances)
    (said,) = overestimates(s)
    assert "PGD overestimates by 20.0 points at 0.05: FMN leaves 80.0%, PGD 100.0%, of the same 20 images" in said
    write(s, "fmn", **near, n=20, distances=[1.0] * 20)  # it finds nothing, DDN does
    (said,) = overestimates(s)
    assert "by 100.0 points at 0.05: DDN leaves 0.0%" in said and "10 images" in said


# --- the command ---------------------------------------------------------------------------------------------------


class DoesNothing(FastPgd):
    def __call__(self, model, x, y, **settings):
        return x.clone()


@pytest.mark.parametrize("attack", [FastPgd, DoesNothing])
def test_the_command_says_so_loudly_and_goes_on(attack, tmp_path, capsys, monkeypatch):
    """WARNING in print, false in the JSON; the exit status is 0."""
    run = tmp_path / "digits-Linf-MMA-0.3-sd0"
    shutil.copytree(ROOT / "trained_models" / run.name, run, ignore=shutil.ignore_patterns("eval_*"))
    monkeypatch.setattr(pgd_attacks, "FastPgd", attack)
    argv = f"--model {run} --eps 0.2 --nb_iter 10 --nb_restart 1 --test_size 100 --device cpu --eps_iter 0.05"
    assert evaluate_on_pgd_attacks.main(argv.split()) == 0
    warned = "WARNING: sanity check failed: the attack moves the images: 0 of 100" in capsys.readouterr().out
    said = json.loads((run / "eval_pgd_Linf.json").read_text())["results"][0]["sanity"]
    honest = attack is FastPgd
    assert warned is not honest and said["the attack moves the images"]["ok"] is honest
    assert said["plain PGD breaks no more"]["ok"] is honest
    if honest:
        short = [*argv.split()[:-1], "0.002"]
        assert evaluate_on_pgd_attacks.main(short) == 0
        assert "10 steps of 0.002 cannot cross the ball: leave --eps_iter out" in capsys.readouterr().out
