"""Warm starts: eight bits a pixel, the same after a round through the file, and where an attack that starts there is."""

import copy
from dataclasses import replace

import pytest
import torch

from loading.crops import Augment, draw_crops
from pgd import GEOMETRY, noise_towards
from processes.distributed import device_of
from ranks import in_processes
from tiny_runs import network, rand, settings, tiny_data, tiny_trainer
from trainer import Trainer
from training.warm_start import LEVELS, WarmStarts, decode, encode
from utils import generator

RECIPE = {"keep_directions": True, "refresh_interval": 3, "search": "secant", "num_search_steps": 4, "rest_interval": 3}


def some(norm, count=7):
    directions = 2 * rand(count, 1, 8, 8, dtype=torch.float32) - 1
    return directions if norm == "Linf" else 0.9 * directions / directions.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_decoded_is_within_half_a_level_and_under_l2_of_the_same_length(norm):
    directions = some(norm)
    back = decode(encode(directions), norm)
    assert ((back - directions).abs() <= half_a_level(directions, norm)).all()
    if norm == "L2":
        torch.testing.assert_close(back.flatten(1).norm(dim=1), directions.flatten(1).norm(dim=1))
    assert torch.equal(decode(encode(torch.zeros(2, 1, 3, 3)), norm), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_starts_at_the_image_plus_eps_times_the_direction(norm):
    x, eps, directions = 0.3 + 0.4 * rand(7, 1, 8, 8, dtype=torch.float32), torch.full((7,), 0.1), some(norm)
    start = GEOMETRY[norm].start(x, eps, noise_towards(norm, x, eps, directions))
    torch.testing.assert_close(start, x + 0.1 * directions, rtol=0, atol=1e-6)


def test_only_rows_with_a_new_direction_are_written():
    table = WarmStarts(5, (1, 8, 8), "Linf", torch.device("cpu"))
    new = some("Linf", 2)
    new[1] = 0
    table.write(torch.tensor([3, 1]), encode(new), torch.tensor(True))
    assert table.known(torch.arange(5)).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("augment", [False, True])
def test_a_step_that_is_left_out_writes_no_directions(augment):
    trainer = tiny_trainer(12, **RECIPE, augment=augment)
    for _ in range(6):
        trainer.train_step()
    before = copy.deepcopy(trainer.directions.table)
    objective = trainer.objective
    trainer.objective = lambda *step: (lambda r: r._replace(finite=torch.zeros_like(r.finite)))(objective(*step))
    trainer.train_step()
    assert all(map(torch.equal, before, trainer.directions.table))


def test_a_skipped_image_is_not_attacked_and_keeps_its_radius():
    """Where the search met no wrong point, two visits of three; its loss is beyond the hinge all the same."""
    trainer = tiny_trainer(40, **RECIPE, model=network(False, 400).float(), clean_loss_coeff=1 / 3, hinge_maxeps=0.03)
    trainer.eps.fill_(trainer.config.search_maxeps)
    result = trainer.train_step()
    index = trainer.batches.global_rows(0)
    skipped = (index % 3) != 0
    assert 0 < skipped.sum() < 6
    right = result.eps > 0
    assert torch.equal(
        result.eps[skipped & right], torch.full_like(result.eps[skipped & right], trainer.config.search_maxeps)
    )
    assert (result.direction.flatten(1).abs().amax(1)[skipped] == 0).all()
    attacked = int((right & ~skipped).sum())
    assert int(result.passes) == 2 * 6 + attacked * (5 + 4)


def _two_processes(augment):
    with device_of("cpu", False) as (world, _):
        torch.manual_seed(0)
        config = replace(settings("Linf", 1 / 3, batch_size=6, max_steps=8, lr=((0, 0.01),)), **RECIPE, augment=augment)
        trainer = Trainer(config, network(False, 60).float(), tiny_data(), world)
        for _ in range(8):
            trainer.train_step()
        return [part.clone() for part in trainer.directions.table], trainer.eps, float(trainer.passes)


@pytest.mark.parametrize("augment", [False, True])
def test_two_processes_keep_the_same_table_as_one(augment):
    one = in_processes(1, _two_processes, augment)[0]
    both = in_processes(2, _two_processes, augment)
    for tables, eps, passes in both:
        assert torch.equal(eps > 0, one[1] > 0) and passes == one[2]
        assert torch.equal(tables[1] > 0, one[0][1] > 0)
        torch.testing.assert_close(tables[1], one[0][1], rtol=0, atol=1e-3)
        assert (tables[0] == one[0][0]).float().mean() > 0.98
    assert all(map(torch.equal, both[0][0], both[1][0]))


def cropped(norm):
    """A table of 40 directions, its rows, new directions for them, and how their images are cropped."""
    table, index = WarmStarts(40, (1, 8, 8), norm, torch.device("cpu")), torch.arange(40)
    table.write(index, encode(some(norm, 40)), torch.tensor(True))
    return table, index, some(norm, 41)[1:], draw_crops(40, generator(3), Augment())


def half_a_level(directions, norm):
    """(B, 1, 1, 1): how far a pixel may be from what was stored; under L2 the length adds a little."""
    return (0.6 if norm == "L2" else 0.5001) * directions.abs().flatten(1).amax(1)[:, None, None, None] / LEVELS


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_written_and_read_under_the_same_crop_is_the_same_where_the_crop_shows_the_image(norm):
    """And the start beyond the image's edge is the direction, reflected as the image is."""
    table, index, new, crops = cropped(norm)
    stored = table.to_store(index, new, crops)
    table.write(index, stored, torch.tensor(True))
    back = table.read(index, crops)
    shown = crops.of(torch.arange(64.0).view(1, 1, 8, 8).expand(40, 1, 8, 8))
    first = torch.zeros_like(shown, dtype=torch.bool)  # pixels of the crop that are no reflection
    for one, (down, right), flip in zip(first, crops.shift.tolist(), crops.flip.tolist(), strict=True):
        for i in range(8):
            for j in range(8):
                column = 7 - j if flip else j
                one[0, i, j] = 0 <= i + down < 8 and 0 <= column + right < 8
    level = half_a_level(decode(stored, norm), norm)
    assert ((back - new).abs()[first] <= level.expand_as(back)[first] + 1e-6).all()
    assert torch.equal(back, crops.of(table.read(index)))
    assert not first.all() and ((back - new).abs() > level)[~first].float().mean() > 0.9


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pixels_that_the_crop_does_not_show_keep_what_is_kept_of_them(norm):
    """Whatever was found on reflected pixels."""
    table, index, new, crops = cropped(norm)
    _, shown = crops.undone(new)
    before = table.read(index)
    stored = table.to_store(index, new, crops)
    after = decode(stored, norm)
    level = half_a_level(after, norm)
    assert ((after - before).abs() <= level)[~shown].all() and (~shown).any()
    first = crops.undone(torch.arange(64.0).view(1, 1, 8, 8).expand(40, 1, 8, 8))[0].long()
    for row in range(40):
        reflected = torch.ones(64, dtype=torch.bool)
        reflected[first[row][shown[row]]] = False
        new[row].view(-1)[reflected] = 1e3
    assert all(map(torch.equal, stored, table.to_store(index, new, crops)))
    assert all(map(torch.equal, encode(0 * new), table.to_store(index, 0 * new, crops))), (
        "nothing found, nothing stored"
    )
    if norm == "L2":
        torch.testing.assert_close(after.flatten(1).norm(dim=1), stored.length)


def test_training_on_crops_reads_and_writes_by_the_image():
    """The directions that a step finds on its crops are in the table by the image's pixels, and are where its next attack
    starts, on the next crop."""
    changes = {**RECIPE, "refresh_interval": 0, "rest_interval": 1, "augment": True, "lr": ((0, 1e-6),)}
    trainer = tiny_trainer(40, model=network(False, 6).float(), **changes)
    labels = trainer.data.train.labels
    labels.copy_(trainer.model(trainer.data.train.everything().x).argmax(1))
    for _ in range(4):
        trainer.train_step()
    before = trainer.directions.read(torch.arange(23))
    kept = trainer.directions.known(torch.arange(23))
    seen, objective = {}, trainer.objective

    def spied(net, x, y, start, total):
        seen["noise"], seen["result"] = start.noise, objective(net, x, y, start, total)
        return seen["result"]

    trainer.objective = spied
    index, crops = trainer.batches.global_rows(4), trainer.batches.crops(4)
    trainer.train_step()
    moved = crops.of(before[index])
    assert kept[index].any()
    torch.testing.assert_close((2 * seen["noise"] - 1)[kept[index]], moved[kept[index]])
    found, shown = crops.undone(seen["result"].direction)
    after, attacked = trainer.directions.read(index), seen["result"].eps > 0
    assert attacked.any() and (~shown[attacked]).any()
    wanted = torch.where(shown, found, before[index])[attacked]
    torch.testing.assert_close(after[attacked], wanted, rtol=0, atol=0.6 / LEVELS)


def test_training_draws_the_crops_that_the_flags_ask_for():
    trainer = tiny_trainer(12, augment=True, crop_pad=1, flip=False)
    assert trainer.batches.augment == Augment(1, False)
    assert tiny_trainer(12).batches.augment is None
