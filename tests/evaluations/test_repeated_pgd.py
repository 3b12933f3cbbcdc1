"""Repeated PGD: what falls stays fallen, restarts and radii of their own, packing, several kinds of networks."""

import itertools

import torch
from torch import nn

from evaluations.repeated_pgd import (
    Course,
    Images,
    Listener,
    Protocol,
    Running,
    clean_attacked,
    go_on,
    repeated_pgd,
)
from losses import cross_entropy, logit_margin, soft_logit_margin
from networks.lenet import LeNet5Madry


def norms(delta):
    return delta.flatten(1).abs().amax(1)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attack(model, x, y, eps=0.1, restarts=1, batch_size=8, state=None, index=None, steps=10, seed=0):
    losses = (soft_logit_margin, cross_entropy)[:restarts] + (cross_entropy,) * (restarts - 2)
    images, run = Images(x, y, torch.arange(len(x)) if index is None else index), Running(batch_size)
    protocol = Protocol(losses, "Linf", eps, eps / 4, steps, seed)
    return repeated_pgd(model, images, protocol, state or clean_attacked(model, images, run), run)


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
    assert norms(strong.x_adv - x).max() <= 0.05 + 1e-6


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


def test_starts_differ_by_seed_restart_and_radius_and_not_by_batch():
    """The direction of the first step away from the image; with steps of length 0 the start is what is found."""

    def starts(eps, seed=0, restart=0, batch_size=8):
        model, x, y = half_robust()
        kept = []

        def stay(model, x, y, *, noise, **_):
            kept.append(noise)
            return x

        images, run = Images(x, y, torch.arange(len(x))), Running(batch_size, stay)
        protocol = Protocol((cross_entropy,) * (restart + 1), "Linf", eps, eps / 4, 1, seed)
        course = Course.begin(clean_attacked(model, images, run))
        course.restart = restart
        assert go_on(model, images, protocol, course, run)
        standing = (model(x).argmax(1) == y).nonzero().squeeze(1)
        return torch.cat(kept)[: len(standing)]

    same = starts(0.1)
    assert torch.equal(same, starts(0.1, batch_size=5))
    others = [starts(0.1 + 1e-9), starts(0.2), starts(0.1, seed=1), starts(0.1, restart=1)]
    for other in others:  # no image starts along the same direction, not nearly either
        cosine = torch.cosine_similarity((2 * same - 1).flatten(1), (2 * other - 1).flatten(1), dim=1)
        assert cosine.abs().max() < 0.6


def test_what_stored_flags_say_has_fallen_is_not_attacked_again():
    model, x, y = half_robust()
    images, run = Images(x, y, torch.arange(len(x))), Running(8)
    clean = clean_attacked(model, images, run)
    fallen = torch.arange(len(x)) % 2 == 1
    result = attack(model, x, y, eps=0.02, state=clean.fallen(fallen))
    alone = attack(model, x, y, eps=0.02)
    assert torch.equal(result.robust, alone.robust & ~fallen) and result.robust.any()
    assert torch.equal(result.x_adv[fallen], x[fallen])
    assert torch.equal(result.x_adv[~fallen], alone.x_adv[~fallen])


def test_stopped_after_any_batch_and_gone_on_with_is_the_same_bit_for_bit():
    """Also with copies of the state, as files give them."""
    model, x, y = half_robust()
    images, run = Images(x, y, torch.arange(len(x))), Running(8)
    protocol = Protocol((cross_entropy, soft_logit_margin, cross_entropy), "Linf", 0.02, 0.005, 5, 0)
    clean = clean_attacked(model, images, run)
    counts = []
    whole = repeated_pgd(model, images, protocol, clean, run, Listener(lambda course, count: counts.append(count)))
    sliced, pieces, parts = Course.begin(clean), [], 0
    while True:
        asked = iter([False, True])
        listener = Listener(lambda course, count: pieces.append(count), lambda asked=asked: next(asked))
        if go_on(model, images, protocol, sliced, run, listener):
            break
        parts += 1
        state = sliced.found
        sliced = Course(type(state)(state.x_adv.clone(), state.margin.clone()), sliced.restart, sliced.attacked.clone())
    assert torch.equal(sliced.found.x_adv, whole.x_adv) and torch.equal(sliced.found.margin, whole.margin)
    assert parts >= len(counts) - 1 > 5 and sum(pieces) == sum(counts), "no image is attacked twice by a restart"
