"""Which check's network is kept: of the largest mean margin, or of the largest robust accuracy; also when resumed."""

import re
import shlex

import pytest

import train
from flags import parse_train
from tiny_runs import Memory, tiny_trainer

# Of each check: they disagree, and a tie is none that is better.
FIGURES = {"mean_margin": [0.3, 0.2, 0.4, 0.5], "robust_acc": [0.1, 0.4, 0.2, 0.4], "clean_acc": [0.9, 0.8, 0.9, 0.95]}
WANTED = {"mean_margin": [4, 12, 16], "robust_acc": [4, 8], "clean_acc": [4, 16]}
SMALL = shlex.split("--dataset digits --norm Linf --hinge_maxeps 0.3 --device cpu --nb_iter 2 --quiet")
SMALL += shlex.split("--train_size 100 --test_size 0 --batch_size 50 --max_steps 4 --num_search_steps 3")


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
    memory, trainer = Memory(), tiny_trainer(16, best_by=best_by)
    if stop_at:
        trainer.run(memory, lambda: trainer.step >= stop_at)
        trainer = tiny_trainer(16, best_by=best_by)
        trainer.restore(memory.states[-1])
    trainer.run(memory, lambda: False)
    assert [step for step, _ in memory.bests] == WANTED[best_by]
    assert trainer.best == max(FIGURES[best_by])


def test_std_keeps_the_network_of_the_best_clean_accuracy():
    given = ["--dataset", "digits", "--norm", "Linf"]
    for recipe in ("paper", "fast"):
        kept = {m: parse_train([*given, "--recipe", recipe, "--method", m])[0].best_by for m in ("std", "pgd")}
        assert kept == {"std": "clean_acc", "pgd": "mean_margin"}
    assert parse_train([*given, "--method", "std", "--best_by", "mean_margin"])[0].best_by == "mean_margin"


def test_the_end_of_a_run_and_the_card_say_which(tmp_path, capsys):
    from reports.model_card import card

    folder = tmp_path / "digits-Linf-MMA-0.3-sd0"
    assert train.main([*SMALL, "--savepath", str(folder), "--best_by", "robust_acc"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"kept is the network of step [24], of the best robust accuracy on validation images: clean \d", said
    )
    assert "| network kept | of the check with the largest robust accuracy on validation images |" in card(folder)
