"""`--recipe fast`: what it sets, under which name, and that nothing of it is on in the published settings."""

import dataclasses
import re
import subprocess

import pytest

from config import PRESETS, Config, one_cycle
from flags import parse_train
from presets import FAST, MMA_ONLY
from settings.validation import stored_config
from support import ROOT

MNIST = ["--dataset", "mnist", "--norm", "Linf"]


def test_the_published_settings_have_no_part_of_it():
    off = {
        "recipe": "paper",
        "search": "bisection",
        "keep_directions": False,
        "refresh_interval": 0,
        "rest_interval": 1,
    }
    off |= {"one_cycle": False, "cycle_steps": None, "average_decay": None, "check_nb_iter": None, "check_interval": 1}
    off |= {"check_size": None, "test_at_end": False, "precision": "fp32"}
    for preset in PRESETS.values():
        assert {name: getattr(preset, name) for name in off} == off


def test_it_stands_in_the_name_and_each_part_is_a_flag():
    config, notes = parse_train([*MNIST, "--hinge_maxeps", "0.45", "--recipe", "fast", "--nb_iter", "9"])
    assert config.run_name == "mnist-Linf-MMA-0.45-sd0-fast" and not notes
    wanted = FAST["mnist", "Linf"] | {"nb_iter": 9}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.cycle_steps == config.max_steps and config.check_search_steps == 10
    assert set(wanted) <= {f.name for f in dataclasses.fields(Config)}


def test_old_configs_read_as_paper():
    stored = {
        name: value for name, value in PRESETS["mnist", "Linf"].to_dict().items() if name not in FAST["mnist", "Linf"]
    }
    stored |= {"lr": [[0, 1e-4]], "hinge_maxeps": 0.45, "batch_size": 50}
    stored.pop("recipe")
    assert stored_config(stored).recipe == "paper" and stored_config(stored).search == "bisection"


def test_what_has_no_meaning_is_left_out_and_said():
    config, notes = parse_train([*MNIST, "--method", "std", "--recipe", "fast"])
    assert config.one_cycle and not config.keep_directions and config.run_name == "mnist-Linf-STD-sd0-fast"
    assert len(notes) == 1 and all(name in notes[0] for name in MMA_ONLY if name in FAST["mnist", "Linf"])


def test_where_it_was_never_tried_it_says_so_and_goes_on():
    config, notes = parse_train(["--dataset", "imagefolder", "--norm", "L2", "--hinge_maxeps", "1", "--recipe", "fast"])
    assert config.recipe == "fast" and "never tried with imagefolder L2" in notes[0]
    _, notes = parse_train([*MNIST, "--hinge_maxeps", "0.45", "--recipe", "fast", "--network", "wrn28_4"])
    assert "never tried with --network wrn28_4" in notes[0]


def test_one_cycle_rises_to_the_peak_and_falls_towards_nothing():
    rates = [one_cycle(step, 100, 2.0) for step in range(120)]
    top = rates.index(max(rates))
    assert 18 <= top <= 21 and max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(0.05) and 0 < rates[99] < 0.01 and rates[119] == rates[100] > 0


def test_runs_of_the_script_stand_under_their_names():
    """Every `run NAME FLAGS` of scripts/run_mnist_fast.sh, with its loops' variables put in."""
    script = ROOT / "scripts" / "run_mnist_fast.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = re.findall(r"^ +run (\S+) (.*)$", script.read_text(), flags=re.MULTILINE)
    assert len(lines) == 11
    for name, flags in lines:
        for variable, value in (("$d_max", "4.0"), ("$seed", "2")):
            name, flags = name.replace(variable, value), flags.replace(variable, value)
        config, _ = parse_train(["--dataset", "mnist", "--recipe", "fast", *flags.split()])
        assert config.run_name == name
