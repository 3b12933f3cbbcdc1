"""BatchNorm's statistics of the averaged weights: estimated anew before each check, the same when resumed and on two processes."""

import copy

import pytest
import torch
from torch import nn

from ranks import in_processes
from tiny_runs import Memory, network, settings, tiny_data, tiny_trainer
from training import averaging

CHANGES = {"average_decay": 0.9, "augment": True}


def plain_statistics(trainer, first, last):
    """(mean, unbiased variance) of the first BatchNorm's input, each a mean over the batches of these steps."""
    conv, seen = trainer.checked_model[0], []
    for step in range(first, last):
        x = conv(trainer.batches(step).x).detach().transpose(0, 1).flatten(1)
        seen.append(torch.stack([x.mean(1), x.var(1)]))
    return torch.stack(seen).mean(0)


@pytest.mark.parametrize("count", [3, 40])
def test_they_are_the_means_over_the_last_training_batches(monkeypatch, count):
    monkeypatch.setattr(averaging, "BATCHES", count)
    trainer, memory = tiny_trainer(8, **CHANGES), Memory()
    trainer.run(memory, lambda: False)
    norm = trainer.checked_model[1]
    mean, variance = plain_statistics(trainer, max(8 - count, 0), 8)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == trainer.model[1].momentum == 0.1 and norm.num_batches_tracked == min(count, 8)
    assert not torch.equal(norm.running_mean, trainer.model[1].running_mean)


def test_they_are_what_is_checked_and_kept_and_their_passes_are_the_checks(monkeypatch):
    trainer, memory, kept = tiny_trainer(4, **CHANGES), Memory(), []
    memory.best = lambda trainer, metrics: kept.append(copy.deepcopy(trainer.checked_model.state_dict()))
    trainer.run(memory, lambda: False)
    mean, variance = plain_statistics(trainer, 0, 4)
    (best,) = kept
    torch.testing.assert_close(best["1.running_mean"], mean)
    torch.testing.assert_close(best["1.running_var"], variance)
    checked = [row for row in memory.lines if row["kind"] == "eval"]
    (again, *_) = trainer.epoch_check.rows(4, 1, lambda: False)
    assert again["mean_margin"] == checked[0]["mean_margin"]
    monkeypatch.setattr(averaging.WeightAverage, "re_estimate", lambda *_: 0)
    other, lines = tiny_trainer(4, **CHANGES), Memory()
    other.run(lines, lambda: False)
    without = [row for row in lines.lines if row["kind"] == "eval"]
    attacked = round(9 * checked[0]["clean_acc"]) - round(9 * without[0]["clean_acc"])
    each = other.epoch_check.config.nb_iter + 1 + other.config.num_search_steps
    assert checked[0]["check_passes"] - without[0]["check_passes"] == 23 + each * attacked
    assert trainer.passes == other.passes


def test_passes_are_counted_once_for_a_check_that_was_stopped():
    whole, straight = tiny_trainer(8, **CHANGES), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(8, **CHANGES), Memory()
    asked = iter([False] * 6 + [True] * 99)  # before each step, then within the check
    assert not first.run(memory, lambda: next(asked))
    assert first.step == 4 and not [row for row in memory.lines if row["kind"] == "eval"]
    second = tiny_trainer(8, **CHANGES)
    second.restore(memory.states[-1])
    second.run(memory, lambda: False)
    assert straight.lines[-1] == memory.lines[-1]
    for name, value in whole.checked_model.state_dict().items():
        assert torch.equal(value, second.checked_model.state_dict()[name]), name


def test_without_batchnorm_nothing_is_estimated():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    trainer = tiny_trainer(4, model=model, average_decay=0.9)
    trainer.train_step()
    before = copy.deepcopy(trainer.average.state_dict())
    assert trainer.average.re_estimate(trainer.batches, 1, trainer.world) == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.average.state_dict().items())


def test_dropout_before_a_batchnorm_is_drawn_by_seed_and_step():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    trainer, found = tiny_trainer(4, model=model, **CHANGES), []
    for step in (3, 3, 2):
        trainer.average.re_estimate(trainer.batches, step, trainer.world)
        found.append(trainer.checked_model[2].running_var.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def _of_two(local_bn):
    from processes.distributed import device_of
    from trainer import Trainer

    with device_of("cpu", False) as (world, _):
        config = settings("Linf", 1 / 3, batch_size=6, max_steps=8, lr=((0, 1e-7),), local_bn=local_bn, **CHANGES)
        trainer = Trainer(config, network().float(), tiny_data(), world)
        for _ in range(6):
            trainer.train_step()
        passes = trainer.average.re_estimate(trainer.batches, 6, world)
        return trainer.checked_model[1].state_dict(), passes


@pytest.mark.slow
def test_two_processes_estimate_what_one_does():
    one, passes = in_processes(1, _of_two, False)[0]
    assert passes == 6 + 6 + 6 + 5 + 6 + 6
    for state, of_two in in_processes(2, _of_two, False):
        assert of_two == passes
        for name, value in one.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    first, second = in_processes(2, _of_two, True)  # of each one's slices: the first one's count
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
