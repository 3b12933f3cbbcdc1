"""What a GPU would be asked, on `meta` tensors, which hold no values: reading one, or a shape that depends on one, raises."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from config import PRESETS
from errors import UserError
from hardware.fast_pgd import FastPgd
from hardware.optimizer import restore_optimizer
from launches import Launches
from losses import cross_entropy, cw_loss, soft_logit_margin
from networks.build import build_model
from objectives import AttackStart, objective_of
from pgd import pgd
from processes.replica import Replica
from tiny_runs import network, tiny_trainer
from utils import use_device


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (1, 28, 28)), ("wrn_10_1", (3, 8, 8))])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss_fn", [cross_entropy, cw_loss, soft_logit_margin])
def test_an_attack_reads_nothing(name, shape, norm, loss_fn):
    model = build_model(name, *shape, 10).to("meta")
    x, y = torch.empty(8, *shape, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    eps = torch.empty(8, device="meta")
    how = {"loss_fn": loss_fn, "norm": norm, "eps": eps, "step_size": eps / 4, "steps": 2, "noise": torch.empty_like(x)}
    with Launches() as seen:
        for attack in (pgd, FastPgd(model, "fp32")):
            assert attack(model, x, y, **how).device.type == "meta"
    assert not seen.waited and seen.launched.total() > 0


@pytest.mark.parametrize("method", ["mma", "omma", "std", "pgd", "trades"])
def test_a_gradient_without_batchnorm_reads_nothing(method):
    """The whole of what the MNIST step records."""
    model = build_model("lenet5", 1, 28, 28, 10).to("meta").train()
    alpha = {"omma": 0.0, "std": 1.0}.get(method, 1 / 3)
    changes = {"hinge_maxeps": 0.45, "nb_iter": 2, "method": method, "clean_loss_coeff": alpha}
    config = replace(PRESETS["mnist", "Linf"], **changes, step_decay=True, odi_steps=2)
    x, y = torch.empty(8, 1, 28, 28, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    odi_weights = torch.empty(8, 10, device="meta")
    start = AttackStart(torch.empty(8, device="meta"), torch.empty_like(x), odi_weights=odi_weights)
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


@pytest.mark.parametrize("name", ["", "cuda:", "cuda:-1", "cuda:300", "gpu", "meta", "mps", "cpu:0:1", "CUDA"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(UserError, match=r"cannot be used .*choose cpu"):
        use_device(name, deterministic=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused_in_torchs_words():
    assert use_device("auto", deterministic=False) == torch.device("cpu")
    with pytest.raises(UserError, match=r"--device cuda: cannot be used .*choose cpu"):
        use_device("cuda", deterministic=False)
