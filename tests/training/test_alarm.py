"""The alarm: radii that rise while robust accuracy falls, and nothing else."""

import pytest

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
    alarm = Alarm()
    assert alarm.look(rows(0.2, 0.6)) is None
    said = alarm.look(rows(*second))
    assert (said is not None) == warns
    if warns:
        assert "from 0.2000 to 0.3000" in said and "from 60.0% to 50.0%" in said


def test_over_several_calls_as_the_recorder_makes_them():
    alarm = Alarm()
    for row in [*rows(0.2, 0.6), *rows(0.3, 0.61)]:
        assert alarm.look([row]) is None
    assert any(alarm.look([row]) for row in rows(0.35, 0.4))
