"""Square and SPSA from the command line, on a linear network whose robust images are known in closed form."""

import itertools

import pytest
import torch
from torch import nn

import two_way
from command_lines import fails
from evaluate_on_gradient_free_attacks import GradientFreeFlags, main, spsa
from evaluate_on_gradient_free_attacks import square as square_kind
from evaluations import shard_report, shards
from evaluations.packages import square_starts
from evaluations.shard_parts import Part
from records import progress
from records.progress import Progress
from two_way import arguments, result, worst_margins

digits, elsewhere, network = two_way.digits, two_way.elsewhere, two_way.network  # fixtures
FEW = {"square_queries": 5, "spsa_iter": 1, "spsa_samples": 4}


def flags_of(path, attack, norm="Linf"):
    return torch.tensor([flag == "1" for flag in result(path, attack, norm)["results"][0]["flags"]])


@pytest.mark.parametrize(
    ("norm", "attack", "eps", "slack"),
    [("Linf", "square", 0.3, 0.3), ("L2", "square", 1.5, 0.9), ("Linf", "spsa", 0.3, 0.3)],
)
def test_flags_agree_with_the_closed_form(network, digits, norm, attack, eps, slack):
    """What is robust stays; what is not, by more than `slack`, falls, without a gradient."""
    few = {"square_queries": 700, "spsa_iter": 60, "spsa_samples": 64, "batch_size": 50, "test_size": 150}
    assert main(arguments(network, norm, eps=eps, attacks=attack, **few)) == 0
    found = flags_of(network, attack, norm)
    margins = worst_margins(network, digits, norm, eps)[:150]
    right = worst_margins(network, digits, norm, 0)[:150] > 0
    assert found[margins > 0].all() and not found[~right].any()
    weak = right & (margins < -slack)
    assert weak.sum() >= 5 and not found[weak].any()
    content = result(network, attack, norm)
    assert content["attack"] == attack and content["results"][0]["invalid"] == 0
    assert content["clean_acc"] == right.double().mean() and content["settings"]["attacks"] == [attack]


def test_both_by_default_on_100_images(network, capsys):
    assert main(arguments(network, **FEW)) == 0
    assert result(network, "square")["n"] == result(network, "spsa")["n"] == 100
    assert result(network, "square")["settings"]["batch_size"] == 50
    assert result(network, "spsa")["settings"]["nb_sample"] == 4
    capsys.readouterr()
    before = [result(network, name) for name in ("square", "spsa")]
    assert main([*arguments(network, **FEW), "--resume"]) == 0
    assert capsys.readouterr().out.count("already done") == 2
    assert main([*arguments(network, **{**FEW, "spsa_iter": 2}), "--resume"]) == 0
    assert capsys.readouterr().out.count("already done") == 1
    assert result(network, "square") == before[0]
    assert [row["settings"]["nb_iter"] for row in result(network, "spsa")["results"]] == [1, 2]


def test_under_l2_square_only(network, capsys):
    assert main(arguments(network, "L2", test_size=20, **FEW)) == 0
    assert [path.name for path in network.parent.glob("*.json")] == ["eval_square_L2.json"]
    fails(capsys, main, arguments(network, "L2", attacks="square,spsa"), "SPSA is for Linf only")


def test_stopped_and_started_again_gives_the_same_flags(network, tmp_path, monkeypatch):
    few = {"square_queries": 20, "spsa_iter": 5, "spsa_samples": 8, "test_size": 60, "batch_size": 20, "eps": 0.3}
    assert main(arguments(network, **few)) == 0
    whole = {name: result(network, name)["results"][0]["flags"] for name in ("square", "spsa")}
    for path in network.parent.glob("eval_*"):
        path.unlink()
    original, calls = shards.attack_shard, itertools.count()

    def stop_twice(*args):
        if next(calls) in (1, 5):  # in Square's second shard, then in SPSA's
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(shards, "attack_shard", stop_twice)
    assert [main([*arguments(network, **few), "--resume"]) for _ in range(3)] == [130, 130, 0]
    assert {name: result(network, name)["results"][0]["flags"] for name in whole} == whole
    assert next(calls) == 8 and not list(network.parent.glob("partial_*"))


def test_another_seed_gives_other_draws():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.full((2, 1, 8, 8), 0.5)
    y = model(x).argmax(1)
    job = type("Job", (), {})()
    job.subject, job.eps, job.device = type("Subject", (), {"model": model, "norm": "Linf"})(), 0.01, x.device
    job.shards = (y,)
    for kind in (square_kind, spsa):
        a, b, c = (kind(GradientFreeFlags()).run(job, x, y, seed, 3) for seed in (1, 1, 2))
        if kind is spsa:
            assert torch.equal(a, b) and not torch.equal(a, c)
        assert (a - x).abs().max() <= 0.01 + 1e-6
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_square_can_start_on():
    """Under L2 the package's first tiles must fit; 14, 19 and 24 pixels do not."""
    assert all(square_starts("Linf", size, size) for size in range(1, 40))
    for size in (8, 16, 28, 32, 64, 96, 224):
        assert square_starts("L2", size, size)
    for size in (4, 14, 19, 24):
        assert not square_starts("L2", size, size)


def test_a_long_shard_is_seen_to_move_and_the_hook_removed(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    job = type("Job", (), {})()
    job.attack, job.subject = "square", type("Subject", (), {"model": nn.Flatten()})()
    with Progress(2, "image") as bar:
        shown = shard_report.Shown(job, bar)
        with shown.shard():
            job.subject.model(torch.zeros(1, 2))
            assert capsys.readouterr().err.splitlines()[-1].endswith("square, 1 passes over this shard")
        shown.done({0: Part("10", 0.1, 0, [])}, 2)
    assert capsys.readouterr().err.splitlines()[-1].endswith("square, accuracy so far 50.00%")
    assert not job.subject.model._forward_hooks


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--attacks cube", "no attack 'cube'"),
        ("--square_queries 0", "--square_queries 0"),
        ("--spsa_iter 0", "--spsa_iter 0"),
        ("--eps 0.1 0.2", "0.2"),
    ],
)
def test_bad_flags(network, capsys, flags, part):
    fails(capsys, main, [*arguments(network), *flags.split()], part)
    assert {path.name for path in network.parent.iterdir()} == {"net.pt"}
