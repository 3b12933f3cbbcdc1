"""AN-PGD against the closed-form margin of a linear classifier."""

import pytest
import torch

from anpgd import anpgd, zero_crossing
from linear_problem import MAX_EPS, SEARCH_STEPS, problem
from losses import logit_margin, soft_logit_margin

TOLERANCE = MAX_EPS / 2**SEARCH_STEPS + 1e-5


SHAPES = [((7,), 5), ((3, 6, 6), 1), ((1, 8, 8), 16), ((2, 3, 4, 5), 3)]


@pytest.mark.parametrize(("shape", "batch"), SHAPES)
@pytest.mark.parametrize("loss", [soft_logit_margin, logit_margin])
@pytest.mark.parametrize("start", [0.005, "margin", 0.19])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_margin_from_zero_start(norm, start, loss, shape, batch):
    model, x, y = problem(shape, batch, norm)
    margin = model.margin(x, norm)
    start_eps = margin if start == "margin" else start
    found = anpgd(
        model,
        x,
        y,
        norm=norm,
        start_eps=start_eps,
        max_eps=MAX_EPS,
        steps=40,
        step_scale=2.5,
        search_steps=SEARCH_STEPS,
        attack_loss_fn=loss,
        search_loss_fn=loss,
    )
    assert (found.eps - margin).abs().max() <= TOLERANCE
    size = (found.x_adv - x).flatten(1).abs().amax(1) if norm == "Linf" else (found.x_adv - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(size, found.eps)


@pytest.mark.parametrize(("shape", "batch"), SHAPES)
@pytest.mark.parametrize("start", [0.005, "margin", 0.19])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_linear_margin_from_random_start(norm, start, shape, batch):
    """Linf: 40 steps of 2.5 eps / 40 cross the whole box. L2: they do not quite reach the best direction."""
    model, x, y = problem(shape, batch, norm)
    margin = model.margin(x, norm)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    found = anpgd(
        model,
        x,
        y,
        norm=norm,
        start_eps=margin if start == "margin" else start,
        max_eps=MAX_EPS,
        steps=40,
        step_scale=2.5,
        search_steps=SEARCH_STEPS,
        attack_loss_fn=soft_logit_margin,
        search_loss_fn=soft_logit_margin,
        noise=noise,
    )
    over = found.eps - margin
    assert over.min() >= -TOLERANCE
    assert (over <= TOLERANCE + (0.05 * margin if norm == "L2" else 0)).all()


def test_zero_crossing_halves_the_bracket_and_returns_the_last_midpoint():
    """K halvings of [0, max]: after 1 the answer is a quarter or three quarters, whatever lies between."""
    model, x, y = problem((7,), 4, "Linf")
    direction = -model.w.detach().sign() * (2 * y - 1).double()[:, None]
    margin = model.margin(x, "Linf")
    for steps in range(1, 8):
        eps = zero_crossing(
            model, x, y, direction, loss_fn=logit_margin, start_eps=MAX_EPS / 2, max_eps=MAX_EPS, steps=steps
        )
        assert (eps - margin).abs().max() <= MAX_EPS / 2 ** (steps + 1) + 1e-12
        in_halves = eps / MAX_EPS * 2 ** (steps + 1)  # an odd number of them
        torch.testing.assert_close(in_halves, 2 * ((in_halves - 1) / 2).round() + 1)


def test_zero_crossing_ends_where_nothing_crosses():
    """Always right: the upper end. Always wrong: the lower end. start_eps above max_eps is measured at max_eps."""
    model, x, y = problem((7,), 4, "Linf")
    direction = torch.zeros_like(x)
    for labels, end in ((y, MAX_EPS), (1 - y, 0.0)):
        eps = zero_crossing(model, x, labels, direction, loss_fn=logit_margin, start_eps=1.0, max_eps=MAX_EPS, steps=10)
        assert (eps - end).abs().max() <= MAX_EPS / 2**10
