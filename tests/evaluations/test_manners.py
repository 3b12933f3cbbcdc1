"""The manners of the long evaluations: quiet, a line now and then in a log, closing lines that can be run, `--config`."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import evaluate_on_transfer
import two_way
from command_lines import fails
from errors import exits_on_user_error
from records import progress
from records.commands import ROOT, command, interpreter
from two_way import arguments

digits, elsewhere, network = two_way.digits, two_way.elsewhere, two_way.network  # fixtures
EVALUATIONS = {
    "pgd": (evaluate_on_pgd_attacks.main, {"eps": 0.2, "nb_iter": 4, "nb_restart": 2}),
    "autoattack": (evaluate_on_autoattack.main, {"eps": 0.2, "attacks": "apgd-ce"}),
    "gradient-free": (evaluate_on_gradient_free_attacks.main, {"square_queries": 9, "spsa_iter": 1, "spsa_samples": 2}),
    "minimum norm": (evaluate_on_minimum_norm.main, {"steps": 6}),
    "transfer": (evaluate_on_transfer.main, {"eps": 0.2, "nb_iter": 4, "nb_restart": 2}),
}
each_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


def argv_of(name, network, **more):
    main, flags = EVALUATIONS[name]
    argv = arguments(network, test_size=60, batch_size=10, **flags, **more)
    if name == "transfer":
        other = shutil.copytree(network.parent, network.parent.with_name("other net"), dirs_exist_ok=True)
        at = argv.index("--model")
        argv = [str(network), str(other / network.name), *argv[:at], *argv[at + 2 :]]
    return main, argv


@each_evaluation
def test_quiet_leaves_the_closing_lines(network, name, capsys):
    main, argv = argv_of(name, network)
    assert main([*argv, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not re.search("at most about|not given|made first|AN-PGD on", out)
    assert "written: " in out and ("accuracy" in out or "median" in out)
    assert main([*argv, "--overwrite"]) == 0
    assert re.search("at most about|made first|the test radius", capsys.readouterr().out) or name == "transfer"


@each_evaluation
def test_a_folder_that_cannot_be_written_is_refused_before_the_attack(network, name, capsys, monkeypatch):
    main, argv = argv_of(name, network)
    before = sorted(network.parent.iterdir())
    monkeypatch.setattr(os, "access", lambda *given, **more: False)
    fails(capsys, main, argv, str(network.parent), "copy it into a folder of yours")
    assert sorted(network.parent.iterdir()) == before


def test_ctrl_c_says_how_to_go_on(capsys):
    @exits_on_user_error
    def main() -> int:
        raise KeyboardInterrupt

    assert main() == 130 and "the same command goes on" in capsys.readouterr().err


@each_evaluation
def test_the_last_line_is_a_command_that_can_be_run(network, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    main, argv = argv_of(name, network)
    assert main(argv) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(last.partition(": ")[2])
    assert words[0] == interpreter() and Path(words[1]).resolve().parent in (ROOT, ROOT / "reports")
    expected = {"pgd": "evaluate_on_autoattack.py", "transfer": "make_report.py"}
    assert Path(words[1]).name == expected.get(name, "evaluate_on_pgd_attacks.py")
    named = [word for word in words if word in (str(network), str(network.parent))]
    assert named and (name == "transfer" or "--dataset digits --norm Linf --network two_way:TwoWay" in " ".join(words))


@each_evaluation
def test_in_a_log_short_work_leaves_no_line_and_long_work_whole_ones(network, name, capsys, monkeypatch):
    main, argv = argv_of(name, network)
    assert main(argv) == 0 and capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    assert main([*argv, "--overwrite"]) == 0
    err = capsys.readouterr().err
    assert "\r" not in err
    assert all(re.match(r"\d+ of \d+ (images|attacks|replays), ", line) for line in err.splitlines()) and err


def test_how_long_the_rest_takes_is_said_after_the_first_shard(network, capsys, monkeypatch):
    monkeypatch.setattr(progress, "MEASURED_FOR", 0.0)
    monkeypatch.setattr(progress, "WORTH_SAYING", 0.0)
    main, argv = argv_of("autoattack", network)
    assert main(argv) == 0
    assert "for the 50 images left" in capsys.readouterr().out


def test_stopped_by_the_clock_it_says_how_to_go_on(network, capsys):
    main, argv = argv_of("pgd", network, max_minutes=0.001)
    assert main(argv) == 75
    assert capsys.readouterr().out.splitlines()[-1].endswith(command("evaluate_on_pgd_attacks.py", *argv))


@each_evaluation
def test_flags_in_a_file(network, name, capsys, tmp_path):
    main, argv = argv_of(name, network)
    at = argv.index("--test_size")
    file = tmp_path / "mine.toml"
    file.write_text("test_size = 20\nbatch_size = 7\nquiet = true\n")
    given = [*argv[:at], *argv[at + 2 :], "--config", str(file)]
    assert main(given) == 0
    out, err = capsys.readouterr()
    assert err == "" and ("20 test images" in out or name == "minimum norm")
    file.write_text("tets_size = 20\n")
    fails(capsys, main, given, "unknown name tets_size", "did you mean test_size?")
