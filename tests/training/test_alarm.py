"""The alarm: radii that rise while robust accuracy falls in two checks in a row, by more than chance, and nothing else."""

from dataclasses import replace

import pytest

import train
import trainer
from command_lines import SMALL
from config import PRESETS
from records.recorder import Alarm

CONFIG = PRESETS["digits", "Linf"]


def rows(mean_eps, robust):
    train = {"kind": "train", "step": 1, "mean_eps": mean_eps}
    return [
        train,
        {"kind": "eval", "split": "val", "step": 2, "robust_acc": robust},
        {"kind": "eval", "split": "test", "step": 2},
    ]


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
