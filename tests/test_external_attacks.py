"""AutoAttack, Square and SPSA from the command line, on linear networks of known robust images."""

import logging
import math
import re

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks as gradient_free
import linear
from command_lines import fails
from evaluate_on_autoattack import main
from evaluations.autoattack import STANDARD, package_log
from evaluations.external_attacks import square_starts, verified
from folders import pictures
from linear import Linear, arguments, result, worst_margins

digits, elsewhere, network = linear.digits, linear.elsewhere, linear.network  # fixtures


FEW = {"square_queries": 5, "spsa_iter": 1, "spsa_samples": 4}


def row_of(path, attack="autoattack", norm="Linf"):
    (row,) = result(path, attack, norm)["results"]
    return row


@pytest.fixture
def short(monkeypatch):
    """The package's attacks with fewer steps, target classes and queries of Square."""
    run = AutoAttack.run_standard_evaluation

    def run_a_little(ensemble, *args, **more):
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = 1
        ensemble.square.n_queries = 100
        return run(ensemble, *args, **more)

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", run_a_little)


CLOSE = [  # and by how much an image may be broken that stands
    ("autoattack", "Linf", 0.3, 0.01),
    ("autoattack", "L2", 1.5, 0.01),
    ("square", "Linf", 0.3, 0.3),
    ("square", "L2", 1.5, 0.9),
    ("spsa", "Linf", 0.3, 0.3),
]


@pytest.mark.parametrize(("attack", "norm", "eps", "slack"), CLOSE)
def test_flags_equal_the_closed_form(network, digits, short, attack, norm, eps, slack):
    """On a linear decision between two of ten classes, pixels at 0 and 1 included, what is robust stays, the rest falls."""
    few = {"attacks": attack, "square_queries": 700, "spsa_iter": 60, "spsa_samples": 64, "batch_size": 50}
    standard = attack == "autoattack"
    run = main if standard else gradient_free.main
    assert run(arguments(network, norm, eps=eps, test_size=150, **({} if standard else few))) == 0
    found = row_of(network, attack, norm)
    robust = torch.tensor([flag == "1" for flag in found["flags"]])
    margins, right = (worst_margins(network, digits, norm, radius)[:150] for radius in (eps, 0))
    assert robust[margins > 0.01].all() and not robust[right < 0].any() and not robust[margins < -slack].any()
    assert (margins > 0.01).sum() >= 5 and ((margins < -slack) & (right > 0)).sum() >= 5  # the radius tells them apart
    assert found["clean_acc"] == (right > 0).double().mean() and found["n"] == 150
    assert found["settings"]["attacks"] == (list(STANDARD) if standard else [attack])
    assert found["eps"] == eps and found["invalid"] == 0 and found["seed"] == 0
    assert not list(network.parent.glob("partial_*"))


def test_the_same_seed_gives_the_same_draws_in_each_shard_and_another_seed_others(network, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        evaluate_on_autoattack, "run_ensemble", lambda model, x, *_, seed, **__: seeds.append(seed) or (x, [])
    )
    for seed in (0, 0, 1):
        argv = arguments(network, attacks="fab", test_size=40, batch_size=20, seed=seed)
        assert main([*argv, "--overwrite"]) == 0
    assert seeds[:2] == seeds[2:4] and len(set(seeds)) == 4


def test_three_classes_are_not_standard(tmp_path, short, capsys):
    pictures(tmp_path / "pictures", 0, 4, size=8)
    path = tmp_path / "net.pt"
    torch.save(Linear(3, 8, 8, 3).state_dict(), path)
    argv = arguments(path, "L2", dataset="imagefolder", data_root="pictures", eps=0.5)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "not standard AutoAttack: apgd-t needs at least 4 classes, and here are 3" in out
    found = row_of(path, norm="L2")["settings"]
    assert found["attacks"] == ["apgd-ce", "square"] and not found["standard"]
    assert found["name"] == "not standard AutoAttack"
    fails(capsys, main, [*argv, "--attacks", "apgd-t,square"], "at least 4 classes", "leave it out")


def test_a_perturbation_beyond_eps_breaks_nothing_and_is_said(network, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_on_autoattack, "run_ensemble", lambda model, x, *_, **__: (1 - x, ["it went too far"]))
    assert main(arguments(network, test_size=30, eps=0.1)) == 0
    found, out = row_of(network), capsys.readouterr().out
    assert found["robust_acc"] == found["clean_acc"] and found["invalid"] > 0
    assert "WARNING: it went too far" in out and "perturbations within eps: " in out


def test_verified():
    model = nn.Flatten()  # two pixels are two logits
    x, y = torch.tensor([[0.6, 0.4]]).expand(6, 2), torch.zeros(6, dtype=torch.int64)
    x_adv = torch.tensor([[0.6, 0.4], [0.45, 0.5], [0.5, 0.5], [0.3, 0.9], [math.nan, 0.4], [0.5, -0.1]])
    robust, valid = verified(model, x, y, x_adv, norm="Linf", eps=0.2)
    assert robust.tolist() == [True, False, False, True, True, True]  # a tie is not right
    assert valid.tolist() == [True, True, True, False, False, False]
    assert verified(model, x, y, x_adv, norm="L2", eps=0.75)[0].tolist() == [True, False, False, False, True, True]


def test_package_log(caplog):
    """Silent, with one warning of each kind; the logger is as before after."""
    logger = logging.getLogger("auto-attack")
    with caplog.at_level(logging.DEBUG), package_log() as warnings:
        logger.debug("initial accuracy: 12%")
        for count in (3, 14):
            logger.warning(f"there are {count} points with zero gradient!")
    assert not caplog.records and not logger.filters
    assert list(warnings.values()) == ["pyautoattack on one shard: there are 3 points with zero gradient!"]


# --- without gradients ---------------------------------------------------------------------------------------------


def test_both_by_default_on_100_images(network, capsys):
    assert gradient_free.main(arguments(network, **FEW)) == 0
    before, (of_spsa,) = result(network, "square")["results"], result(network, "spsa")["results"]
    assert before[0]["n"] == of_spsa["n"] == 100 and of_spsa["settings"]["nb_sample"] == 4
    assert (before[0]["settings"]["batch_size"], of_spsa["settings"]["batch_size"]) == (50, 10)
    (figure, _) = figures = re.findall("robust accuracy.*", capsys.readouterr().out)
    assert gradient_free.main(arguments(network, **{**FEW, "spsa_iter": 2})) == 0
    second = capsys.readouterr().out
    assert second.count("already done") == 1 and len(figures) == 2 and figure in second
    assert result(network, "square")["results"] == before
    assert [row["settings"]["nb_iter"] for row in result(network, "spsa")["results"]] == [1, 2]


def test_under_l2_square_only_and_what_is_refused(network, capsys):
    assert gradient_free.main(arguments(network, "L2", test_size=20, **FEW)) == 0
    assert [path.name for path in network.parent.glob("*.json")] == ["eval_square_L2.json"]
    fails(capsys, gradient_free.main, arguments(network, "L2", attacks="square,spsa"), "SPSA is for Linf only")
    fails(capsys, gradient_free.main, arguments(network, attacks="cube"), "no attack 'cube'")
    fails(capsys, main, arguments(network, attacks="apgd-ce,apgd"), "--attacks apgd-ce,apgd", "'apgd'", "apgd-t")


def test_another_seed_gives_other_draws():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.full((2, 1, 8, 8), 0.5)
    y = model(x).argmax(1)
    subject = type("Subject", (), {"model": model, "norm": "Linf", "test": x})()
    flags = gradient_free.GradientFreeFlags(spsa_iter=3)
    attack = gradient_free.attack_of("spsa", flags, subject, 0.01, 2)["attack"]
    a, b, c = (attack(x, y, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and (a - x).abs().max() <= 0.01 + 1e-6


def test_what_square_can_start_on():
    """Under L2 the package's first tiles must fit; 14, 19 and 24 pixels do not."""
    assert all(square_starts("Linf", size, size) for size in range(1, 40))
    for size in (8, 16, 28, 32, 64, 96, 224):
        assert square_starts("L2", size, size)
    for size in (4, 14, 19, 24):
        assert not square_starts("L2", size, size)
