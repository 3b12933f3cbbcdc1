"""Which check's network is kept: of the largest mean margin, or of the largest robust accuracy; also when resumed."""

import shlex

import pytest

import train
from tiny_runs import Memory, tiny_trainer

# (mean margin, robust accuracy) of each check: the two disagree, and a tie is none that is better.
FIGURES = [(0.3, 0.10), (0.2, 0.40), (0.4, 0.20), (0.5, 0.40)]
WANTED = {"mean_margin": [4, 12, 16], "robust_acc": [4, 8]}
SMALL = shlex.split("--dataset digits --norm Linf --hinge_maxeps 0.3 --device cpu --nb_iter 2 --quiet")
SMALL += shlex.split("--train_size 100 --test_size 0 --batch_size 50 --max_steps 4 --num_search_steps 3")


def with_figures(best_by, memory, monkeypatch):
    trainer = tiny_trainer(16, best_by=best_by)

    def rows(config, model, data, step, *_, **how):
        margin, robust = FIGURES[step // 4 - 1]
        return [
            {
                "kind": "eval",
                "split": "val",
                "step": step,
                "epoch": 1,
                "mean_margin": margin,
                "robust_acc": robust,
                "check_passes": step,
            },
            {
                "kind": "eval",
                "split": "test",
                "step": step,
                "epoch": 1,
                "mean_margin": 9.0,
                "robust_acc": 1.0,
                "check_passes": step,
            },
        ]

    monkeypatch.setattr("trainer.check_rows", rows)
    return trainer


@pytest.mark.parametrize("stop_at", [None, 10])
@pytest.mark.parametrize("best_by", WANTED)
def test_the_best_by_each_figure(best_by, stop_at, monkeypatch):
    memory = Memory()
    trainer = with_figures(best_by, memory, monkeypatch)
    if stop_at:
        trainer.run(memory, lambda: trainer.step >= stop_at)
        trainer = with_figures(best_by, memory, monkeypatch)
        trainer.restore(memory.states[-1])
    trainer.run(memory, lambda: False)
    assert [step for step, _ in memory.bests] == WANTED[best_by]
    assert trainer.best == max(figures[best_by == "robust_acc"] for figures in FIGURES)


def test_the_end_of_a_run_and_the_card_say_which(tmp_path, capsys):
    from reports.model_card import card

    folder = tmp_path / "digits-Linf-MMA-0.3-sd0"
    assert train.main([*SMALL, "--savepath", str(folder), "--best_by", "robust_acc"]) == 0
    assert "best robust accuracy on validation images " in capsys.readouterr().out
    assert "| network kept | of the check with the largest robust accuracy on validation images |" in card(folder)
