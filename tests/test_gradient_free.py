"""Square and SPSA from the command line, on a linear network whose robust images are known in closed form."""

import pytest
import torch
from torch import nn

import linear
from command_lines import fails
from evaluate_on_gradient_free_attacks import GradientFreeFlags, attack_of, main
from evaluations.external_attacks import square_starts
from linear import arguments, result, worst_margins

digits, elsewhere, network = linear.digits, linear.elsewhere, linear.network  # fixtures
FEW = {"square_queries": 5, "spsa_iter": 1, "spsa_samples": 4}


def rows_of(path, attack, norm="Linf"):
    return result(path, attack, norm)["results"]


@pytest.mark.parametrize(
    ("norm", "attack", "eps", "slack"),
    [("Linf", "square", 0.3, 0.3), ("L2", "square", 1.5, 0.9), ("Linf", "spsa", 0.3, 0.3)],
)
def test_flags_agree_with_the_closed_form(network, digits, norm, attack, eps, slack):
    """What is robust stays; what is not, by more than `slack`, falls, without a gradient."""
    few = {"square_queries": 700, "spsa_iter": 60, "spsa_samples": 64, "batch_size": 50, "test_size": 150}
    assert main(arguments(network, norm, eps=eps, attacks=attack, **few)) == 0
    (row,) = rows_of(network, attack, norm)
    found = torch.tensor([flag == "1" for flag in row["flags"]])
    margins = worst_margins(network, digits, norm, eps)[:150]
    right = worst_margins(network, digits, norm, 0)[:150] > 0
    assert found[margins > 0].all() and not found[~right].any()
    weak = right & (margins < -slack)
    assert weak.sum() >= 5 and not found[weak].any()
    assert row["invalid"] == 0 and row["clean_acc"] == right.double().mean() and row["settings"]["attacks"] == [attack]


def test_both_by_default_on_100_images(network, capsys):
    assert main(arguments(network, **FEW)) == 0
    before, (of_spsa,) = rows_of(network, "square"), rows_of(network, "spsa")
    assert before[0]["n"] == of_spsa["n"] == 100 and of_spsa["settings"]["nb_sample"] == 4
    assert (before[0]["settings"]["batch_size"], of_spsa["settings"]["batch_size"]) == (50, 10)
    capsys.readouterr()
    assert main(arguments(network, **{**FEW, "spsa_iter": 2})) == 0
    assert capsys.readouterr().out.count("already done") == 1 and rows_of(network, "square") == before
    assert [row["settings"]["nb_iter"] for row in rows_of(network, "spsa")] == [1, 2]


def test_under_l2_square_only(network, capsys):
    assert main(arguments(network, "L2", test_size=20, **FEW)) == 0
    assert [path.name for path in network.parent.glob("*.json")] == ["eval_square_L2.json"]
    fails(capsys, main, arguments(network, "L2", attacks="square,spsa"), "SPSA is for Linf only")
    fails(capsys, main, arguments(network, attacks="cube"), "no attack 'cube'")


def test_another_seed_gives_other_draws():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.full((2, 1, 8, 8), 0.5)
    y = model(x).argmax(1)
    subject = type("Subject", (), {"model": model, "norm": "Linf", "test": x})()
    flags = GradientFreeFlags(spsa_iter=3)
    attack = attack_of("spsa", flags, subject, 0.01, 2)["attack"]
    a, b, c = (attack(x, y, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and (a - x).abs().max() <= 0.01 + 1e-6


def test_what_square_can_start_on():
    """Under L2 the package's first tiles must fit; 14, 19 and 24 pixels do not."""
    assert all(square_starts("Linf", size, size) for size in range(1, 40))
    for size in (8, 16, 28, 32, 64, 96, 224):
        assert square_starts("L2", size, size)
    for size in (4, 14, 19, 24):
        assert not square_starts("L2", size, size)
