"""The training step against the explicit formula of the paper and the reference's quirks; the loop; the check."""

import copy
from dataclasses import replace

import pytest
import torch

from check import check_split
from hardware.optimizer import make_optimizer
from linear import problem
from loading.batches import Batch, Split
from losses import cross_entropy, logit_margin, soft_logit_margin
from records import checkpoint
from tiny_runs import Memory, attacked, batch_for, network, rand, settings, step, tiny_trainer


def explicit(model, batch, start_eps, noise, config):
    """The reference's step from its specification, one example or formula at a time: gradient, eps, and the network."""
    model = copy.deepcopy(model).train()
    x, y, _ = batch
    parameters = list(model.parameters())
    clean = model(x)
    right = soft_logit_margin(clean, y).detach() < 0
    clean_loss = cross_entropy(clean, y).mean()
    x_mixed, eps = x.clone(), torch.zeros(len(x), dtype=x.dtype)
    if right.any():
        xr, yr, er = x[right], y[right], start_eps[right]
        frozen = copy.deepcopy(model).eval()
        rows = []
        for xi, yi, e, u in zip(xr[:, None], yr[:, None], er.tolist(), noise[right][:, None], strict=True):
            adv = attacked(model, xi, e, u, config.norm, lambda f, z, y=yi: soft_logit_margin(f(z), y), config.nb_iter)
            rows.append((adv - xi) / (e + 1e-12))
        direction = torch.cat(rows)

        searched = frozen if config.search_mode == "eval" else model

        def loss_at(scale):
            return soft_logit_margin(searched((xr + scale[:, None, None, None] * direction).clamp(0, 1)), yr).detach()

        top = 1.05 * config.hinge_maxeps
        low, high, mid = torch.zeros_like(er), torch.full_like(er, top), er.clone()
        loss = loss_at(mid)
        for _ in range(config.num_search_steps):
            low[loss < 0], high[loss >= 0] = mid[loss < 0], mid[loss >= 0]
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


@pytest.mark.parametrize(("batchnorm", "mode"), [(True, "train"), (True, "eval"), (False, "train")])
@pytest.mark.parametrize("alpha", [0.0, 1 / 3])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_step_equals_the_explicit_formula(norm, alpha, batchnorm, mode):
    model = network(batchnorm)
    batch = batch_for(model)
    config = settings(norm, alpha, search_mode=mode)
    model.train()
    model(rand(12, 1, 8, 8, seed=5))  # running statistics that are not this batch's
    start = torch.linspace(0.5, 1.05, 12, dtype=torch.float64) * config.hinge_maxeps
    noise = rand(*batch.x.shape, seed=2)
    expected, eps, after, right = explicit(model, batch, start, noise, config)
    assert 0 < right.sum() < 12, "some must be right, some wrong"
    assert (eps[right] < config.hinge_maxeps).any()
    assert (eps[right] > config.hinge_maxeps).any() or mode == "eval", "on both sides of d_max"
    before, calls = batch.x.clone(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    result = step(model, batch.x, batch.y, start, noise, config)
    assert torch.equal(batch.x, before)
    torch.testing.assert_close(result.eps, eps, rtol=0, atol=1e-12)
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-8)
    for key, value in after.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-10)
    assert all(module.training for module in model.modules())
    last = int(batchnorm and mode == "train")  # without BatchNorm in train mode the search's last pass has no use
    passes = config.nb_iter + config.num_search_steps + last
    assert result.passes == 2 * 12 + right.sum() * passes and len(calls) == 2 + passes


START = torch.full((12,), 0.02, dtype=torch.float64)
CLEAN_ALONE = {
    "all wrong": (1, 6, {"clean_loss_coeff": 0.0}, 1),
    "all beyond the hinge": (0, 400, {"hinge_maxeps": 1e-4, "attack_mineps": 1e-5}, 1 / 3),  # eps ends at 1.05 d_max
    "standard training": (4, 6, {"clean_loss_coeff": 1.0, "method": "std"}, 1),
}


@pytest.mark.parametrize("case", CLEAN_ALONE)
def test_where_the_gradient_is_that_of_the_clean_loss(case):
    wrong_every, sharpness, changes, weight = CLEAN_ALONE[case]
    model, twin = (network(sharpness=sharpness).train() for _ in range(2))
    batch, config = batch_for(model, wrong_every=wrong_every), replace(settings("Linf", 1 / 3), **changes)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    start = START.clamp(max=config.hinge_maxeps)
    result = step(model, batch.x, batch.y, start, rand(*batch.x.shape), config)
    assert (result.eps > config.hinge_maxeps).all() if "hinge" in case else (result.eps == 0).all()
    assert (result.adv_loss == 0) == ("wrong" not in case)
    assert len(calls) == {"all wrong": 2, "standard training": 1}.get(case, 1 + 5 + 11 + 1)
    loss = weight * cross_entropy(twin(batch.x), batch.y).mean()
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(twin.parameters())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-10)


def test_loop_rows_checks_and_schedule():
    trainer, memory = tiny_trainer(), Memory()
    assert trainer.run(memory, lambda: False)
    assert trainer.steps_per_epoch == 4 and memory.steps == 10  # 23 images, the last batch has 5
    train_rows = [r for r in memory.lines if r["kind"] == "train"]
    assert [(r["step"], r["epoch"], r["lr"]) for r in train_rows] == [
        (3, 1, 0.01),
        (6, 2, 0.002),
        (9, 3, 0.002),
        (10, 3, 0.002),  # the last one, so that a table counts all steps
    ]
    checks = [(r["split"], r["step"], r["epoch"]) for r in memory.lines if r["kind"] == "eval"]
    assert checks == [(s, n, e) for n, e in ((4, 1), (8, 2), (10, 3)) for s in ("val", "test")]
    margins = [r["mean_margin"] for r in memory.lines if r.get("split") == "val"]
    best_so_far = [(4, 8, 10)[i] for i, m in enumerate(margins) if m > max(margins[:i], default=-1)]
    assert [step for step, _ in memory.bests] == best_so_far
    saved = [(state["step"], state["checked_step"]) for state in memory.states]
    assert saved == [(4, 0), (4, 4), (8, 4), (8, 8), (10, 8), (10, 10)]


def test_every_example_is_visited_once_an_epoch():
    trainer = tiny_trainer()
    index = torch.cat([trainer.batches(step).index for step in range(4)])
    assert torch.equal(index.sort().values, torch.arange(23)) and not torch.equal(index, torch.arange(23))


WARM = {"keep_directions": True, "refresh_interval": 3, "search": "secant", "num_search_steps": 4, "rest_interval": 3}
WARM |= {"one_cycle": True, "lr": ((0, 0.02),)}
L2 = {"norm": "L2", "attack_mineps": 0.1, "hinge_maxeps": 0.25}
OTHER = {"train_eps": 0.02, "hinge_maxeps": None, "ramp_steps": 6}


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        *((stop_at, {}) for stop_at in (1, 4, 5, 7)),
        *((5, {"method": method, **OTHER}) for method in ("pgd", "pgdls", "trades")),
        *((5, {"precision": "bf16", **more}) for more in ({}, L2, {"method": "trades", **OTHER})),
        *((7, {**WARM, "augment": augment, **more}) for augment in (False, True) for more in ({}, L2)),
        *((5, {"search_mode": "eval", "search": search}) for search in ("bisection", "secant")),
        (5, {**WARM, **L2}),
        *((5, {"step_decay": True, "odi_steps": 2, **more}) for more in (WARM, {"method": "pgd", **OTHER})),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_stopped_and_resumed_equals_uninterrupted(stop_at, changes):
    """Bit for bit, the whole state and every row but for its speed; in mid-epoch, with BatchNorm, and draws from torch,
    NumPy and Python."""
    whole, straight = tiny_trainer(**changes), Memory()
    whole.run(straight, lambda: False)
    first, memory = tiny_trainer(**changes), Memory()
    assert not first.run(memory, lambda: first.step >= stop_at)
    second = tiny_trainer(**changes)
    second.restore(memory.states[-1])
    assert second.step == stop_at and second.run(memory, lambda: False)
    for key, value in whole.state().items():
        assert checkpoint.digest(value) == checkpoint.digest(second.state()[key]), key
    assert first.directions is None or first.directions.known(torch.arange(23)).any()

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


class Drawing(torch.nn.Module):
    """Draws in eval mode too."""

    def forward(self, x):
        return x + 0.3 * torch.rand_like(x)


def test_a_check_that_is_made_again_draws_the_same():
    def trainer():
        one = tiny_trainer(4)
        one.model.insert(0, Drawing())
        return one

    def checked(one):
        memory = Memory()
        assert one.run(memory, lambda: False)
        return [row for row in memory.lines if row["kind"] == "eval"]

    stopped, memory = trainer(), Memory()
    asked = iter([False] * 6 + [True] * 99)
    assert not stopped.run(memory, lambda: next(asked))
    torch.rand(5)  # draws of somebody else's
    again = trainer()
    again.restore(memory.states[-1])
    assert checked(again) == checked(trainer())


class Exact(Split):
    """Images that are no whole numbers of 255ths."""

    def batch(self, index):
        return Batch(self.images[index], self.labels[index], index)


@pytest.mark.parametrize("test_eps", [0.02, 0.05, 0.19])
def test_check_of_a_linear_network_is_its_margin(test_eps):
    """Within the bisection's bracket, 0 where misclassified; also between the test radius and eps_max / 2, where the
    reference moves margins to eps_max / 2."""
    model, x, y = problem((1, 8, 8), 30, "Linf")
    y[::6] = 1 - y[::6]
    config = settings("Linf", 1 / 3, hinge_maxeps=0.19, test_eps=test_eps, test_eps_iter=test_eps / 4, nb_iter=20)
    result = check_split(model, Exact(x, y, torch.arange(30)), config, 0)
    right, margin = logit_margin(model(x), y) < 0, model.margin(x, "Linf").float()
    assert result.clean_acc == pytest.approx(25 / 30) and (result.margins[~right] == 0).all()
    assert (result.margins - margin)[right].abs().max() <= config.search_maxeps / 2**10 + 1e-5
    assert result.robust_acc == pytest.approx((right & (margin > test_eps)).double().mean().item())


def test_optimizers():
    how = {"lr": 0.3, "weight_decay": 2e-4, "momentum": 0.9}
    adam, sgd = (make_optimizer(kind, network(), **how) for kind in ("adam", "sgd"))
    assert isinstance(adam, torch.optim.Adam) and isinstance(sgd, torch.optim.SGD)
    assert how.items() <= sgd.defaults.items() and how["lr"] == adam.defaults["lr"]


@pytest.mark.parametrize("odi_steps", [0, 3])
@pytest.mark.parametrize("method", ["pgd", "pgdls", "trades", "std"])
def test_passes_of_a_step_are_those_that_its_settings_ask_for(method, odi_steps):
    trainer = tiny_trainer(method=method, odi_steps=odi_steps if method != "std" else 0, **OTHER)
    assert trainer.train_step().passes == 6 * trainer.config.passes_an_image
    assert replace(trainer.config, odi_steps=6, **WARM, method="mma").passes_an_image == 5 + 4 + 3 + 2
