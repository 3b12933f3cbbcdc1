"""PGD: projections, closed forms, advertorch's attack step for step, purity."""

import math

import pytest
import torch
from torch import nn

from evaluations.advertorch_compat import advertorch
from linear import problem
from losses import LOSSES, cross_entropy, logit_margin
from networks.lenet import LeNet5Madry
from pgd import GEOMETRY, InnerPgd, ascend, pgd, project_l2, project_linf, weighted_logits
from tiny_runs import rand


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection(norm):
    project, length = {"Linf": project_linf, "L2": project_l2}[norm], GEOMETRY[norm].length
    delta = (rand(64, 3, 5, 5, seed=1) - 0.5) * rand(64, 1, 1, 1, seed=2)
    delta[0] = 0
    eps = rand(64, seed=3) * length(delta).mean() * 2
    eps[:2] = 0
    projected = project(delta, eps)
    inside = length(delta) <= eps
    assert inside.any() and not inside.all()
    assert torch.equal(projected[inside], delta[inside])
    assert torch.isfinite(projected).all()
    assert (length(projected) <= eps * (1 + 1e-12)).all()
    torch.testing.assert_close(project(projected, eps), projected, rtol=1e-12, atol=0)
    # The nearest point: no random point of the ball is nearer.
    others = project(torch.randn_like(delta), eps)
    assert ((projected - delta).flatten(1).norm(dim=1) <= (others - delta).flatten(1).norm(dim=1) + 1e-12).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_start_lies_in_ball_and_range_and_fills_it(norm):
    x, noise = rand(200, 1, 4, 4, seed=1), rand(200, 1, 4, 4, seed=2)
    eps = torch.linspace(0, 0.5, 200, dtype=torch.float64)
    start = GEOMETRY[norm].start(x, eps, noise)
    length = GEOMETRY[norm].length(start - x)
    assert (length <= eps + 1e-6).all()
    assert start.min() >= 0 and start.max() <= 1
    assert length[100:].min() > 0.5 * eps[100]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_optimum(norm):
    """On a linear model PGD ends at x - sign(y) eps w / ||w||_dual: exactly, under L2 from a zero start."""
    model, x, y = problem((3, 4, 4), 8, norm)
    eps = torch.linspace(0.01, 0.15, 8, dtype=torch.float64)
    noise = rand(*x.shape, seed=1) if norm == "Linf" else None
    x_adv = pgd(model, x, y, loss_fn=logit_margin, norm=norm, eps=eps, step_size=2.5 * eps / 20, steps=20, noise=noise)
    w = model.w.detach()
    unit = w.sign() if norm == "Linf" else w / w.norm()
    best = x - unit * ((2 * y - 1) * eps)[:, None, None, None]
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss_name", ["xent", "slm", "cw"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_equals_advertorch_step_for_step(norm, loss_name):
    """From the same start, every iterate equals that of advertorch.attacks.PGDAttack."""
    torch.manual_seed(0)
    model = LeNet5Madry(1, 8, 8).double().eval()
    x, y = rand(6, 1, 8, 8, seed=1), torch.arange(6)
    eps, step = (0.2, 0.03) if norm == "Linf" else (1.0, 0.2)

    class Summed(nn.Module):
        def forward(self, logits, target):
            return LOSSES[loss_name](logits, target).sum()

    for steps in range(1, 8):
        how = {"eps": eps, "nb_iter": steps, "eps_iter": step, "rand_init": False}
        how["ord"] = math.inf if norm == "Linf" else 2
        theirs = advertorch.attacks.PGDAttack(model, loss_fn=Summed(), **how).perturb(x, y)
        ours = pgd(model, x, y, loss_fn=LOSSES[loss_name], norm=norm, eps=eps, step_size=step, steps=steps)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_purity(norm):
    """Input, parameter gradients, requires_grad, modes, buffers: all as before, also under the caller's no_grad."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10))
    model.double().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    x, y = rand(5, 1, 8, 8), torch.arange(5)
    before = x.clone()
    how = {"loss_fn": cross_entropy, "norm": norm, "eps": 0.1, "step_size": 0.02, "steps": 3}
    with torch.no_grad():
        x_adv = pgd(model, x, y, noise=rand(*x.shape, seed=9), **how)
    assert not torch.equal(x_adv, x) and not x_adv.requires_grad
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False, True]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_training_starts_pgd_where_odi_ends_and_its_steps_decay(norm):
    """Tashiro et al. 2020, written out; a row without weights starts where its noise says."""
    torch.manual_seed(0)
    model = LeNet5Madry(1, 8, 8).double().eval()
    x, y, noise = rand(6, 1, 8, 8, seed=1), torch.arange(6), rand(6, 1, 8, 8, seed=2)
    eps = torch.linspace(0.05, 0.3, 6, dtype=torch.float64) * (1 if norm == "Linf" else 4)
    weights = 2 * rand(6, 10, seed=3) - 1
    weights[2] = 0

    def climbed(steps, loss_at, sizes, start):
        for size in sizes:
            start = ascend(loss_at, norm, start, x, eps, size)
        return start

    at_random = GEOMETRY[norm].start(x, eps, noise)
    diverse = climbed(3, lambda images: weighted_logits(model(images), weights), [eps / 3] * 3, at_random)
    assert torch.equal(diverse[2], at_random[2]) and (diverse - at_random).flatten(1).any(1).sum() == 5
    falling = [2.5 * eps / 4 * share for share in (1, 0.75, 0.5, 0.25)]
    expected = climbed(4, lambda images: cross_entropy(model(images), y), falling, diverse)
    attack = InnerPgd(norm, 4, cross_entropy, decays=True, odi_steps=3)
    torch.testing.assert_close(attack(model, x, y, eps, noise, weights), expected, rtol=0, atol=1e-9)
    eps[3] = 0  # of pgdls' first step
    found = attack(model, x, y, eps, noise, weights)
    assert torch.equal(found[3], x[3]) and found.isfinite().all()
