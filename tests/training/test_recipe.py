"""`--recipe fast`: what it sets, under which name, and that nothing of it is on in the published settings."""

import dataclasses
import json

import pytest

from config import PRESETS, Config, one_cycle
from flags import parse_train
from presets import ATTACK_ONLY, FAST, MMA_ONLY

MNIST, MMA = ["--dataset", "mnist", "--norm", "Linf"], ["--hinge_maxeps", "0.45", "--recipe", "fast"]


def test_the_published_settings_have_no_part_of_it():
    off = {"recipe": "paper", "search": "bisection", "rest_interval": 1, "check_interval": 1, "precision": "fp32"}
    off |= dict.fromkeys(("keep_directions", "step_decay", "one_cycle", "test_at_end"), False)
    off |= {"refresh_interval": 0, "odi_steps": 0, "cycle_steps": None, "check_nb_iter": None, "check_size": None}
    for preset in PRESETS.values():
        assert {name: getattr(preset, name) for name in off} == off


def test_it_stands_in_the_name_and_each_part_is_a_flag():
    config, notes = parse_train([*MNIST, *MMA, "--nb_iter", "9"])
    assert config.run_name == "mnist-Linf-MMA-0.45-sd0-fast" and not notes
    wanted = FAST["mnist", "Linf"] | {"nb_iter": 9}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.cycle_steps == config.max_steps and config.check_search_steps == 10
    assert set(wanted) <= {f.name for f in dataclasses.fields(Config)}


def test_what_has_no_meaning_is_left_out_and_said():
    config, notes = parse_train([*MNIST, "--method", "std", "--recipe", "fast"])
    assert config.one_cycle and not config.keep_directions and config.run_name == "mnist-Linf-STD-sd0-fast"
    assert len(notes) == 1 and all(
        name in notes[0] for name in (*MMA_ONLY, *ATTACK_ONLY) if name in FAST["mnist", "Linf"]
    )


@pytest.mark.parametrize("method", ["pgd", "pgdls", "trades", "mma", "omma"])
def test_methods_at_one_eps_take_ten_equal_steps_from_noise_and_mma_six_that_decay(method):
    radius = "--hinge_maxeps" if "mma" in method else "--train_eps"
    config, _ = parse_train([*MNIST, "--method", method, radius, "0.3", "--recipe", "fast"])
    assert (config.nb_iter, config.step_decay, config.odi_steps) == (
        (6, True, 6) if "mma" in method else (10, False, 0)
    )


def test_what_belongs_together_goes_together():
    """Without warm starts none is refreshed; alpha = 1 is standard training; the one-cycle peak is the largest published rate."""
    config, _ = parse_train([*MNIST, *MMA, "--no-keep_directions"])
    assert not config.keep_directions and config.refresh_interval == 0
    config, notes = parse_train([*MNIST, "--clean_loss_coeff", "1", "--recipe", "fast"])
    assert config.method == "std" and not config.keep_directions and "no meaning with --method std" in notes[0]
    given = ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "8/255", "--one_cycle"]
    assert parse_train(given)[0].lr == ((0, 0.3),) and parse_train([*given, "--lr", "0.1"])[0].lr == ((0, 0.1),)
    read = [parse_train([*MNIST, *MMA, *more]) for more in ([], ["--search", "bisection"], ["--no-keep_directions"])]
    assert [config.num_search_steps for config, _ in read] == [4, 10, 4] and not any(notes for _, notes in read)


def test_where_it_was_never_tried_it_says_so_and_goes_on():
    config, notes = parse_train(["--dataset", "imagefolder", "--norm", "L2", "--hinge_maxeps", "1", "--recipe", "fast"])
    assert config.recipe == "fast" and "never tried with imagefolder L2" in notes[0]
    _, notes = parse_train([*MNIST, *MMA, "--network", "wrn28_4"])
    assert "never tried with mnist Linf --network wrn28_4" in notes[0]


CIFAR = ["--dataset", "imagefolder", "--norm", "Linf", "--recipe", "fast"]


@pytest.mark.parametrize("network", ["small_resnet", "wrn28_4"])
def test_cifar_10_methods_have_about_the_same_passes(network):
    """An image goes twice through the network in MMA and, where p_y > 1/2, N + 4 times more; N + 1 times in PGD; N + 3 in TRADES."""
    found = {}
    for method in ("mma", "omma", "pgd", "pgdls", "trades", "std"):
        eps = ["--hinge_maxeps", "20/255"] if "mma" in method else []
        config, notes = parse_train([*CIFAR, "--method", method, "--network", network, *eps])
        steps, share = config.nb_iter, SHARE[network]
        each = {"mma": 2 + share * (steps + 4), "pgd": steps + 1, "trades": steps + 3}
        like = {"omma": "mma", "pgdls": "pgd"}.get(method, method)
        found[method] = config.max_steps * config.batch_size * each.get(like, 1)
        assert config.weight_decay == 5e-4 and config.one_cycle and config.optimizer == "sgd" and config.augment
        assert config.best_by == ("clean_acc" if method == "std" else "robust_acc")
        assert any("was never tried" in note for note in notes) == (network == "wrn28_4")
        steps = config.max_steps
    assert steps == parse_train([*CIFAR, "--hinge_maxeps", "8/255", "--network", network])[0].max_steps
    passes = [value for method, value in found.items() if method != "std"]
    assert max(passes) < 1.1 * min(passes)


# Of images with p_y > 1/2 over a run, as docs/speed.md has it.
SHARE = {"small_resnet": 0.6, "wrn28_4": 0.8}


@pytest.mark.parametrize("dataset", ["cifar10", "imagefolder"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_part_on_cifar_10_can_be_switched_off(dataset, norm):
    off = "--no-one_cycle --lr 0:0.3 --weight_decay 2e-4 --nb_iter 10 --no-keep_directions --refresh_interval 0 --search bisection"
    off += " --search_mode train --num_search_steps 10 --rest_interval 1 --best_by mean_margin --precision fp32 --batch_size 128"
    given = ["--dataset", dataset, "--norm", norm, "--hinge_maxeps", "0.6", "--max_steps", "99"]
    config, _ = parse_train([*given, "--recipe", "fast", *off.split()])
    paper, _ = parse_train([*given, "--lr", "0.3"])
    checks = {"recipe", "check_nb_iter", "check_interval", "check_size", "test_at_end"}
    checks |= {"test_size"} if dataset == "cifar10" else set()  # a folder may have few
    differ = {name for name, value in config.to_dict().items() if value != getattr(paper, name)}
    assert differ - {"by_images"} == checks


def test_a_config_of_a_run_by_the_recipe_says_nothing_that_the_recipe_says(tmp_path):
    """`--config FOLDER --method pgd`: PGD's steps and nb_iter, not MMA's."""
    config, _ = parse_train([*CIFAR, "--network", "small_resnet", "--hinge_maxeps", "20/255"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    again, _ = parse_train(["--config", str(tmp_path)])
    assert again == config
    other, _ = parse_train(["--config", str(tmp_path), "--method", "pgd"])
    pgd, _ = parse_train([*CIFAR, "--network", "small_resnet", "--method", "pgd"])
    assert (other.nb_iter, other.max_steps, other.search_mode) == (3, pgd.max_steps, "train")


def test_one_cycle_rises_to_the_peak_and_falls_towards_nothing():
    rates = [one_cycle(step, 100, 2.0) for step in range(120)]
    top = rates.index(max(rates))
    assert 18 <= top <= 21 and max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == pytest.approx(0.05) and 0 < rates[99] < 0.01 and rates[119] == rates[100] > 0
