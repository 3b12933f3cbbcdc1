"""The alarm: radii that rise while robust accuracy falls, and nothing else."""

import pytest

import train
from check import Checker
from command_lines import SMALL
from training.alarm import Alarm


def rows(mean_eps, robust):
    train = {"kind": "train", "step": 1, "mean_eps": mean_eps}
    return [
        train,
        {"kind": "eval", "split": "val", "step": 2, "robust_acc": robust},
        {"kind": "eval", "split": "test", "step": 2},
    ]


@pytest.mark.parametrize(
    ("second", "warns"),
    [((0.3, 0.5), True), ((0.3, 0.59), False), ((0.3, 0.7), False), ((0.1, 0.5), False), ((None, 0.5), False)],
)
def test_only_where_eps_rises_and_accuracy_falls(second, warns):
    alarm = Alarm(1000)
    assert alarm.look(rows(0.2, 0.6)) is None
    said = alarm.look(rows(*second))
    assert (said is not None) == warns
    if warns:
        assert "from 0.2000 to 0.3000" in said and "from 60.0% to 50.0%" in said


def test_over_several_calls_as_the_recorder_makes_them():
    alarm = Alarm(1000)
    for row in [*rows(0.2, 0.6), *rows(0.3, 0.61)]:
        assert alarm.look([row]) is None
    assert any(alarm.look([row]) for row in rows(0.35, 0.4))


def test_a_slow_slide_is_seen_against_the_best_check_and_few_images_waver_more():
    slide = [(0.2, 0.6), (0.21, 0.59), (0.22, 0.585), (0.23, 0.57)]
    thousand, hundred = Alarm(1000), Alarm(100)
    said = [thousand.look(rows(*each)) for each in slide]
    assert said[:3] == [None] * 3 and "fell from 60.0% to 57.0%" in said[3]
    assert not any(hundred.look(rows(*each)) for each in slide) and hundred.look(rows(0.24, 0.5))


def test_a_run_says_it_on_standard_error_also_when_it_was_resumed_in_between(tmp_path, capsys, monkeypatch):
    """The check before the stop was better, and the radii smaller, than the one after it."""
    found = iter([0.9, 0.8, 0.1, 0.1])  # val and test, twice
    measured = Checker.go_on

    def go_on(self, *args):
        figures, begun = measured(self, *args)
        return figures._replace(robust_acc=next(found)), begun

    monkeypatch.setattr(Checker, "go_on", go_on)
    argv = [*SMALL, "--check_interval", "3", "--savepath", str(tmp_path / "run")]
    assert train.main([*argv, "--max_steps", "12"]) == 0
    assert "training's mean eps rose" not in capsys.readouterr().err
    assert train.main([*argv, "--max_steps", "24", "--resume"]) == 0
    assert "training's mean eps rose" in capsys.readouterr().err
