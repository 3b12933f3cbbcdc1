"""What all evaluations share: quiet, closing lines that can be run, `--config`, and that no stop loses what is done."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import evaluate_on_transfer
import linear
from command_lines import fails
from evaluations import pgd_attacks
from hardware.fast_pgd import FastPgd
from linear import arguments, attack
from records import checkpoint
from records.commands import ROOT, interpreter

digits, network = linear.digits, linear.network  # fixtures
EVALUATIONS = {
    "pgd": (evaluate_on_pgd_attacks.main, {"eps": 0.2, "nb_iter": 4, "nb_restart": 3}),
    "autoattack": (evaluate_on_autoattack.main, {"eps": 0.2, "attacks": "apgd-ce"}),
    "gradient-free": (evaluate_on_gradient_free_attacks.main, {"square_queries": 9, "spsa_iter": 1, "spsa_samples": 2}),
    "minimum norm": (evaluate_on_minimum_norm.main, {"steps": 20, "attacks": "fmn"}),
    "transfer": (evaluate_on_transfer.main, {"eps": 0.2, "nb_iter": 4, "nb_restart": 2}),
}
each_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


def argv_of(name, network, **more):
    main, flags = EVALUATIONS[name]
    argv = arguments(network, **{"test_size": 60, "batch_size": 10, **flags, **more})
    if name == "transfer":
        other = shutil.copytree(network.parent, network.parent.with_name("other net"), dirs_exist_ok=True)
        at = argv.index("--model")
        argv = [str(network), str(other / network.name), *argv[:at], *argv[at + 2 :]]
    return main, argv


def results(folder):
    """Each image's flag or distance, by file."""
    return {
        path.name: [row.get("flags", row.get("distances")) for row in json.loads(path.read_text())["results"]]
        for path in folder.glob("eval_*.json")
    }


@each_evaluation
def test_quiet_leaves_the_closing_lines_and_the_last_is_a_command_that_can_be_run(network, name, capsys, monkeypatch):
    """Quiet by a file of flags."""
    monkeypatch.setattr(sys, "argv", ["x"])
    main, argv = argv_of(name, network)
    Path("mine.toml").write_text("quite = true\n")
    fails(capsys, main, [*argv, "--config", "mine.toml"], "unknown name quite", "did you mean quiet?")
    Path("mine.toml").write_text("quiet = true\n")
    assert main([*argv, "--config", "mine.toml"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not re.search("at most about|not given|made first|AN-PGD on", out)
    assert "written: " in out and ("accuracy" in out or "median" in out)
    words = shlex.split(out.splitlines()[-1].partition(": ")[2])
    expected = {"pgd": "evaluate_on_autoattack.py", "transfer": "make_report.py"}
    assert words[0] == interpreter() and Path(words[1]).resolve().parent in (ROOT, ROOT / "reports")
    assert Path(words[1]).name == expected.get(name, "evaluate_on_pgd_attacks.py")
    assert {str(network), str(network.parent)} & set(words)
    assert name == "transfer" or "--dataset digits --norm Linf --network linear:Linear" in " ".join(words)
    assert main([*argv, "--overwrite"]) == 0
    assert "at most about" in capsys.readouterr().out or name in ("minimum norm", "transfer"), "of several shards"


@each_evaluation
def test_a_folder_that_cannot_be_written_is_refused_before_the_attack(network, name, capsys, monkeypatch):
    main, argv = argv_of(name, network)
    before = sorted(network.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *given, **more: False)
        fails(capsys, main, argv, str(network.parent), "copy it into a folder of yours")
        assert sorted(network.parent.iterdir()) == before
    assert main(argv) == 0
    monkeypatch.setattr(os, "access", lambda *given, **more: False)
    assert main(argv) == 0 or name == "transfer", "what is done needs no writing"


# --- stopped, and gone on with -------------------------------------------------------------------------------------


def stopping(monkeypatch, every=1):
    """Ctrl-C after each so many-th piece that is kept; the list of these pieces."""
    saved, save = [], checkpoint.save

    def save_and_stop(path, content):
        save(path, content)
        if path.name.startswith("partial_"):
            saved.append(path)
            if len(saved) % every == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    return saved


@each_evaluation
def test_stopped_after_any_piece_and_started_again_gives_the_same(network, name, tmp_path, monkeypatch, capsys):
    """No piece is attacked again, and nothing is left behind."""
    main, argv = argv_of(name, network, test_size=40, batch_size=15)
    assert main(argv) == 0
    whole = results(network.parent)
    for path in [*network.parent.glob("eval_*"), *network.parent.glob("adv_*")]:
        path.unlink()
    saved = stopping(monkeypatch)
    statuses, said = [main(argv)], capsys.readouterr()
    while statuses[-1] == 130:
        assert not list(network.parent.glob("eval_autoattack*")) and list(network.parent.parent.glob("*/partial_*"))
        assert "the same command goes on" in said.err
        statuses.append(main(argv))
        said = capsys.readouterr()
        assert "going on with an evaluation that was stopped" in said.out or name == "transfer"
        assert len(statuses) < 20
    assert statuses[-1] == 0 and results(network.parent) == whole
    pieces = {"pgd": 3, "autoattack": 3, "gradient-free": 6}.get(name)
    assert len(saved) == (pieces or len(saved)) and not list(network.parent.parent.glob("*/partial_*"))
    assert len(set(saved)) == len(saved) or name in ("pgd", "transfer"), "of PGD a shard after each restart"


def stopped(run, monkeypatch, *flags, after=1):
    """What is kept of an evaluation that ends after so many pieces."""
    with monkeypatch.context() as patch:
        stopping(patch, after)
        assert attack(run, *flags) == 130
    return sorted(run.glob("partial_*"))


def test_several_shards_at_several_radii(run, tmp_path, monkeypatch):
    """Stopped after a restart of the second shard at the second radius: at most one restart of one shard is lost."""
    argv = ["--eps", 0.05, 0.1, "--batch_size", 7, "--save_adv"]
    whole = shutil.copytree(run, tmp_path / "whole")
    assert attack(whole, *argv) == 0
    monkeypatch.setattr(pgd_attacks, "SHARD", 15)
    assert len(stopped(run, monkeypatch, *argv, after=2 * 2 * 3 - 3)) == 5
    restarts, original = [], FastPgd.__call__

    def counted(fast, model, x, y, *, noise=None, **more):
        restarts.append(noise is not None)
        return original(fast, model, x, y, noise=noise, **more)

    monkeypatch.setattr(FastPgd, "__call__", counted)
    assert attack(run, *argv) == 0
    assert results(run) == results(whole) and not list(run.glob("partial_*"))
    assert sum(restarts) <= 3 * 3 + 3, "three restarts of two batches of survivors, and the sanity battery"
    images = [torch.load(folder / "adv_pgd_Linf.pt", weights_only=True)["x_adv"] for folder in (run, whole)]
    assert all(torch.equal(images[0][eps], images[1][eps]) for eps in (0.05, 0.1))


def test_damaged_pieces_are_attacked_again(run, tmp_path, monkeypatch):
    whole = shutil.copytree(run, tmp_path / "whole")
    assert attack(whole, "--eps", 0.1) == 0
    (path,) = stopped(run, monkeypatch, "--eps", 0.1)
    path.write_bytes(path.read_bytes()[:-9])
    assert attack(run, "--eps", 0.1) == 0 and results(run) == results(whole)


def test_what_is_kept_is_of_this_very_evaluation(run, monkeypatch, capsys):
    (path,) = stopped(run, monkeypatch, "--eps", 0.1)
    for flags in (["--seed", 1], ["--nb_iter", 6], ["--eps_iter", 0.1], ["--batch_size", 7], ["--save_adv"]):
        capsys.readouterr()
        assert attack(run, "--eps", 0.1, *flags) == 0 and path.exists()
        assert "going on" not in capsys.readouterr().out
    assert attack(run, "--eps", 0.1, "--overwrite", "--quiet") == 0 and not path.exists()


def test_a_finished_attack_that_cannot_be_written_is_not_made_again(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("evaluations.results.write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        assert attack(run, "--eps", 0.1) == 2
    assert "full: make room" in capsys.readouterr().err and list(run.glob("partial_*"))
    monkeypatch.setattr(pgd_attacks, "repeated_pgd", None)
    assert attack(run, "--eps", 0.1) == 0 and not list(run.glob("partial_*"))


def test_two_evaluations_at_once_on_one_folder(run, tmp_path, monkeypatch):
    """The second begins and ends while the first is at work: both results stay, and what fell at the smaller radius is
    fallen at the larger one."""
    alone = shutil.copytree(run, tmp_path / "alone")
    assert attack(alone, "--eps", 0.08, 0.1, "--save_adv") == 0
    original = pgd_attacks.repeated_pgd

    def meanwhile(*args, **more):
        monkeypatch.setattr(pgd_attacks, "repeated_pgd", original)
        assert attack(run, "--eps", 0.08, "--save_adv") == 0
        return original(*args, **more)

    monkeypatch.setattr(pgd_attacks, "repeated_pgd", meanwhile)
    assert attack(run, "--eps", 0.1, "--save_adv") == 0
    assert results(run) == results(alone)
    assert set(torch.load(run / "adv_pgd_Linf.pt", weights_only=True)["x_adv"]) == {0.08, 0.1}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_when_memory_ends_one_line_names_the_batch_size(run, capsys, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(pgd_attacks, "repeated_pgd", full)
    assert attack(run, "--eps", 0.1) == 2
    assert re.search("error: memory does not suffice.*: lower --batch_size", capsys.readouterr().err)
