"""Adversarial training, PGDLS and TRADES against their explicit formulas; methods and the flags that belong to them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from errors import UserError
from flags import parse_train
from objectives import divergence
from tiny_runs import Memory, batch_for, network, rand, settings, step, tiny_trainer

MNIST = ["--dataset", "mnist", "--norm", "L2"]


def attacked(model, x, eps, noise, norm, loss_at, steps=5):
    """PGD written out for one batch: every image maximises its `loss_at`, steps of 2.5 eps / N in eval mode."""
    frozen = copy.deepcopy(model).eval()
    flat = (-1, 1, 1, 1)

    def into_ball(d):
        if norm == "Linf":
            return d.clamp(-eps, eps)
        return d * (eps / d.flatten(1).norm(dim=1).clamp(min=1e-300)).clamp(max=1).view(flat)

    start = x + (2 * noise - 1) * eps if norm == "Linf" else x + into_ball(noise - x)
    adv = start.clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_at(frozen, adv).sum(), adv)
        g = g.sign() if norm == "Linf" else g / g.flatten(1).norm(dim=1).clamp(min=1e-6).view(flat)
        moved = (adv + 2.5 * eps / steps * g).detach()
        adv = (x + into_ball(moved - x)).clamp(0, 1) if norm == "Linf" else x + into_ball(moved.clamp(0, 1) - x)
    return adv.detach()


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


def test_divergence_is_kl():
    a, b = rand(6, 5, seed=1), rand(6, 5, seed=2)
    torch.testing.assert_close(divergence(b, a.log_softmax(1)), kl(a.softmax(1), b.softmax(1)))
    assert divergence(a, a.log_softmax(1)).abs().max() < 1e-15


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


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--method", "mma", "--hinge_maxeps", "2", "--clean_loss_coeff", "0"], "contradicts --method mma"),
        (["--method", "std", "--clean_loss_coeff", "1/3"], "contradicts --method std"),
        (["--method", "pgd", "--clean_loss_coeff", "1/3"], "--clean_loss_coeff: has no meaning with --method pgd"),
        (["--hinge_maxeps", "2", "--train_eps", "2"], "--train_eps: has no meaning with --method mma"),
        (["--method", "pgd", "--ramp_steps", "5"], "only with pgdls"),
        (["--method", "pgd", "--trades_beta", "5"], "only with trades"),
        (["--method", "pgd", "--train_eps", "0"], "--train_eps 0"),
        (["--method", "pgdl"], "pgdls"),
        (["--method", "pgd", "--attack_mineps", "0.2"], "only with mma, omma"),
        (["--method", "pgd", "--margin_loss_fn", "cw"], "only with mma, omma"),
        (["--method", "trades", "--search_loss_fn", "lm"], "only with mma, omma"),
        (["--method", "std", "--eps_iter_scale", "1"], "only with mma, omma, pgd, pgdls, trades"),
        (["--hinge_maxeps", "2", "--momentum", "0.5"], "only with sgd"),
        (["--method", "omma"], "--hinge_maxeps is missing"),
        (["--hinge_maxeps", "2", "--streaming"], "lives in memory, only image folders stay on disk"),
        (["--method", "pgd", "--search_mode", "eval"], "--search_mode: has no meaning with --method pgd"),
        (["--method", "pgd", "--rest_interval", "3"], "--rest_interval: has no meaning with --method pgd"),
        (["--method", "pgd", "--keep_directions"], "--keep_directions: has no meaning with --method pgd"),
        (["--hinge_maxeps", "2", "--refresh_interval", "3"], "--refresh_interval: is about warm starts"),
        (["--hinge_maxeps", "2", "--crop_pad", "2"], "--crop_pad, --flip: are about augmentation: add --augment"),
        (["--hinge_maxeps", "2", "--no-flip"], "--crop_pad, --flip: are about augmentation: add --augment"),
        (["--hinge_maxeps", "2", "--cycle_steps", "30"], "--cycle_steps: is the length of the one-cycle rate"),
        (["--hinge_maxeps", "2", "--one_cycle", "--lr", "0:0.1,5:0.01"], "--lr: with --one_cycle it is the highest"),
    ],
)
def test_contradictions(flags, part):
    with pytest.raises(UserError) as error:
        parse_train([*MNIST, *flags])
    assert part in str(error.value) and "\n" not in str(error.value)
