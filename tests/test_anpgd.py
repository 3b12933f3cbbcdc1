"""AN-PGD against the closed-form margin of a linear classifier, and what it may do beyond the paper."""

import copy
import itertools
import math

import pytest
import torch

from anpgd import AnPgd, Search, bisection, secant, step_to_boundary
from linear import MAX_EPS, SEARCH_STEPS, boxed_margin, problem, with_corners
from losses import logit_margin, soft_logit_margin
from pgd import GEOMETRY, InnerPgd

TOLERANCE = MAX_EPS / 2**SEARCH_STEPS + 1e-5


def shortest(norm, loss_fn):
    return AnPgd(InnerPgd(norm, 40, loss_fn), Search(loss_fn, MAX_EPS, SEARCH_STEPS))


SHAPES = [((7,), 5), ((3, 6, 6), 1), ((1, 8, 8), 16), ((2, 3, 4, 5), 3)]


@pytest.mark.parametrize(("shape", "batch"), SHAPES)
@pytest.mark.parametrize("loss", [soft_logit_margin, logit_margin])
@pytest.mark.parametrize("start", [0.005, "margin", 0.19])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_margin(norm, start, loss, shape, batch):
    """Linf: 40 steps of 2.5 eps / 40 cross the whole box. L2: from a random start they miss the best direction."""
    model, x, y = problem(shape, batch, norm)
    margin = model.margin(x, norm)
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    for noise, short_of in ((None, 0), (drawn, 0.05 if norm == "L2" else 0)):
        found = shortest(norm, loss)(model, x, y, margin if start == "margin" else start, noise)
        over = found.eps - margin
        assert over.min() >= -TOLERANCE and (over <= TOLERANCE + short_of * margin).all()
        torch.testing.assert_close(GEOMETRY[norm].length(found.x_adv - x), found.eps)
        assert found.passes == 40 + SEARCH_STEPS


def test_the_search_halves_the_bracket_and_returns_the_last_midpoint():
    """K halvings of [0, max]: after 1 the answer is a quarter or three quarters, whatever lies between. Where nothing
    crosses it is an end: the upper one if always right, the lower if always wrong. A start above max is measured at max."""
    model, x, y = problem((7,), 4, "Linf")
    direction = -model.w.detach().sign() * (2 * y - 1).double()[:, None]
    margin = model.margin(x, "Linf")
    for steps in range(1, 8):
        start = torch.full((4,), MAX_EPS / 2, dtype=torch.float64)
        eps = Search(logit_margin, MAX_EPS, steps)(model, x, y, direction, start).eps
        assert (eps - margin).abs().max() <= MAX_EPS / 2 ** (steps + 1) + 1e-12
        in_halves = eps / MAX_EPS * 2 ** (steps + 1)  # an odd number of them
        torch.testing.assert_close(in_halves, 2 * ((in_halves - 1) / 2).round() + 1)
        for labels, end in ((y, MAX_EPS), (1 - y, 0.0)):
            eps = Search(logit_margin, MAX_EPS, steps)(
                model, x, labels, torch.zeros_like(x), torch.ones_like(start)
            ).eps
            assert (eps - end).abs().max() <= MAX_EPS / 2**steps


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_secant_search_on_a_linear_network_is_exact_after_a_few_passes(norm, clean):
    """The loss is linear along the direction, and so is the chord."""
    model, x, y = problem((3, 6, 6), 16, norm)
    w = model.w.detach()
    direction = -(2 * y - 1).reshape(-1, 1, 1, 1) * (w.sign() if norm == "Linf" else w / w.norm())
    start = torch.full((16,), 0.03, dtype=torch.float64)
    clean_loss = logit_margin(model(x), y).detach() if clean else None
    for passes, within in ((2, 0.11), (4, 1e-3)):
        found = Search(logit_margin, MAX_EPS, passes, "secant")(model, x, y, direction, start, clean_loss)
        assert (found.eps - model.margin(x, norm)).abs().max() < within * MAX_EPS and not found.beyond.any()


@pytest.mark.parametrize("step", [1 / 8, 1 / 16, 1 / 32])
def test_secant_search_on_steps_of_bfloat16_does_not_leave_for_the_end(step):
    """Two measurements on one step have no slope. A concave loss, rounded as logits of 16 and more are."""
    zero = torch.linspace(0.12, 0.28, 401)
    for guess in (0.1, 0.13, 0.2):
        found = secant(
            lambda eps: (6 * ((eps / zero).sqrt() - 1) / step).floor() * step,
            torch.full_like(zero, guess),
            0.315,
            4,
            torch.full_like(zero, -6.0),
        )
        assert (found.eps - zero).abs().max() < 0.012 and not found.beyond.any()


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_secant_search_stays_in_the_bracket_and_finds_where_bisection_does(power, passes):
    """Concave, straight and convex losses; zeros all over [0, 1] and beyond it; every first guess."""
    zero = torch.linspace(0.01, 1.3, 200, dtype=torch.float64)
    for guess in (0.01, 0.3, 1.0):
        measured = []

        def loss_at(eps, measured=measured):
            measured.append(eps)
            return (eps / zero) ** power - 1

        start = torch.full_like(zero, guess)
        found = secant(loss_at, start, 1.0, passes, torch.full_like(zero, -1.0))
        assert len(measured) == passes and all(((eps >= 0) & (eps <= 1)).all() for eps in [*measured, found.eps])
        exact = bisection(lambda eps: (eps / zero) ** power - 1, start, 1.0, 40, False)
        torch.testing.assert_close(exact.eps, zero.clamp(max=1), rtol=0, atol=1e-6)
        if passes == 6:
            assert ((found.eps - exact.eps).abs() <= 0.03).double().mean() > 0.85
            assert not found.beyond[zero < 0.98].any() and found.beyond[zero > 1.05].all()
            assert (found.eps[found.beyond] == 1).all()


class Dense(torch.nn.Module):
    """Logits of images of any shape: linear, or with a hidden layer, by seeded weights in float64."""

    def __init__(self, pixels, hidden=0, classes=4, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        sizes = [pixels, hidden, classes] if hidden else [pixels, classes]
        self.weights = torch.nn.ParameterList(
            torch.randn(n, m, generator=g, dtype=torch.float64) / n**0.5 for n, m in itertools.pairwise(sizes)
        )
        self.norm = torch.nn.BatchNorm1d(sizes[-2], dtype=torch.float64)
        self.forwards = 0

    def forward(self, x):
        self.forwards += 1
        x = self.norm(x.flatten(1) @ self.weights[0]).relu() if len(self.weights) == 2 else x.flatten(1)
        return x @ self.weights[-1]


@pytest.mark.parametrize(("extra", "classes"), [({"projections": 1}, 2), ({"targets": "all"}, 5), ({"targets": 9}, 5)])
@pytest.mark.parametrize("shape", [(7,), (2, 5, 5)])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linearised_boundaries_of_a_linear_classifier_are_exact(norm, shape, extra, classes):
    """Pixels at 0 and 1, which may move one way only; PGD itself hardly moves."""
    x = with_corners(40, shape)
    model = Dense(x[0].numel(), classes=classes)
    logits, weights = model(x).detach(), model.weights[0].detach()
    y = logits.argmax(1)
    exact = torch.full((40,), math.inf, dtype=x.dtype)
    for t in range(classes):
        rise = (logits.gather(1, y[:, None]) - logits[:, [t]]).squeeze(1)
        gradient = (weights[:, [t]].T - weights.T[y]).reshape(x.shape)
        reachable = (torch.where(gradient > 0, 1 - x, x) * gradient.abs()).flatten(1).sum(1) > rise
        exact = torch.where((y != t) & reachable, boxed_margin(norm, x, gradient, rise).minimum(exact), exact)
    top = 5.0 if norm == "L2" else 1.0
    found = AnPgd(InnerPgd(norm, 1, logit_margin, 1e-3), Search(logit_margin, top, 40), **extra)(model, x, y, top)
    assert exact.isfinite().sum() >= 25
    torch.testing.assert_close(found.eps[exact < top], exact[exact < top], rtol=1e-6, atol=1e-6)
    assert found.beyond[exact == math.inf].all() and not found.beyond[exact < top - 1e-6].any()
    nearer = float(exact.min()) / 2
    assert AnPgd(InnerPgd(norm, 1, logit_margin), Search(logit_margin, nearer), **extra)(
        model, x, y, nearer
    ).beyond.all()


def test_a_step_to_a_boundary_out_of_reach_uses_all_the_room():
    x, gradient = with_corners(3, (6,)), torch.tensor([[1.0, -2.0, 0.0, 3.0, 1.0, -1.0]], dtype=torch.float64)
    corner = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, x))
    for norm in ("Linf", "L2"):
        step = step_to_boundary(norm, x, gradient.expand(3, 6), torch.tensor([1e3, -1.0, 0.0], dtype=torch.float64))
        torch.testing.assert_close((x + step)[0], corner[0])
        assert not step[1:].any()


EXTRA = [  # and how many searches it is
    ({"projections": 1}, 2),
    ({"projections": 2}, 3),
    ({"targets": 2}, 3),
    ({"targets": "all"}, 4),
    ({"projections": 1, "targets": 9}, 5),
]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("extra", "searches"), EXTRA, ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_is_beyond_the_paper_only_shortens_and_counts_its_passes(norm, extra, searches, train):
    """In the caller's mode; flags, modes and gradients as before, and in eval mode the statistics."""
    x, model, top = with_corners(30, (3, 4)), Dense(12, hidden=20).eval(), 0.4 if norm == "Linf" else 1.2
    y = model(x).argmax(1)
    model.train(train)
    model.weights[0].requires_grad_(False)
    attack, search = InnerPgd(norm, 3, logit_margin), Search(logit_margin, top)
    plain = AnPgd(attack, search)(copy.deepcopy(model), x, y, 0.9 * top)
    state, model.forwards = copy.deepcopy(model.state_dict()), 0
    found = AnPgd(attack, search, **extra)(model, x, y, 0.9 * top)
    assert found.passes == model.forwards
    bracket = top / 2**search.steps
    assert (found.eps <= plain.eps + bracket).all() and (found.beyond <= plain.beyond).all()
    assert (found.eps < plain.eps - bracket).any()
    same = found.eps == plain.eps
    assert torch.equal(found.x_adv[same], plain.x_adv[same])
    torch.testing.assert_close(found.x_adv, x + found.eps[:, None, None] * found.direction)
    assert [weight.requires_grad for weight in model.weights] == [False, True] and model.norm.training is train
    assert all(parameter.grad is None for parameter in model.parameters())
    moved = int(model.norm.num_batches_tracked - state["norm.num_batches_tracked"])
    assert moved == (searches * (search.steps + 1) if train else 0)  # gradients are of eval mode
    if not train:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        just_before = (x + (found.eps - bracket).clamp(min=0)[:, None, None] * found.direction).clamp(0, 1)
        assert (model(just_before).argmax(1) == y).all()


@pytest.mark.parametrize("spoilt", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_that_says_nothing_leaves_the_first_result(norm, spoilt):
    """Every second row's gradient is spoilt once PGD has ended."""
    x, model, steps = with_corners(20, (12,)), Dense(12, hidden=20).eval(), 5
    y, gradients = model(x).argmax(1), 0

    def forward(x):
        nonlocal gradients
        gradients += x.requires_grad
        if x.requires_grad and gradients > steps:
            x.register_hook(lambda g: torch.where(torch.arange(20)[:, None] % 2 == 0, spoilt, g))
        return Dense.forward(model, x)

    model.forward = forward
    attack, search = InnerPgd(norm, steps, logit_margin), Search(logit_margin, 1.0)
    plain = AnPgd(attack, search)(model, x, y, 0.8)
    gradients = 0
    found = AnPgd(attack, search, projections=1, targets="all")(model, x, y, 0.8)
    for one, other in zip(found[:4], plain[:4], strict=True):
        assert torch.equal(one[::2], other[::2])
    assert (found.eps[1::2] < plain.eps[1::2]).any()
