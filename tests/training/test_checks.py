"""What follows from the checks of a run, also of a resumed one: which network is kept, and the alarm."""

import re
from dataclasses import replace

import pytest
import torch

import train
import trainer
from command_lines import SMALL
from config import PRESETS
from flags import parse_train
from records.recorder import Alarm
from reports.model_card import card
from tiny_runs import Memory, tiny_trainer

# Of each check: they disagree, and a tie is none that is better.
FIGURES = {"mean_margin": [0.3, 0.2, 0.4, 0.5], "robust_acc": [0.1, 0.4, 0.2, 0.4], "clean_acc": [0.9, 0.8, 0.9, 0.95]}
WANTED = {"mean_margin": [4, 12, 16], "robust_acc": [4, 8], "clean_acc": [4, 16]}


@pytest.fixture
def given_figures(monkeypatch):
    """Every check finds these figures."""

    def rows(config, model, data, step, *_, **__):
        figures = {name: values[step // 4 - 1] for name, values in FIGURES.items()}
        row = {"kind": "eval", "step": step, "check_passes": 1}
        return [{**row, "split": "val", **figures}, {**row, "split": "test", **dict.fromkeys(FIGURES, 9.0)}]

    monkeypatch.setattr("trainer.check_rows", rows)


@pytest.mark.parametrize("stop_at", [None, 10])
@pytest.mark.parametrize("best_by", WANTED)
def test_the_best_by_each_figure(given_figures, best_by, stop_at):
    memory, run = Memory(), tiny_trainer(16, best_by=best_by)
    if stop_at:
        run.run(memory, lambda: run.step >= stop_at)
        run = tiny_trainer(16, best_by=best_by)
        run.restore(memory.states[-1])
    run.run(memory, lambda: False)
    assert [step for step, _ in memory.bests] == WANTED[best_by]
    assert run.best == (True, max(FIGURES[best_by]))


def test_one_class_for_all_images_is_kept_only_while_there_is_nothing_else(monkeypatch, given_figures):
    """Where it is right its margins are the largest there can be."""
    monkeypatch.setitem(FIGURES, "mean_margin", [0.5, 0.2, 0.9, 0.1])
    monkeypatch.setitem(FIGURES, "clean_acc", [0.4, 0.9, 0.4, 0.95])
    memory, run = Memory(), tiny_trainer(16)
    run.data.val.labels.copy_(torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3]))
    assert run.by_guessing == pytest.approx(1 / 3 + 2 * (2 / 81) ** 0.5)
    run.run(memory, lambda: False)
    assert [step for step, _ in memory.bests] == [4, 8] and run.best == (True, 0.2)


def test_std_keeps_the_network_of_the_best_clean_accuracy():
    given = ["--dataset", "digits", "--norm", "Linf"]
    for recipe in ("paper", "fast"):
        kept = {m: parse_train([*given, "--recipe", recipe, "--method", m])[0].best_by for m in ("std", "pgd")}
        assert kept == {"std": "clean_acc", "pgd": "mean_margin"}
    assert parse_train([*given, "--method", "std", "--best_by", "mean_margin"])[0].best_by == "mean_margin"


def test_the_end_of_a_run_and_the_card_say_which(tmp_path, capsys):
    folder = tmp_path / "digits-Linf-MMA-0.3-sd0"
    assert train.main([*SMALL, "--max_steps", "4", "--savepath", str(folder), "--best_by", "robust_acc"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"kept is the network of step [24], of the best robust accuracy on validation images: clean \d", said
    )
    assert "| network kept | of the check with the largest robust accuracy on validation images |" in card(folder)


# --- the alarm: radii rise while robust accuracy falls in two checks in a row, by more than chance ------------------------

CONFIG = PRESETS["digits", "Linf"]


def rows(mean_eps, robust):
    check = {"kind": "eval", "split": "val", "step": 2, "robust_acc": robust}
    return [{"kind": "train", "step": 1, "mean_eps": mean_eps}, check, {"kind": "eval", "split": "test", "step": 2}]


@pytest.mark.parametrize(
    ("checks", "images", "warns"),
    [
        ([(0.2, 0.6), (0.3, 0.5), (0.3, 0.5)], 1000, True),
        ([(0.2, 0.6), (0.3, 0.51), (0.3, 0.51)], 200, False),  # nine points of 200 images are chance
        ([(0.2, 0.6), (0.3, 0.4), (0.3, 0.4)], 200, True),
        ([(0.2, 0.6), (0.3, 0.5), (0.3, 0.61), (0.3, 0.5)], 1000, False),  # a single one each time
        ([(0.2, 0.6), (0.3, 0.58), (0.3, 0.57)], 1000, False),
        ([(0.2, 0.6), (0.3, 0.7), (0.3, 0.7)], 1000, False),
        ([(0.2, 0.6), (0.1, 0.5), (0.1, 0.5)], 1000, False),
        ([(0.2, 0.6), (None, 0.5), (None, 0.5)], 1000, False),
        ([(0.2, 0.6), (0.21, 0.59), (0.22, 0.56), (0.23, 0.54), (0.24, 0.53)], 1000, True),  # a slide, against the best
    ],
)
def test_only_where_eps_rises_and_accuracy_falls_twice_in_a_row(checks, images, warns):
    alarm = Alarm(CONFIG, images)
    said = [alarm.look(rows(*check)) for check in checks]
    assert not any(said[:-1]) and (said[-1] is not None) == warns
    together = Alarm(CONFIG, images).look([row for check in checks for row in rows(*check)])
    assert together == said[-1], "as one looks at the rows of a run that is resumed"
    if warns and images == 1000:
        assert "training's mean eps rose from 0.2000" in said[-1] and "fell from 60.0% to" in said[-1]


@pytest.mark.parametrize("method", ["pgd", "trades", "pgdls", "std"])
def test_radii_that_training_does_not_choose_say_nothing(method):
    """Means of one radius differ in the last digit, and pgdls' rise by a schedule."""
    alarm = Alarm(replace(CONFIG, method=method), 1000)
    checks = [(0.2, 0.6), (0.2 + 1e-12, 0.4), (0.3, 0.4), (0.3, 0.4)]
    assert all(alarm.look(rows(*check)) is None for check in checks)


@pytest.mark.parametrize("refresh", [0, 8])
def test_only_remedies_that_the_recipe_has_are_named(refresh):
    alarm = Alarm(replace(CONFIG, keep_directions=refresh > 0, refresh_interval=refresh), 1000)
    for check in ((0.2, 0.6), (0.3, 0.4), (0.3, 0.4)):
        said = alarm.look(rows(*check))
    assert "raise --nb_iter, or lower --lr" in said and ("--refresh_interval" in said) == (refresh > 0)


def test_a_run_says_it_on_standard_error_also_when_it_was_resumed_in_between(tmp_path, capsys, monkeypatch):
    """The check before the stop was better, and the radii smaller, than those after it."""
    found, measured = iter([0.9, 0.1, 0.1]), trainer.check_rows

    def rows(*given, **how):
        robust = next(found)
        return [{**row, "robust_acc": robust} for row in measured(*given, **how)]

    monkeypatch.setattr(trainer, "check_rows", rows)
    argv = [*SMALL, "--check_interval", "3", "--savepath", str(tmp_path / "run")]
    assert train.main([*argv, "--max_steps", "24"]) == 0
    assert "training's mean eps rose" not in capsys.readouterr().err
    assert train.main([*argv, "--max_steps", "36", "--resume"]) == 0
    assert "training's mean eps rose" in capsys.readouterr().err
