"""AN-PGD against the closed-form margin of a linear classifier."""

import pytest
import torch

from anpgd import AnPgd, Search, bisection, secant
from linear import MAX_EPS, SEARCH_STEPS, problem
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
def test_linear_margin_from_zero_start(norm, start, loss, shape, batch):
    model, x, y = problem(shape, batch, norm)
    margin = model.margin(x, norm)
    start_eps = margin if start == "margin" else start
    found = shortest(norm, loss)(model, x, y, start_eps)
    assert (found.eps - margin).abs().max() <= TOLERANCE
    torch.testing.assert_close(GEOMETRY[norm].length(found.x_adv - x), found.eps)
    assert found.passes == 40 + SEARCH_STEPS


@pytest.mark.parametrize(("shape", "batch"), SHAPES)
@pytest.mark.parametrize("start", [0.005, "margin", 0.19])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_margin_from_random_start(norm, start, shape, batch):
    """Linf: 40 steps of 2.5 eps / 40 cross the whole box. L2: they do not quite reach the best direction."""
    model, x, y = problem(shape, batch, norm)
    margin = model.margin(x, norm)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    found = shortest(norm, soft_logit_margin)(model, x, y, margin if start == "margin" else start, noise)
    over = found.eps - margin
    assert over.min() >= -TOLERANCE
    assert (over <= TOLERANCE + (0.05 * margin if norm == "L2" else 0)).all()


def test_the_search_halves_the_bracket_and_returns_the_last_midpoint():
    """K halvings of [0, max]: after 1 the answer is a quarter or three quarters, whatever lies between."""
    model, x, y = problem((7,), 4, "Linf")
    direction = -model.w.detach().sign() * (2 * y - 1).double()[:, None]
    margin = model.margin(x, "Linf")
    for steps in range(1, 8):
        start = torch.full((4,), MAX_EPS / 2, dtype=torch.float64)
        eps = Search(logit_margin, MAX_EPS, steps)(model, x, y, direction, start).eps
        assert (eps - margin).abs().max() <= MAX_EPS / 2 ** (steps + 1) + 1e-12
        in_halves = eps / MAX_EPS * 2 ** (steps + 1)  # an odd number of them
        torch.testing.assert_close(in_halves, 2 * ((in_halves - 1) / 2).round() + 1)


def test_the_search_ends_where_nothing_crosses():
    """Always right: the upper end. Always wrong: the lower end. start_eps above max_eps is measured at max_eps."""
    model, x, y = problem((7,), 4, "Linf")
    direction = torch.zeros_like(x)
    for labels, end in ((y, MAX_EPS), (1 - y, 0.0)):
        eps = Search(logit_margin, MAX_EPS, 10)(model, x, labels, direction, torch.ones(4, dtype=torch.float64)).eps
        assert (eps - end).abs().max() <= MAX_EPS / 2**10


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_secant_search_on_a_linear_network_is_exact_after_a_few_passes(norm, clean):
    """The loss is linear along the direction, and so is the chord."""
    model, x, y = problem((3, 6, 6), 16, norm)
    w = model.w.detach()
    direction = -(2 * y - 1).reshape(-1, 1, 1, 1) * (w.sign() if norm == "Linf" else w / w.norm())
    start = torch.full((16,), 0.03, dtype=torch.float64)
    clean_loss = logit_margin(model(x), y).detach() if clean else None
    found = Search(logit_margin, MAX_EPS, 2, "secant")(model, x, y, direction, start, clean_loss)
    assert (found.eps - model.margin(x, norm)).abs().max() < 0.11 * MAX_EPS
    found = Search(logit_margin, MAX_EPS, 4, "secant")(model, x, y, direction, start, clean_loss)
    assert (found.eps - model.margin(x, norm)).abs().max() < 1e-3 * MAX_EPS
    assert not found.beyond.any()


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
