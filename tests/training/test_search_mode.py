"""BatchNorm in the search: what the running statistics and radii are after a step in each mode, against the plain version."""

import copy
from dataclasses import replace

import pytest
import torch

from errors import UserError
from flags import parse_train
from losses import soft_logit_margin
from pgd import pgd
from ranks import in_processes
from tiny_runs import Memory, batch_for, network, rand, settings, step, tiny_data, tiny_trainer

MODES = ("train", "eval")
START = torch.full((12,), 0.02, dtype=torch.float64)


def plain(model, batch, noise, config):
    """(eps, the network) after the passes of a step, with BatchNorm's momentum and flags as torch has them."""
    model = copy.deepcopy(model).train()
    x, y, _ = batch
    right = soft_logit_margin(model(x), y).detach() < 0
    searched = {"train": model, "eval": copy.deepcopy(model).eval()}[config.search_mode]
    how = {"loss_fn": soft_logit_margin, "norm": config.norm, "eps": START[right], "steps": config.nb_iter}
    xr, yr = x[right], y[right]
    frozen = copy.deepcopy(model).eval()
    x_pgd = pgd(frozen, xr, yr, **how, step_size=2.5 * START[right] / config.nb_iter, noise=noise[right])
    direction = (x_pgd - xr) / (START[right] + 1e-12)[:, None, None, None]

    def loss_at(eps):
        return soft_logit_margin(searched((xr + eps[:, None, None, None] * direction).clamp(0, 1)), yr).detach()

    low, high, mid = torch.zeros_like(START[right]), torch.full_like(START[right], config.search_maxeps), START[right]
    for _ in range(config.num_search_steps):
        below = loss_at(mid) < 0
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        mid = (low + high) / 2
    if config.search_mode == "train":
        loss_at(mid)
    x_mixed = x.clone()
    x_mixed[right] = xr + mid[:, None, None, None] * direction
    model(x_mixed)
    eps = torch.zeros_like(START)
    eps[right] = mid
    return eps, model


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("mode", MODES)
def test_radii_and_running_statistics_are_those_of_the_plain_version(mode, norm):
    model, config = network(), settings(norm, 1 / 3, search_mode=mode)
    batch, noise = batch_for(model), rand(12, 1, 8, 8, seed=2)
    model.train()
    model(rand(12, 1, 8, 8, seed=5))  # running statistics that are not this batch's
    eps, after = plain(model, batch, noise, config)
    result = step(model, batch.x, batch.y, START, noise, config)
    for name, value in after.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-10)
    assert model[1].num_batches_tracked == 1 + (13 if mode == "train" else 2)
    assert all(module.training for module in model.modules()) and model[1].track_running_stats
    torch.testing.assert_close(result.eps, eps, rtol=0, atol=1e-12)
    assert result.passes == 2 * 12 + int((eps > 0).sum()) * (5 + 10 + (mode == "train"))


def test_the_modes_differ_and_without_batchnorm_they_do_not():
    def radii(batchnorm):
        found = []
        for mode in MODES:
            model = network(batchnorm)
            batch = batch_for(model)
            model(rand(12, 1, 8, 8, seed=5))
            model.train()
            found.append(step(model, batch.x, batch.y, START, None, settings("Linf", 1 / 3, search_mode=mode)).eps)
        return found

    train, eval_ = radii(True)
    assert (train - eval_).abs().max() > 1e-4
    plain_train, plain_eval = radii(False)
    assert torch.equal(plain_train, plain_eval)


@pytest.mark.parametrize("search", ["bisection", "secant"])
@pytest.mark.parametrize("mode", MODES[1:])
def test_runs_resume_exactly(mode, search):
    changes = {"search_mode": mode, "search": search, "num_search_steps": 4}
    whole, straight = tiny_trainer(9, **changes), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(9, **changes), Memory()
    first.run(memory, lambda: first.step >= 5)
    second = tiny_trainer(9, **changes)
    second.restore(memory.states[-1])
    second.run(memory, lambda: False)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert torch.equal(whole.eps, second.eps) and whole.passes == second.passes


def _of_two(mode):
    from processes.distributed import device_of
    from trainer import Trainer

    with device_of("cpu", False) as (world, _):
        config = settings("Linf", 1 / 3, batch_size=6, max_steps=8, lr=((0, 1e-4),))
        config = replace(config, search_mode=mode, search="secant", num_search_steps=4)
        torch.manual_seed(0)
        data = tiny_data()
        model = network().float()
        data.train.labels.copy_(copy.deepcopy(model).train()(data.train.everything().x).argmax(1))
        trainer = Trainer(config, model, data, world)
        for _ in range(5):
            trainer.train_step()
        return trainer.model.state_dict(), trainer.eps, float(trainer.passes)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_share_statistics_in_the_search_as_one_process_does(mode):
    state, eps, passes = in_processes(1, _of_two, mode)[0]
    for other, other_eps, other_passes in in_processes(2, _of_two, mode):
        assert other_passes == passes and torch.equal(other_eps > 0, eps > 0) and eps.any()
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-3)
        assert int(other["1.num_batches_tracked"]) == int(state["1.num_batches_tracked"])


def test_only_for_mma():
    with pytest.raises(UserError, match="--search_mode: has no meaning with --method pgd, only with mma, omma"):
        parse_train(["--dataset", "mnist", "--norm", "Linf", "--method", "pgd", "--search_mode", "eval"])
    given = ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "8/255"]
    assert parse_train(given)[0].search_mode == "train"
    assert parse_train([*given, "--search_mode", "eval"])[0].search_mode == "eval"
