"""Kept directions: eight bits a pixel, the same after a round through the file, and where an attack that starts there is."""

import copy
from dataclasses import replace

import pytest
import torch

from errors import UserError
from flags import parse_train
from pgd import GEOMETRY, noise_towards
from ranks import in_processes
from tiny_runs import Memory, network, rand, tiny_trainer
from training.directions import LEVELS, KeptDirections, Stored, decode, encode

RECIPE = {"keep_directions": True, "refresh_interval": 3, "search": "secant", "num_search_steps": 4, "rest_interval": 3}


def some(norm, count=7):
    directions = 2 * rand(count, 1, 8, 8, dtype=torch.float32) - 1
    return directions if norm == "Linf" else 0.9 * directions / directions.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_decoded_is_within_half_a_level_and_under_l2_of_the_same_length(norm):
    directions = some(norm)
    back = decode(encode(directions), norm)
    scale = directions.abs().flatten(1).amax(1)[:, None, None, None]
    assert ((back - directions).abs() <= (0.6 if norm == "L2" else 0.5001) * scale / LEVELS).all()
    if norm == "L2":
        torch.testing.assert_close(back.flatten(1).norm(dim=1), directions.flatten(1).norm(dim=1))
    assert torch.equal(decode(encode(torch.zeros(2, 1, 3, 3)), norm), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_starts_at_the_image_plus_eps_times_the_direction(norm):
    x, eps, directions = 0.3 + 0.4 * rand(7, 1, 8, 8, dtype=torch.float32), torch.full((7,), 0.1), some(norm)
    start = GEOMETRY[norm].start(x, eps, noise_towards(norm, x, eps, directions))
    torch.testing.assert_close(start, x + 0.1 * directions, rtol=0, atol=1e-6)


def test_only_rows_with_a_new_direction_are_written_and_none_of_a_step_that_was_taken_back():
    table = KeptDirections(5, (1, 8, 8), "Linf", torch.device("cpu"))
    new = some("Linf", 2)
    new[1] = 0
    table.write(torch.tensor([3, 1]), encode(new), torch.tensor(False))
    assert not table.kept(torch.arange(5)).any()
    table.write(torch.tensor([3, 1]), encode(new), torch.tensor(True))
    assert table.kept(torch.arange(5)).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match="of 4 images, and there are 5"):
        table.load_state_dict(KeptDirections(4, (1, 8, 8), "Linf", torch.device("cpu")).state_dict())


@pytest.mark.parametrize("average_decay", [None, 0.9])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_recipe_resumes_exactly(norm, average_decay):
    """Directions, rests and average included; the average is what is checked and kept as the best."""
    changes = {**RECIPE, "norm": norm, "average_decay": average_decay, "one_cycle": True, "lr": ((0, 0.02),)}
    changes |= {"attack_mineps": 0.1, "hinge_maxeps": 0.25} if norm == "L2" else {}
    whole, straight = tiny_trainer(12, **changes), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(12, **changes), Memory()
    first.run(memory, lambda: first.step >= 7)
    assert first.directions.kept(torch.arange(23)).any()
    second = tiny_trainer(12, **changes)
    second.restore(memory.states[-1])
    second.run(memory, lambda: False)
    for name, value in whole.checked_model.state_dict().items():
        assert torch.equal(value, second.checked_model.state_dict()[name]), name
    assert all(map(torch.equal, whole.directions.table, second.directions.table))
    assert torch.equal(whole.eps, second.eps) and whole.passes == second.passes > 0
    assert (whole.checked_model is whole.model) == (average_decay is None)
    assert straight.lines[-1] == memory.lines[-1]


def test_a_step_that_is_taken_back_writes_neither_directions_nor_average():
    trainer = tiny_trainer(12, **RECIPE, average_decay=0.9)
    for _ in range(6):
        trainer.train_step()
    before = copy.deepcopy((trainer.directions.table, trainer.average.state_dict()))
    objective = trainer.objective
    trainer.objective = lambda net, step: (lambda r: r._replace(finite=torch.zeros_like(r.finite)))(
        objective(net, step)
    )
    trainer.train_step()
    assert all(map(torch.equal, before[0], trainer.directions.table))
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, before[1][name]), name


def test_a_rested_image_is_not_attacked_and_keeps_its_radius():
    """Where the search met no wrong point, two visits of three; its loss is beyond the hinge all the same."""
    trainer = tiny_trainer(40, **RECIPE, model=network(False, 400).float(), clean_loss_coeff=1 / 3, hinge_maxeps=0.03)
    trainer.eps.fill_(trainer.config.search_maxeps)
    result = trainer.train_step()
    index = trainer.batches.global_rows(0)
    spared = (index % 3) != 0
    assert 0 < spared.sum() < 6
    right = result.eps > 0
    assert torch.equal(
        result.eps[spared & right], torch.full_like(result.eps[spared & right], trainer.config.search_maxeps)
    )
    assert (result.direction.flatten(1).abs().amax(1)[spared] == 0).all()
    attacked = int((right & ~spared).sum())
    assert int(result.passes) == 2 * 6 + attacked * (5 + 4)


def _two_processes():
    from processes.distributed import device_of

    with device_of("cpu", False) as (world, _):
        from tiny_runs import settings, tiny_data
        from trainer import Trainer

        torch.manual_seed(0)
        config = replace(settings("Linf", 1 / 3, batch_size=6, max_steps=8, lr=((0, 0.01),)), **RECIPE)
        trainer = Trainer(config, network(False, 60).float(), tiny_data(), world)
        for _ in range(8):
            trainer.train_step()
        return [part.clone() for part in trainer.directions.table], trainer.eps, float(trainer.passes)


def test_two_processes_keep_the_same_table_as_one():
    one = in_processes(1, _two_processes)[0]
    both = in_processes(2, _two_processes)
    for tables, eps, passes in both:
        assert torch.equal(eps > 0, one[1] > 0) and passes == one[2]
        assert torch.equal(tables[1] > 0, one[0][1] > 0)
        torch.testing.assert_close(tables[1], one[0][1], rtol=0, atol=1e-3)
        assert (tables[0] == one[0][0]).float().mean() > 0.98
    assert all(map(torch.equal, both[0][0], both[1][0]))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--keep_directions", "--method", "pgd"], "--keep_directions: has no meaning with --method pgd"),
        (["--refresh_interval", "3", "--hinge_maxeps", "0.3"], "--refresh_interval: is about kept directions"),
        (["--cycle_steps", "30", "--hinge_maxeps", "0.3"], "--cycle_steps: is the length of the one-cycle rate"),
        (["--one_cycle", "--lr", "0:0.1,5:0.01", "--hinge_maxeps", "0.3"], "--lr: with --one_cycle it is the highest"),
        (["--average_decay", "1.5", "--hinge_maxeps", "0.3"], "--average_decay 1.5: between 0 and 1"),
        (["--search", "newton", "--hinge_maxeps", "0.3"], "newton"),
    ],
)
def test_parts_that_contradict_each_other(flags, part):
    with pytest.raises(UserError, match=part):
        parse_train(["--dataset", "mnist", "--norm", "Linf", *flags])


def test_stored_form_is_eight_bits():
    assert encode(some("L2")).pixels.dtype == torch.int8 and Stored._fields == ("pixels", "scale", "length")
