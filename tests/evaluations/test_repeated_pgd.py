"""Repeated PGD: what falls stays fallen, restarts and radii of their own, packing, several kinds of networks."""

import itertools

import pytest
import torch
from torch import nn

from evaluations.repeated_pgd import (
    FULL_RESTARTS,
    SKIP_ABOVE,
    AttackState,
    clean_logits,
    from_noise,
    repeated_pgd,
    skip_below_of,
    strong_restarts,
)
from linear import Function
from losses import cross_entropy, logit_margin, soft_logit_margin
from networks.lenet import LeNet5Madry
from pgd import GEOMETRY, pgd
from tiny_runs import rand
from utils import EVALUATE


def attack(model, x, y, eps=0.1, restarts=1, index=None, steps=10, run=pgd, **more):
    how = {"norm": "Linf", "eps": eps, "step_size": eps / 4, "steps": steps}
    losses = (soft_logit_margin, cross_entropy)[:restarts] + (cross_entropy,) * (restarts - 2)
    index = torch.arange(len(x)) if index is None else index
    restarts = [from_noise(run, loss_fn=loss, **how) for loss in losses]
    return repeated_pgd(model, x, y, index, **{"restarts": restarts, "eps": eps, "batch_size": 8, **more})


def half_robust(n=40):
    torch.manual_seed(0)
    model, x = LeNet5Madry(1, 8, 8), rand(n, 1, 8, 8, seed=4, dtype=torch.float32)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10  # some are misclassified from the start
    return model, x, y


def test_success_only_grows_with_restarts_and_with_eps():
    model, x, y = half_robust()
    robust = [attack(model, x, y, eps=0.02, restarts=r).robust for r in (1, 2, 4)]
    for fewer, more in itertools.pairwise(robust):
        assert not (more & ~fewer).any()
    weak = attack(model, x, y, eps=0.02, restarts=2)
    before = AttackState(weak.x_adv.clone(), weak.margin.clone())
    strong = attack(model, x, y, eps=0.05, restarts=2, state=before)
    assert not (strong.robust & ~weak.robust).any()
    assert strong.robust.sum() < weak.robust.sum() < (logit_margin(model(x), y) < 0).sum()
    assert GEOMETRY["Linf"].length(strong.x_adv - x).max() <= 0.05 + 1e-6


def test_misclassified_is_not_robust_and_is_left_alone():
    model, x, y = half_robust()
    result, nothing = attack(model, x, y), attack(model, x, (model(x).argmax(1) + 1) % 10, restarts=2)
    assert not result.robust[::5].any() and not nothing.robust.any()
    assert torch.equal(result.x_adv[::5], x[::5]) and torch.equal(nothing.x_adv, x)


def test_survivors_keep_their_strongest_perturbation():
    """`margin` is that of `x_adv`, above the clean one, and never sinks with more restarts."""
    model, x, y = half_robust()
    one, two = attack(model, x, y, eps=0.01, restarts=1), attack(model, x, y, eps=0.01, restarts=3)
    torch.testing.assert_close(one.margin, logit_margin(model(one.x_adv), y).detach(), atol=1e-5, rtol=0)
    assert (two.margin >= one.margin).all()
    assert (one.margin[one.robust] > logit_margin(model(x), y)[one.robust]).all()


def test_constant_model_gives_back_the_clean_input():
    constant = Function(lambda x: 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0]))
    x = rand(5, 1, 8, 8)
    result = attack(constant, x, torch.tensor([0, 0, 0, 1, 2]), restarts=2)
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


def test_an_output_that_is_not_a_number_is_not_robust():
    def fragile(x):
        logits = torch.stack([1 + 0 * x.flatten(1)[:, 0], x.flatten(1)[:, 0] - 0.5], dim=1)
        return torch.where(x.flatten(1).amax(1, keepdim=True) > 0.55, logits * float("nan"), logits)

    x = torch.full((4, 1, 8, 8), 0.5)
    assert not attack(Function(fragile), x, torch.zeros(4, dtype=torch.long), eps=0.2).robust.any()


def test_starts_differ_by_seed_restart_and_radius_and_not_by_batch():
    def starts(eps, seed=0, restart=0, batch_size=8):
        model, x, y = half_robust()
        drawn = []

        def stay(model, x, y, uniform):
            drawn.append(uniform(EVALUATE, x.shape[1:]))
            return x

        state = AttackState(x.clone(), logit_margin(clean_logits(model, x, batch_size), y), restart)
        how = {"restarts": [stay] * (restart + 1), "eps": eps, "seed": seed, "batch_size": batch_size}
        repeated_pgd(model, x, y, torch.arange(len(x)), state=state, **how)
        return torch.cat(drawn)[: int((model(x).argmax(1) == y).sum())]

    same = starts(0.1)
    assert torch.equal(same, starts(0.1, batch_size=5))
    for other in (starts(0.1 + 1e-9), starts(0.2), starts(0.1, seed=1), starts(0.1, restart=1)):
        cosine = torch.cosine_similarity((2 * same - 1).flatten(1), (2 * other - 1).flatten(1), dim=1)
        assert cosine.abs().max() < 0.6, "no image starts along the same direction, not nearly either"


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_strong_restarts_fall_in_size_climb_every_second_time_start_at_corners_and_turn_to_each_class(norm):
    model, x, _ = half_robust(12)
    y, eps, calls = model(x).argmax(1), 1e-4, []  # so small that all stand to the end

    def spied(model, x, y, **how):
        calls.append((y, how))
        return pgd(model, x, y, **how)

    restarts = strong_restarts(spied, 8, norm=norm, eps=eps, step_size=eps / 3, steps=14)
    found = repeated_pgd(model, x, y, torch.arange(12), restarts=restarts, eps=eps, batch_size=12)
    assert (GEOMETRY[norm].length(found.x_adv - x) <= eps + 1e-6).all() and found.x_adv.min() >= 0
    plain = [(y, how) for y, how in calls if how.get("decays")]
    climbs = [how for _, how in calls if not how.get("decays")]
    assert [how["steps"] for _, how in plain] == [14, 4] * 4 and [how["steps"] for how in climbs] == [10] * 4
    cells = (slice(0, 1), slice(0, 1)), (slice(0, 2), slice(0, 2))  # of a seventh of 8 pixels, of a quarter
    for (_, how), (rows, columns) in zip(plain[2:5:2], cells, strict=True):
        assert how["noise"].unique().tolist() == [0, 1], "at corners"
        cell = how["noise"][:, :, rows, columns]
        assert torch.equal(cell, cell[:, :, :1, :1].expand_as(cell))
    assert all(how["noise"].unique().numel() > 100 for _, how in (plain[0], plain[6])), "anywhere"
    wrong = clean_logits(model, x, 12).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    for number, (weights, _) in enumerate(plain):
        if number % 4 < 3:
            assert torch.equal(weights, y)
        else:
            target = wrong[:, number // 4]
            assert (weights.argmax(1) == target).all() and (weights.argmin(1) == y).all()
            assert (weights.sum(1) == 0).all() and (weights.abs().sum(1) == 2).all()


def test_strong_pgd_breaks_what_steps_of_one_size_cannot_reach():
    """A valley narrower than a step: it falls only where the steps become small."""

    def valley(x):
        far = (x.flatten(1)[:, 0] - 0.613).abs()
        return torch.stack([torch.zeros_like(far), 0.01 - far], dim=1)

    x, y = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.long)
    how = {"norm": "Linf", "eps": 0.3, "step_size": 0.1, "steps": 40}
    constant = [from_noise(pgd, loss_fn=logit_margin, **how)]
    left = [
        repeated_pgd(Function(valley), x, y, torch.arange(8), restarts=restarts, eps=0.3).robust.sum()
        for restarts in (constant, strong_restarts(pgd, 1, **how))
    ]
    assert left[0] >= 4 and left[1] == 0


def test_images_that_hardly_gave_way_are_skipped_by_the_later_restarts():
    brightness = torch.tensor([0.9, 0.8, 0.7])
    x = torch.stack([brightness, torch.zeros(3)], 1).view(3, 1, 1, 2)  # its pixels are its logits, and 0 the class
    attacked, y = [], torch.zeros(3, dtype=torch.long)

    def restart(model, x, y, uniform):
        """Leaves 0.1, 0.5 and 0.9 of the clean margin."""
        attacked.append(x[:, 0, 0, 0].unique().tolist())
        return x * (0.1 + 4 * (0.9 - x[..., :1]))

    how = {"restarts": [restart] * (FULL_RESTARTS + 2), "eps": 0.9, "batch_size": 3}
    for protocol, later in (("paper", 3), ("strong", 2)):
        attacked.clear()
        clean = logit_margin(clean_logits(nn.Flatten(), x, 3), y)
        found = repeated_pgd(nn.Flatten(), x, y, torch.arange(3), **how, skip_below=skip_below_of(protocol, clean))
        everyone = brightness.sort().values.tolist()
        assert attacked == [everyone] * FULL_RESTARTS + [everyone[3 - later :]] * 2
    assert found.robust.all() and (found.margin / clean > SKIP_ABOVE).tolist() == [False, False, True]
