"""What a GPU would be asked, on `meta` tensors, which hold no values: reading one, or a shape that depends on one, raises."""

import copy

import pytest
import torch
from torch import nn

from config import PRESETS
from hardware import optimizer as optimizers
from hardware.fast_pgd import FastPgd
from hardware.optimizer import make_optimizer, restore_optimizer
from launches import Launches
from losses import cross_entropy, cw_loss, soft_logit_margin
from networks.build import build_model
from objectives import AttackStart, objective_of
from pgd import pgd
from processes.replica import Replica
from tiny_runs import network, tiny_trainer

LOSSES = [cross_entropy, cw_loss, soft_logit_margin]


def on_meta(name, shape):
    return build_model(name, *shape, 10).to("meta")


def images(shape, count=8):
    return torch.empty(count, *shape, device="meta"), torch.empty(count, dtype=torch.long, device="meta")


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("wrn_10_1", (3, 8, 8))])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_reads_nothing(name, shape, norm, precision):
    device = "meta" if precision == "fp32" else "cpu"  # autocast knows no meta
    model = on_meta(name, shape) if device == "meta" else build_model(name, *shape, 10)
    x, y = torch.zeros(8, *shape, device=device), torch.zeros(8, dtype=torch.long, device=device)
    eps = torch.ones(8, device=device)
    fast = FastPgd(model, precision, rows=None)
    with Launches() as seen:
        for loss_fn in LOSSES:
            how = {
                "loss_fn": loss_fn,
                "norm": norm,
                "eps": eps,
                "step_size": eps / 4,
                "steps": 2,
                "noise": torch.empty_like(x),
            }
            for attack in (pgd, fast) if precision == "fp32" else (fast,):
                assert attack(model, x, y, **how).device.type == device
    assert not seen.waited and seen.launched.total() > 0


@pytest.mark.parametrize("method", ["mma", "omma", "std", "pgd", "trades"])
def test_a_gradient_without_batchnorm_reads_nothing(method):
    """The whole of what the MNIST step records."""
    from dataclasses import replace

    shape = (1, 28, 28)
    model = on_meta("lenet5", shape).train()
    alpha = {"omma": 0.0, "std": 1.0}.get(method, 1 / 3)
    config = replace(PRESETS["mnist", "Linf"], hinge_maxeps=0.45, nb_iter=2, method=method, clean_loss_coeff=alpha)
    x, y = images(shape)
    start = AttackStart(torch.empty(8, device="meta"), torch.empty_like(x))
    with Launches() as seen:
        result = objective_of(config, every_row=True)(Replica(model), x, y, start, 8)
    assert not seen.waited and result.eps.device.type == "meta"
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("batchnorm", "waits"), [(False, {}), (True, {"nonzero": 1})])
def test_waits_of_a_whole_step_are_counted(batchnorm, waits):
    """As a GPU runs it: none without BatchNorm; with it, the number of right examples."""
    trainer = tiny_trainer(model=network(batchnorm).float())
    trainer.optimizer = trainer.guard.optimizer = torch.optim.Adam(trainer.parameters, lr=1e-3, fused=True)
    trainer.guard.reads_are_free = False
    trainer.objective = objective_of(trainer.config, trainer.attack, every_row=not batchnorm)
    trainer.train_step()
    batch = trainer.batches(trainer.step)
    noise, eps = torch.rand_like(batch.x), torch.full((len(batch.y),), 0.02)
    with Launches() as seen:
        trainer.guard.remember()
        result, _ = trainer._gradient(batch.x, batch.y, eps, noise)
        counts = trainer.guard.step(result.finite, 1)
        trainer.eps[batch.index] = torch.where(counts, result.eps, trainer.eps[batch.index])
    assert dict(seen.waited) == waits


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_optimizer_is_fused_on_a_gpu_without_being_capturable(monkeypatch, kind):
    made = []
    monkeypatch.setattr(
        optimizers.torch.optim, {"adam": "Adam", "sgd": "SGD"}[kind], lambda _, **given: made.append(given)
    )

    class OnGpu(nn.Parameter):
        is_cuda = True

    model = nn.Linear(2, 2)
    make_optimizer(kind, model, lr=0.1)
    model.weight = OnGpu(torch.zeros(2, 2))
    make_optimizer(kind, model, lr=0.1)
    assert [given.get("fused") for given in made] == [None, True] and not any(given.get("capturable") for given in made)


@pytest.mark.parametrize("saved", [{}, {"fused": True}, {"capturable": True}])
@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_is_restored_where_its_kernels_want_the_number_of_steps(saved, fused):
    """On the device where they are fused, on the host else, whatever made the state."""
    source = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=0.1)
    for parameter in source.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    source.step()
    state = copy.deepcopy(source.state_dict())
    state["param_groups"][0].update(saved)
    target = torch.optim.Adam(nn.Linear(2, 2).to("meta").parameters(), lr=0.1)
    target.param_groups[0]["fused"] = True if fused else None
    restore_optimizer(target, state)
    steps = {values["step"].device.type for values in target.state.values()}
    assert steps == {"meta" if fused else "cpu"}
    assert not target.param_groups[0]["capturable"] and target.param_groups[0]["fused"] is (True if fused else None)
