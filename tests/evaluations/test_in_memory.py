"""Margins and robust accuracy of networks in memory, as torch.hub gives them: closed forms, promises kept, bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import hubconf
from linear import Function, Linear, save_zeros_against_ones, worst_margins
from linear import digits as digits  # a fixture
from losses import logit_margin
from support import ROOT


@pytest.fixture(scope="module")
def zeros_and_ones(digits, tmp_path_factory):
    """A linear network, 60 digits it is for, their labels, and the file it lies in."""
    path = save_zeros_against_ones(digits, tmp_path_factory.mktemp("of") / "net")
    model = Linear(1, 8, 8, 10)
    model.load_state_dict(torch.load(path))
    x, y = digits
    return model, x[y < 2][:60], y[y < 2][:60], path


def moody(seed=0):
    """In train mode, with all that train mode changes; one parameter asks for no gradient."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10)
    model = nn.Sequential(*layers)
    model[1].bias.requires_grad_(False)
    model[2].eval()
    return model


@pytest.mark.parametrize(("norm", "max_eps"), [("Linf", 0.6), ("L2", 3.0)])
def test_margins_of_a_line_equal_the_closed_form(zeros_and_ones, norm, max_eps):
    """The margin lies between two radii that the closed form tells apart, pixels at 0 and 1 included."""
    model, x, y, path = zeros_and_ones
    found = hubconf.margins(norm, max_eps)(model, x, y)
    assert found.found.sum() >= 55 and found.eps[~found.found].eq(math.inf).all()
    for row in found.found.nonzero().squeeze(1).tolist():
        one, eps = (x[[row]], y[[row]]), float(found.eps[row])
        assert worst_margins(path, one, norm, eps + 2e-3 * max_eps)[0] < 0
        assert eps == 0 or worst_margins(path, one, norm, max(eps - 2e-3 * max_eps, 0))[0] > 0


@pytest.mark.parametrize(("norm", "max_eps"), [("Linf", 0.315), ("Linf", 0.02), ("L2", 1.5)])
@pytest.mark.parametrize("settings", [{}, {"projections": 0, "targets": 0}, {"targets": "all", "batch_size": 17}])
def test_every_margin_has_its_adversarial_image(digits, norm, max_eps, settings):
    model = hubconf.mma("digits-Linf-MMA-0.3-sd0")
    x, y = digits[0][:60], digits[1][:60].clone()
    y[:3] = (y[:3] + 1) % 10  # wrong already
    found = torch.hub.load(ROOT, "margins", source="local", norm=norm, max_eps=max_eps, steps=10, **settings)(
        model, x, y
    )
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()
    wrong = model(found.x_adv).argmax(1) != y
    assert torch.equal(wrong, found.found)
    length = (found.x_adv - x).flatten(1)
    length = length.abs().amax(1) if norm == "Linf" else length.norm(dim=1)
    torch.testing.assert_close(found.eps[wrong], length[wrong])
    assert found.eps[~wrong].eq(math.inf).all() and torch.equal(found.x_adv[~wrong], x[~wrong])
    assert found.eps[wrong].max() <= max_eps + 1e-6
    assert not found.eps[:3].any() and torch.equal(found.x_adv[:3], x[:3])
    just_inside = x + (1 - 2e-4 * max_eps / found.eps[:, None, None, None]).clamp(min=0) * (found.x_adv - x)
    assert (logit_margin(model(just_inside), y) < 0)[3:].all()


def test_the_default_is_shorter_than_the_papers_anpgd(digits):
    model, (x, y) = hubconf.mma("digits-Linf-MMA-0.3-sd0"), digits
    x, y = x[:60], y[:60]
    found = hubconf.margins("Linf", 0.3, steps=10)(model, x, y)
    plain = hubconf.margins("Linf", 0.3, steps=10, projections=0, targets=0)(model, x, y)
    assert (found.eps <= plain.eps + 1e-4).all() and found.found.sum() > plain.found.sum()


@pytest.mark.parametrize("entry", ["margins", "paper", "strong", "autoattack"])
def test_the_network_the_images_and_the_generators_are_as_before(digits, entry):
    """Though it came in train mode, with BatchNorm, dropout and a gradient of its own."""
    model, x = moody(), digits[0][:4].clone()
    y = copy.deepcopy(model).eval()(x).argmax(1).int()  # all right: each attack has something to do
    model[1].weight.grad = torch.ones(20, 64)
    before, draws, images = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x.clone()
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    if entry == "margins":
        hubconf.margins("Linf", 0.1, steps=3)(model, x, y)
    elif entry == "autoattack":
        hubconf.robust_accuracy("Linf", 0.001, attack="autoattack")(model, x, y)
    else:
        hubconf.robust_accuracy("Linf", 0.1, protocol=entry, steps=12, restarts=2)(model, x, y)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and [p.requires_grad for p in model.parameters()] == flags
    assert model[1].weight.grad.eq(1).all() and model[5].weight.grad is None
    assert torch.equal(torch.get_rng_state(), draws) and torch.equal(x, images) and y.dtype == torch.int32


ATTACKS = [(norm, {"protocol": protocol}) for norm in ("Linf", "L2") for protocol in ("paper", "strong")]


@pytest.mark.parametrize(("norm", "settings"), [*ATTACKS, ("Linf", {"attack": "autoattack"})], ids=str)
def test_robust_accuracy_of_a_line_equals_the_closed_form(zeros_and_ones, norm, settings):
    model, x, y, path = zeros_and_ones
    eps = 0.3 if norm == "Linf" else 1.5
    if settings.get("attack") == "autoattack":  # the standard ensemble takes long on those that stand: one of them
        order = worst_margins(path, (x, y), norm, eps).argsort(descending=True)
        x, y = x[order][[0, -2, -1]], y[order][[0, -2, -1]]
    measure = torch.hub.load(
        ROOT, "robust_accuracy", source="local", norm=norm, eps=eps, steps=20, restarts=3, **settings
    )
    found, margins = measure(model, x, y), worst_margins(path, (x, y), norm, eps)
    sure = margins.abs() > 0.01
    assert torch.equal(found.flags[sure], margins[sure] > 0) and 0 < found.flags.sum() < len(x)
    assert found.accuracy == found.flags.double().mean()
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert found.attack.startswith("AutoAttack" if settings.get("attack") else "PGD")


def test_one_step_crosses_a_large_ball_and_autoattack_refuses_another_type():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(3, 1, 8, 8)
    assert hubconf.robust_accuracy("Linf", 0.9, steps=1, restarts=1)(model, x, model(x).argmax(1)).accuracy == 0
    with pytest.raises(ValueError, match=r"in torch.float64, AutoAttack works in float32: give model.float\(\)"):
        hubconf.robust_accuracy("Linf", 0.1, attack="autoattack")(
            model.double(), x.double(), model(x.double()).argmax(1)
        )


X, Y, TEN = torch.full((4, 1, 8, 8), 0.5), torch.tensor([0, 1, 2, 3]), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def made_for_inference():
    with torch.inference_mode():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


BAD_CALLS = [
    ("images: torch.float32, from -0.1 to 0.5", TEN, X - torch.eye(8) * 0.6, Y),
    ("images: torch.float32, from 0.5 to 127.5", TEN, torch.cat([X[:3], 255 * X[3:]]), Y),
    ("images: torch.float32, from nan", TEN, X * math.nan, Y),
    ("images: torch.uint8", TEN, X.byte(), Y),
    ("images: none", TEN, X[:0], Y[:0]),
    ("labels: from 0 to 10, but the network has the classes 0 to 9", TEN, X, Y + torch.tensor([0, 0, 0, 7])),
    ("labels: from -1", TEN, X, Y - 1),
    ("labels: torch.float32", TEN, X, Y.float()),
    ("labels: torch.int64 (3,)", TEN, X, Y[:3]),
    ("the network: gives (4, 1)", nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), X, Y * 0),
    ("images: torch.float64, the network is in torch.float32", TEN, X.double(), Y),
    ("images: of type ndarray: give a torch.Tensor", TEN, X.numpy(), Y),
    ("the network: of type function", lambda x: TEN(x), X, Y),
    ("the network: in torch.bfloat16, too coarse", copy.deepcopy(TEN).bfloat16(), X.bfloat16(), Y),
    ("the network: made in torch.inference_mode()", made_for_inference(), X, Y),
    ("the network: gives a tuple, not logits", Function(lambda x: (TEN(x), x)), X, Y),
    ("the network: no gradient reaches the images", Function(lambda x: TEN(x).detach()), X, TEN(X).argmax(1)),
]


@pytest.mark.parametrize(("text", "model", "x", "y"), BAD_CALLS, ids=[case[0] for case in BAD_CALLS])
def test_images_and_labels_that_do_not_fit_are_one_line(text, model, x, y):
    for measure in (hubconf.margins("Linf", 0.3), hubconf.robust_accuracy("L2", 1.0)):
        with pytest.raises(ValueError) as said:
            measure(model, x, y)
        assert str(said.value).startswith(text) and "\n" not in str(said.value)


RADIUS = {"margins": "max_eps", "robust_accuracy": "eps"}
RADII = [("L2", math.nan), ("L2", math.inf), ("L2", 0), ("Linf", -0.1), ("Linf", 1.5)]
OF_BOTH = [{"steps": 0}, {"batch_size": 0}, {"norm": "L1"}]
OF_ONE = {
    "margins": [{"max_eps": "8/255"}, {"projections": -1}, {"targets": 1.5}, {"targets": "most"}],
    "robust_accuracy": [{"restarts": 0}, {"protocol": "weak"}, {"attack": "fgsm"}, {"step_size": 0.0}, {"seed": -1}],
}
WRONG = [
    (entry, wrong)
    for entry, radius in RADIUS.items()
    for wrong in [*OF_BOTH, *OF_ONE[entry], *({radius: value, "norm": norm} for norm, value in RADII)]
]


@pytest.mark.parametrize(("entry", "wrong"), WRONG, ids=str)
def test_settings_that_mean_nothing_are_refused(entry, wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name} .*must be (above 0|a number)" if name == RADIUS[entry] else name):
        getattr(hubconf, entry)(**{"norm": "Linf", RADIUS[entry]: 0.3, **wrong})


@pytest.mark.parametrize("entry", ["margins", "robust_accuracy"])
def test_results_are_the_same_inside_the_callers_modes_and_pickled(zeros_and_ones, entry):
    model, x, y, _ = zeros_and_ones
    settings = {"max_eps": 0.6} if entry == "margins" else {"eps": 0.1, "restarts": 2}
    measure = getattr(hubconf, entry)("Linf", **settings)
    plain = measure(model, x, y)
    with torch.inference_mode():
        found = measure(model, x.clone(), y.to(torch.uint16))
    with torch.autocast("cpu", torch.bfloat16):
        coarse = measure(model, x, y)
    read = pickle.loads(pickle.dumps(plain))
    for other in (found, coarse, read):
        for name, value in plain._asdict().items():
            assert torch.equal(getattr(other, name), value) if torch.is_tensor(value) else getattr(other, name) == value


def test_two_classes_have_margins():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).double(), 0.5 + 0.01 * torch.rand(20, 1, 3, 3).double()
    y, w = model(x).argmax(1), model[1].weight.detach()
    margin = ((model(x)[:, 0] - model(x)[:, 1]).abs() / (w[0] - w[1]).abs().sum()).detach()
    with torch.no_grad():  # the caller's
        found = hubconf.margins("Linf", 0.4)(model, x, y)
    torch.testing.assert_close(found.eps, torch.where(margin < 0.4, margin, math.inf), rtol=0, atol=0.4e-4)


def test_images_that_ask_for_a_gradient_give_margins_without_one(digits):
    (x, y), model = digits, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = hubconf.margins("Linf", 0.3)(model, x[:4].clone().requires_grad_(), y[:4])
    assert not found.eps.requires_grad and not found.x_adv.requires_grad
