"""AutoAttack from the command line, on linear networks whose robust images are known in closed form; and its shards."""

import logging
import math

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

import evaluate_on_autoattack
import linear
from command_lines import fails
from evaluate_on_autoattack import main
from evaluations.autoattack import STANDARD, package_log
from evaluations.external_attacks import verified
from folders import pictures
from linear import Linear, arguments, result, worst_margins

digits, elsewhere, network = linear.digits, linear.elsewhere, linear.network  # fixtures


def row_of(path, norm="Linf"):
    (row,) = result(path, norm=norm)["results"]
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


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 1.5)])
def test_flags_equal_the_closed_form(network, digits, short, norm, eps):
    """The ensemble on a linear decision between two of ten classes, pixels at 0 and 1 included."""
    assert main(arguments(network, norm, eps=eps, test_size=150)) == 0
    found = row_of(network, norm=norm)
    margins = worst_margins(network, digits, norm, eps)[:150]
    sure = margins.abs() > 0.01
    robust = torch.tensor([flag == "1" for flag in found["flags"]])
    assert torch.equal(robust[sure], margins[sure] > 0)
    right = worst_margins(network, digits, norm, 0)[:150] > 0
    assert 5 <= robust.sum() <= right.sum() - 5 and sure.sum() >= 147  # the radius tells them apart
    assert found["clean_acc"] == right.double().mean() and found["n"] == 150
    assert found["settings"]["standard"] and found["settings"]["attacks"] == list(STANDARD)
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


def test_package_log():
    """Silent, with one warning of each kind; the logger is as before after."""
    logger = logging.getLogger("auto-attack")
    before = list(logger.handlers), logger.level, logger.propagate
    with package_log() as warnings:
        logger.debug("initial accuracy: 12%")
        for count in (3, 14):
            logger.warning(f"there are {count} points with zero gradient!")
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    assert list(warnings.values()) == ["pyautoattack on one shard: there are 3 points with zero gradient!"]


def test_an_unknown_attack(network, capsys):
    argv = arguments(network, attacks="apgd-ce,apgd")
    fails(capsys, main, argv, "--attacks apgd-ce,apgd", "'apgd'", "apgd-t")
    assert {path.name for path in network.parent.iterdir()} == {"net.pt"}
