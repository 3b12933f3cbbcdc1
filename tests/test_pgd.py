"""PGD: projections, closed forms, advertorch's attack step for step, purity, restarts."""

import itertools

import pytest
import torch
from torch import nn

from evaluations.advertorch_compat import advertorch
from linear_problem import Linear, problem
from losses import LOSSES, cross_entropy, logit_margin, soft_logit_margin
from networks.models import LeNet5Madry
from pgd import GEOMETRY, clean_attacked, pgd, project_l2, project_linf, repeated_pgd


def norms(delta, norm):
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projection(norm):
    project = {"Linf": project_linf, "L2": project_l2}[norm]
    delta = (rand(64, 3, 5, 5, seed=1, dtype=torch.float64) - 0.5) * rand(64, 1, 1, 1, seed=2)
    delta[0] = 0
    eps = rand(64, seed=3, dtype=torch.float64) * norms(delta, norm).mean() * 2
    eps[:2] = 0
    projected = project(delta, eps)
    inside = norms(delta, norm) <= eps
    assert inside.any() and not inside.all()
    assert torch.equal(projected[inside], delta[inside])
    assert torch.isfinite(projected).all()
    assert (norms(projected, norm) <= eps * (1 + 1e-12)).all()
    torch.testing.assert_close(project(projected, eps), projected, rtol=1e-12, atol=0)
    # The nearest point: no random point of the ball is nearer.
    others = project(torch.randn_like(delta), eps)
    assert ((projected - delta).flatten(1).norm(dim=1) <= (others - delta).flatten(1).norm(dim=1) + 1e-12).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_random_start_lies_in_ball_and_range_and_fills_it(norm):
    x, noise = rand(200, 1, 4, 4, seed=1), rand(200, 1, 4, 4, seed=2)
    eps = torch.linspace(0, 0.5, 200)
    start = GEOMETRY[norm].start(x, eps, noise)
    assert (norms(start - x, norm) <= eps + 1e-6).all()
    assert start.min() >= 0 and start.max() <= 1
    assert norms(start - x, norm)[100:].min() > 0.5 * eps[100]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_optimum(norm):
    """On a linear model PGD ends at x - sign(y) eps w / ||w||_dual: exactly, under L2 from a zero start."""
    model, x, y = problem((3, 4, 4), 8, norm)
    eps = torch.linspace(0.01, 0.15, 8, dtype=torch.float64)
    noise = rand(*x.shape, seed=1, dtype=x.dtype) if norm == "Linf" else None
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
    x, y = rand(6, 1, 8, 8, seed=1, dtype=torch.float64), torch.arange(6)
    eps, step = (0.2, 0.03) if norm == "Linf" else (1.0, 0.2)

    class Summed(nn.Module):
        def forward(self, logits, target):
            return LOSSES[loss_name](logits, target).sum()

    for steps in range(1, 8):
        theirs = advertorch.attacks.PGDAttack(
            model,
            loss_fn=Summed(),
            eps=eps,
            nb_iter=steps,
            eps_iter=step,
            rand_init=False,
            ord=float("inf") if norm == "Linf" else 2,
        ).perturb(x, y)
        ours = pgd(model, x, y, loss_fn=LOSSES[loss_name], norm=norm, eps=eps, step_size=step, steps=steps)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_purity(norm):
    """Input, parameter gradients, requires_grad, modes, buffers: all as before, also under the caller's no_grad."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10))
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    x, y = rand(5, 1, 8, 8), torch.arange(5)
    before = x.clone()
    with torch.no_grad():
        x_adv = pgd(
            model,
            x,
            y,
            loss_fn=cross_entropy,
            norm=norm,
            eps=0.1,
            step_size=0.02,
            steps=3,
            noise=rand(*x.shape, seed=9),
        )
    assert not torch.equal(x_adv, x) and not x_adv.requires_grad
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert modes == [m.training for m in model.modules()]
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False, True]
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))


def attack(model, x, y, eps=0.1, restarts=1, batch_size=8, state=None, index=None, steps=10):
    state = state or clean_attacked(model, x, y, margin_fn=logit_margin, batch_size=batch_size)
    return repeated_pgd(
        model,
        x,
        y,
        torch.arange(len(x)) if index is None else index,
        state,
        loss_fns=[soft_logit_margin, cross_entropy][:restarts] + [cross_entropy] * (restarts - 2),
        margin_fn=logit_margin,
        norm="Linf",
        eps=eps,
        step_size=eps / 4,
        steps=steps,
        seed=0,
        batch_size=batch_size,
    )


def lenet(seed=0):
    torch.manual_seed(seed)
    model = LeNet5Madry(1, 8, 8)
    return model


def half_robust(n=40):
    model, x = lenet(), rand(n, 1, 8, 8, seed=4)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10  # some are misclassified from the start
    return model, x, y


def test_success_only_grows_with_restarts_and_with_eps():
    model, x, y = half_robust()
    robust = [attack(model, x, y, eps=0.02, restarts=r).robust for r in (1, 2, 4)]
    for fewer, more in itertools.pairwise(robust):
        assert not (more & ~fewer).any()
    weak = attack(model, x, y, eps=0.02, restarts=2)
    strong = attack(model, x, y, eps=0.05, restarts=2, state=weak)
    assert not (strong.robust & ~weak.robust).any()
    assert strong.robust.sum() < weak.robust.sum() < (logit_margin(model(x), y) < 0).sum()
    assert norms(strong.x_adv - x, "Linf").max() <= 0.05 + 1e-6


def test_misclassified_is_not_robust_and_is_left_alone():
    model, x, y = half_robust()
    result = attack(model, x, y)
    assert not result.robust[::5].any()
    assert torch.equal(result.x_adv[::5], x[::5])


def test_survivors_keep_their_strongest_perturbation():
    """`margin` is that of `x_adv`, above the clean one, and never sinks with more restarts."""
    model, x, y = half_robust()
    one, two = attack(model, x, y, eps=0.01, restarts=1), attack(model, x, y, eps=0.01, restarts=3)
    torch.testing.assert_close(one.margin, logit_margin(model(one.x_adv), y).detach(), atol=1e-5, rtol=0)
    assert (two.margin >= one.margin).all()
    assert (one.margin[one.robust] > logit_margin(model(x), y)[one.robust]).all()


def test_constant_model_gives_back_the_clean_input():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    x = rand(5, 1, 8, 8)
    result = attack(Constant(), x, torch.tensor([0, 0, 0, 1, 2]), restarts=2)
    assert torch.equal(result.x_adv, x)
    assert result.robust.tolist() == [True, True, True, False, False]


def test_result_does_not_depend_on_packing():
    """Bit for bit the same for every image, whichever images stand in its batch."""
    model, x, y = half_robust(40)
    model = model.eval()
    everything = attack(model, x, y, eps=0.02, restarts=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = attack(model, x[order], y[order], eps=0.02, restarts=3, index=order)
    assert torch.equal(shuffled.x_adv, everything.x_adv[order])
    part = attack(model, x[7:20], y[7:20], eps=0.02, restarts=3, index=torch.arange(7, 20))
    assert torch.equal(part.x_adv, everything.x_adv[7:20])


def test_gradients_are_those_of_the_right_rows():
    """A batch gives each row what the row alone gets: eps and step size are per example."""
    model, x, y = problem((1, 4, 4), 6, "L2")
    eps = torch.linspace(0.02, 0.1, 6, dtype=torch.float64)
    whole = pgd(model, x, y, loss_fn=cross_entropy, norm="L2", eps=eps, step_size=eps / 4, steps=5)
    for i in range(6):
        alone = pgd(
            model,
            x[i : i + 1],
            y[i : i + 1],
            loss_fn=cross_entropy,
            norm="L2",
            eps=eps[i],
            step_size=eps[i] / 4,
            steps=5,
        )
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-12)


def test_linear_model_of_the_tests_is_what_it_claims():
    model = Linear((4,))
    x, y = rand(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])
    expected = -(2 * y - 1) * model.score(x)
    torch.testing.assert_close(logit_margin(model(x), y), expected)
    torch.testing.assert_close(soft_logit_margin(model(x), y), expected)


def test_an_output_that_is_not_a_number_is_not_robust():
    class Fragile(nn.Module):
        def forward(self, x):
            logits = torch.stack([1 + 0 * x.flatten(1)[:, 0], x.flatten(1)[:, 0] - 0.5], dim=1)
            return torch.where(x.flatten(1).amax(1, keepdim=True) > 0.55, logits * float("nan"), logits)

    x = torch.full((4, 1, 8, 8), 0.5)
    assert not attack(Fragile(), x, torch.zeros(4, dtype=torch.long), eps=0.2).robust.any()


def test_nothing_left_to_attack():
    model, x, _y = half_robust()
    result = attack(model, x, (model(x).argmax(1) + 1) % 10, restarts=2)
    assert torch.equal(result.x_adv, x) and not result.robust.any()
