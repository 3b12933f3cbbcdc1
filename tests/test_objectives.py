"""Adversarial training, PGDLS and TRADES against their explicit formulas; methods and the flags that belong to them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from flags import parse_train
from tiny_runs import Memory, attacked, batch_for, network, rand, settings, step, tiny_trainer


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1)


@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("method", ["pgd", "trades"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_step_equals_the_explicit_formula(norm, method, batchnorm):
    config = settings(norm, 1 / 3, method=method, trades_beta=4.0)
    model = network(batchnorm).train()
    twin = copy.deepcopy(model)
    x, y, _ = batch_for(model)
    noise, eps = rand(*x.shape, seed=2), 0.02 if norm == "Linf" else 0.2
    result = step(model, x, y, torch.full((12,), eps, dtype=x.dtype), noise, config)

    if method == "pgd":
        x_adv = attacked(twin, x, eps, noise, norm, lambda f, z: F.cross_entropy(f(z), y, reduction="none"))
        expected = F.cross_entropy(twin(x_adv), y)
        torch.testing.assert_close(result.adv_loss, expected.detach())
        assert result.clean_loss == 0
    else:
        reference = copy.deepcopy(twin).eval()(x).softmax(1).detach()
        x_adv = attacked(twin, x, eps, noise, norm, lambda f, z: kl(reference, f(z).softmax(1)))
        clean = twin(x)
        far = kl(clean.softmax(1), twin(x_adv).softmax(1)).mean()
        expected = F.cross_entropy(clean, y) + 4.0 * far
        torch.testing.assert_close(result.adv_loss, far.detach())
        assert far > 1e-3, "the attack must move the output"
    for own, g in zip(model.parameters(), torch.autograd.grad(expected, list(twin.parameters())), strict=True):
        torch.testing.assert_close(own.grad, g, rtol=1e-7, atol=1e-11)
    for own, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own, other)
    assert model.training and (x_adv - x).abs().max() > 0.01


@pytest.mark.parametrize("method", ["pgd", "pgdls", "trades"])
def test_rows_and_radii_of_a_run(method):
    """A run resumes exactly: see tests/test_trainer.py."""
    changes = {"method": method, "train_eps": 0.02, "hinge_maxeps": None, "ramp_steps": 6}
    memory = Memory()
    assert tiny_trainer(max_steps=9, **changes).run(memory, lambda: False)
    train_rows = [row for row in memory.lines if row["kind"] == "train"]
    radii = {"pgd": [0.02] * 3, "trades": [0.02] * 3, "pgdls": [0.02 * s / 6 for s in (1, 4)] + [0.02]}[method]
    assert [row["mean_eps"] for row in train_rows] == pytest.approx(radii, rel=0.02)  # batches differ in size
    assert all(row["adv_loss"] > 0 and row["mma_loss"] is None for row in train_rows)
    assert all((row["clean_loss"] is None) == (method != "trades") for row in train_rows)
    assert not memory.radii, "only MMA has a radius for each example"


def test_the_radius_of_pgdls_rises_over_half_the_steps():
    config, _ = parse_train(["--dataset", "cifar10", "--norm", "Linf", "--method", "pgdls", "--train_eps", "24/255"])
    assert config.ramp_steps == 25_000, "named, so that a resumed run with more steps keeps it"
    assert (config.eps_at(0), config.eps_at(12_500), config.eps_at(40_000)) == pytest.approx((0, 12 / 255, 24 / 255))
