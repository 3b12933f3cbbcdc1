"""The training step against the explicit formula of the paper and the reference's quirks; the loop; the check."""

import copy

import pytest
import torch
from torch import nn

from check import check_split
from config import PRESETS
from hardware.optimizer import make_optimizer
from loading.batches import Batch, Split
from losses import cross_entropy, logit_margin, soft_logit_margin
from tiny_runs import Memory, batch_for, network, rand, settings, step, tiny_data, tiny_trainer
from train_batches import train_batch
from trainer import Trainer
from utils import has_batchnorm


def explicit(model, batch, start_eps, noise, config):
    """The reference's step from its specification, one example or formula at a time: gradient, eps, and the network."""
    model = copy.deepcopy(model).train()
    x, y, _ = batch
    parameters = list(model.parameters())
    linf = config.norm == "Linf"
    clean = model(x)
    right = soft_logit_margin(clean, y).detach() < 0
    clean_loss = cross_entropy(clean, y).mean()
    x_mixed, eps = x.clone(), torch.zeros(len(x), dtype=x.dtype)
    if right.any():
        xr, yr, er = x[right], y[right], start_eps[right]
        frozen = copy.deepcopy(model).eval()
        rows = []
        for i in range(len(xr)):
            xi, e = xr[i : i + 1], er[i].item()
            u = noise[right][i : i + 1]

            def into_ball(d, e=e):
                if linf:
                    return torch.maximum(torch.minimum(d, torch.tensor(e)), torch.tensor(-e))
                return d * min(1.0, e / max(d.norm().item(), 1e-300))

            adv = (xi + (2 * u - 1) * e).clamp(0, 1) if linf else (xi + into_ball(u - xi)).clamp(0, 1)
            for _ in range(config.nb_iter):
                adv = adv.detach().requires_grad_()
                (g,) = torch.autograd.grad(soft_logit_margin(frozen(adv), yr[i : i + 1]).sum(), adv)
                g = g.sign() if linf else g / max(g.norm().item(), 1e-6)
                moved = (adv + 2.5 * e / config.nb_iter * g).detach()
                adv = (xi + into_ball(moved - xi)).clamp(0, 1) if linf else xi + into_ball(moved.clamp(0, 1) - xi)
            rows.append((adv.detach() - xi) / (e + 1e-12))
        direction = torch.cat(rows)

        def loss_at(scale):
            return soft_logit_margin(model((xr + scale[:, None, None, None] * direction).clamp(0, 1)), yr).detach()

        top = 1.05 * config.hinge_maxeps
        low, high, mid = torch.zeros_like(er), torch.full_like(er, top), er.clone()
        loss = loss_at(mid)
        for _ in range(config.num_search_steps):
            for i in range(len(mid)):
                if loss[i] < 0:
                    low[i] = mid[i]
                else:
                    high[i] = mid[i]
            mid = (low + high) / 2
            loss = loss_at(mid)
        eps[right] = mid
        x_mixed[right] = xr + mid[:, None, None, None] * direction
    mixed = cross_entropy(model(x_mixed), y)
    mma = sum(mixed[i] for i in range(len(x)) if not right[i] or eps[i] < config.hinge_maxeps) / len(x)
    alpha = config.clean_loss_coeff
    objective = (1 - alpha) * mma + alpha * clean_loss
    gradient = torch.autograd.grad(objective, parameters) if torch.is_tensor(objective) else None
    return gradient, eps, model, right


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1 / 3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_step_equals_the_explicit_formula(norm, alpha, batchnorm):
    model = network(batchnorm)
    batch = batch_for(model)
    config = settings(norm, alpha)
    start = torch.linspace(0.5, 1.05, 12, dtype=torch.float64) * config.hinge_maxeps
    noise = rand(*batch.x.shape, seed=2)
    expected, eps, after, right = explicit(model, batch, start, noise, config)
    assert 0 < right.sum() < 12, "some must be right, some wrong"
    assert (eps[right] < config.hinge_maxeps).any() and (eps[right] > config.hinge_maxeps).any(), (
        "on both sides of d_max"
    )
    model.train()
    before = batch.x.clone()
    result = step(model, batch.x, batch.y, start, noise, config)
    assert torch.equal(batch.x, before)
    torch.testing.assert_close(result.eps, eps, rtol=0, atol=1e-12)
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-8)
    for key, value in after.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-10)


def test_all_wrong_batch_trains_on_clean_images_alone():
    model = network()
    batch = batch_for(model, wrong_every=1)
    config = settings("Linf", 0.0)
    model.train()
    result = step(model, batch.x, batch.y, torch.full((12,), 0.02, dtype=torch.float64), rand(*batch.x.shape), config)
    assert result.eps.abs().max() == 0
    twin = copy.deepcopy(model)
    loss = cross_entropy(twin(batch.x), batch.y).mean()
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-10)


def test_all_beyond_the_hinge_leaves_no_mma_gradient():
    """All right and none within reach: eps ends at 1.05 d_max, and only the clean loss is left."""
    model = network(sharpness=400)
    batch = batch_for(model, wrong_every=0)
    config = settings("Linf", 1 / 3, hinge_maxeps=1e-4, attack_mineps=1e-5)
    model.train()
    result = step(model, batch.x, batch.y, torch.full((12,), 1e-4, dtype=torch.float64), rand(*batch.x.shape), config)
    assert (result.eps > config.hinge_maxeps).all() and result.adv_loss == 0
    twin = network(sharpness=400).train()
    loss = cross_entropy(twin(batch.x), batch.y).mean() / 3
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_ordinary_training_runs_no_attack():
    model = network()
    batch = batch_for(model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    result = step(model, batch.x, batch.y, torch.full((12,), 0.02, dtype=torch.float64), None, settings("Linf", 1.0))
    assert len(calls) == 1 and result.eps.abs().max() == 0
    twin = network().train()
    loss = cross_entropy(twin(batch.x), batch.y).mean()
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("wrong_every", "updates"), [(4, 13), (0, 13), (1, 2)])
def test_running_statistics_updates(wrong_every, updates):
    """13 with K = 10 and at least one right example, else 2."""
    model = network()
    batch = batch_for(model, wrong_every=wrong_every)
    model.train()
    step(
        model,
        batch.x,
        batch.y,
        torch.full((12,), 0.02, dtype=torch.float64),
        rand(*batch.x.shape),
        settings("Linf", 1 / 3),
    )
    assert model[1].num_batches_tracked == updates


@pytest.mark.parametrize(("batchnorm", "forwards"), [(True, 1 + 5 + 11 + 1), (False, 1 + 5 + 10 + 1)])
def test_forward_passes(batchnorm, forwards):
    """clean + N + (K + 1) + mixed; without BatchNorm the search's last pass has no use and is left out."""
    model = network(batchnorm)
    batch = batch_for(model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    step(
        model,
        batch.x,
        batch.y,
        torch.full((12,), 0.02, dtype=torch.float64),
        rand(*batch.x.shape),
        settings("Linf", 1 / 3),
    )
    assert len(calls) == forwards
    assert has_batchnorm(model) == batchnorm


def test_loop_rows_checks_and_schedule():
    trainer, memory = tiny_trainer(), Memory()
    assert trainer.run(memory, lambda: False)
    assert trainer.steps_per_epoch == 4 and memory.steps == 10  # 23 images, the last batch has 5
    train_rows = [r for r in memory.lines if r["kind"] == "train"]
    assert [(r["step"], r["epoch"], r["lr"]) for r in train_rows] == [(3, 1, 0.01), (6, 2, 0.002), (9, 3, 0.002)]
    checks = [(r["split"], r["step"], r["epoch"]) for r in memory.lines if r["kind"] == "eval"]
    assert checks == [(s, n, e) for n, e in ((4, 1), (8, 2), (10, 3)) for s in ("val", "test")]
    assert set(train_rows[0]) == {
        "kind",
        "step",
        "epoch",
        "lr",
        "clean_loss",
        "clean_acc",
        "mma_loss",
        "mean_eps",
        "steps_per_second",
        "passes",
    }
    margins = [r["mean_margin"] for r in memory.lines if r.get("split") == "val"]
    best_so_far = [(4, 8, 10)[i] for i, m in enumerate(margins) if m > max(margins[:i], default=-1)]
    assert [step for step, _ in memory.bests] == best_so_far
    assert [(s["step"], s["checked_step"]) for s in memory.states] == [
        (4, 0),
        (4, 4),
        (8, 4),
        (8, 8),
        (10, 8),
        (10, 10),
    ]


def test_every_example_is_visited_once_an_epoch():
    trainer = tiny_trainer(max_steps=4)
    seen = []
    memory = Memory()
    train_step = trainer.train_step
    trainer.train_step = lambda: (seen.append(trainer.step), train_step())[1]
    trainer.run(memory, lambda: False)
    assert seen == [0, 1, 2, 3]
    from train_batches import train_batch

    index = torch.cat([train_batch(trainer.data.train, s, batch_size=6, seed=0, augment=None).index for s in range(4)])
    assert torch.equal(index.sort().values, torch.arange(23))
    assert not torch.equal(index, torch.arange(23))


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7])
def test_stopped_and_resumed_equals_uninterrupted(stop_at):
    """Bit for bit: weights, optimizer, radii, rows (but for the speed); also in mid-epoch, with dropout and BatchNorm."""
    whole, straight = tiny_trainer(), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(), Memory()
    assert not first.run(memory, lambda: first.step >= stop_at)
    second = tiny_trainer()
    second.restore(memory.states[-1])
    assert second.step == stop_at
    assert second.run(memory, lambda: False)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    assert torch.equal(whole.eps, second.eps)
    a, b = whole.state()["optimizer"]["state"], second.state()["optimizer"]["state"]
    assert all(torch.equal(a[i][k], b[i][k]) for i in a for k in a[i])

    def without_speed(rows):
        return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]

    assert without_speed(straight.lines) == without_speed(memory.lines)


def test_stop_within_a_check_hands_nothing_over_and_the_check_is_made_again():
    whole, straight = tiny_trainer(4), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(4), Memory()
    asked = iter([False] * 6 + [True] * 99)  # before each step, then within the check
    assert not first.run(memory, lambda: next(asked))
    assert first.step == 4 and not [r for r in memory.lines if r["kind"] == "eval"] and not memory.bests
    second = tiny_trainer(4)
    second.restore(memory.states[-1])
    assert second.run(memory, lambda: False)
    assert [r for r in memory.lines if r["kind"] == "eval"] == [r for r in straight.lines if r["kind"] == "eval"]


def test_per_example_radii_start_the_next_attack():
    trainer = tiny_trainer()
    for _ in range(6):
        trainer.train_step()
    stored = trainer.eps[trainer.eps > 0]
    assert len(stored) and (stored <= trainer.config.search_maxeps).all()
    starts, objective = [], trainer.objective

    def spied(network, x, y, start, total):
        starts.append(start.eps)
        return objective(network, x, y, start, total)

    trainer.objective = spied
    before = trainer.eps.clone()
    split, size = trainer.data.train, trainer.config.batch_size
    index = train_batch(split, trainer.step, batch_size=size, seed=trainer.config.seed, augment=None).index
    trainer.train_step()
    torch.testing.assert_close(starts[0], before[index].clamp(min=trainer.config.attack_mineps))


def test_check_of_a_linear_network_is_its_margin():
    """The check's margins are the closed form's within the bisection's bracket; 0 where misclassified."""
    from linear_problem import problem

    model, x, y = problem((1, 8, 8), 30, "Linf")
    y[::6] = 1 - y[::6]
    config = settings("Linf", 1 / 3, hinge_maxeps=0.19, test_eps=0.05, test_eps_iter=0.0125, nb_iter=20)

    class Exact(Split):
        def batch(self, index):
            return Batch(x[index], y[index], index)

    result = check_split(model, Exact(x, y, torch.arange(30)), config, 0)
    right = logit_margin(model(x), y) < 0
    margin = model.margin(x, "Linf").float()
    assert result.clean_acc == pytest.approx(25 / 30)
    assert (result.margins[~right] == 0).all()
    assert (result.margins - margin)[right].abs().max() <= config.search_maxeps / 2**10 + 1e-5
    assert result.robust_acc == pytest.approx((right & (margin > 0.05)).double().mean().item())


@pytest.mark.parametrize("test_eps", [0.02, 0.19])
def test_check_measures_its_first_loss_where_the_bisection_starts(test_eps):
    """Margins between the test radius and eps_max / 2 are not moved to eps_max / 2, as the reference moves them."""
    from linear_problem import problem

    model, x, y = problem((1, 8, 8), 30, "Linf")
    config = settings("Linf", 1 / 3, hinge_maxeps=0.19, test_eps=test_eps, test_eps_iter=test_eps / 4, nb_iter=20)

    class Exact(Split):
        def batch(self, index):
            return Batch(x[index], y[index], index)

    result = check_split(model, Exact(x, y, torch.arange(30)), config, 0)
    assert (result.margins - model.margin(x, "Linf").float()).abs().max() <= config.search_maxeps / 2**10 + 1e-5


def test_batchnorm_on_vectors_searches_a_single_right_row_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    trainer = Trainer(settings("Linf", 1 / 3, batch_size=6), model, tiny_data())
    assert not trainer.needs.one_row
    x = rand(6, 1, 8, 8).float()
    with torch.no_grad():
        model[-1].weight.mul_(30)
    y = (copy.deepcopy(model).train()(x).argmax(1) + 1) % 4
    y[2] = copy.deepcopy(model).train()(x).argmax(1)[2]
    model.train()
    result = step(model, x, y, torch.full((6,), 0.02), rand(*x.shape).float(), trainer.config, search_single_row=False)
    assert (result.eps > 0).tolist() == [False, False, True, False, False, False]
    assert model.training and model[2].num_batches_tracked == 2


def test_optimizers():
    model = network()
    made = []
    for config in (PRESETS["mnist", "Linf"], PRESETS["cifar10", "L2"]):
        how = {"lr": config.lr_at(0), "weight_decay": config.weight_decay, "momentum": config.momentum}
        made.append(make_optimizer(config.optimizer, model, **how))
    adam, sgd = made
    assert isinstance(adam, torch.optim.Adam) and adam.defaults["lr"] == 1e-4
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.defaults[k] for k in ("lr", "momentum", "weight_decay")] == [0.3, 0.9, 2e-4]
