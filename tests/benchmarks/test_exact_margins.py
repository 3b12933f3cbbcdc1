"""Exact margins by mixed-integer programs, beside a linear program for every pattern of ReLUs."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from benchmarks import exact_margins
from benchmarks.exact_margins import affine_layers, exact_margin
from benchmarks.small_networks import dense, dense_24
from command_lines import fails
from errors import UserError
from linear import with_corners
from support import ROOT

RUN = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"
NETWORK = f"{ROOT}/benchmarks/small_networks.py:dense_24"


def measured(model, x, y, known=math.inf, max_eps=1.0, seconds=60, **limits):
    layers = affine_layers(model, x.shape[1:])
    pixels = x.flatten(1).numpy()
    return [exact_margin(layers, pixels[k], int(y[k]), known, max_eps, seconds, **limits) for k in range(len(x))]


def a_network(*sizes, seed=0):
    """With weights so large that every image has an adversarial one."""
    torch.manual_seed(seed)
    model = dense(list(sizes)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return model


def by_patterns(model, x, y):
    """The least distance over every pattern of one hidden layer's units, each a linear program, and every other class."""
    w1, b1, w2, b2 = (parameter.detach().numpy() for parameter in model.parameters())
    pixels, best = x.size, math.inf
    for pattern in itertools.product((0, 1), repeat=len(b1)):
        on = np.array(pattern)
        side = (1 - 2 * on)[:, None] * w1, (2 * on - 1) * b1
        for t in set(range(len(b2))) - {y}:
            cross = w2[y] - w2[t]
            rows = [
                np.hstack([np.eye(pixels), -np.ones((pixels, 1))]),
                np.hstack([-np.eye(pixels), -np.ones((pixels, 1))]),
                np.hstack([side[0], np.zeros((len(b1), 1))]),
                np.append(cross @ (on[:, None] * w1), 0)[None],
            ]
            ends = np.concatenate([x, -x, side[1], [b2[t] - b2[y] - cross @ (on * b1)]])
            found = linprog(np.eye(pixels + 1)[-1], A_ub=np.vstack(rows), b_ub=ends, bounds=(0, 1))
            best = min(best, found.fun if found.status == 0 else math.inf)
    return best


def test_three_images_are_solved_as_by_every_pattern_of_units():
    model, x = a_network(6, 5, 3), with_corners(3, (2, 3))
    y = model(x).argmax(1)
    for one, image, label in zip(measured(model, x, y), x.flatten(1).numpy(), y.tolist(), strict=True):
        truth = by_patterns(model, image, label)
        assert one.upper == pytest.approx(truth, rel=1e-5) and one.lower == one.upper < 1
    assert max(one.units for one in measured(model, x, y)) >= 3


@pytest.mark.parametrize("known", [math.inf, 0.4])
def test_a_unit_that_is_always_zero_hides_nothing(known):
    """As behind dead units, or of a layer without biases: a margin of 0.3."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    for parameter, values in zip(
        model.parameters(), ([[1, 0], [0, 0]], [0, 0], [[1, 1], [-1, 1]], [-0.4, 0.4]), strict=True
    ):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    (one,) = measured(model, torch.tensor([[0.7, 0.5]], dtype=torch.float64), torch.tensor([0]), known, 0.5)
    assert one.lower == one.upper == pytest.approx(0.3)


def test_a_known_distance_changes_no_margin():
    model, x = a_network(8, 5, 5, 3), with_corners(2, (8,))
    y = model(x).argmax(1)
    for free, row in zip(measured(model, x, y), range(2), strict=True):
        (near,) = measured(model, x[[row]], y[[row]], known=1.2 * free.upper)
        assert near.upper == pytest.approx(free.upper, rel=1e-5) and near.units <= free.units
        (exact,) = measured(model, x[[row]], y[[row]], known=free.upper)
        assert exact.upper == pytest.approx(free.upper, rel=1e-5) and exact.lower == exact.upper


def test_what_is_not_solved_is_a_bracket():
    model, x = a_network(8, 6, 6, 4), with_corners(2, (8,))
    y = model(x).argmax(1)
    for limits in ({"seconds": 0}, {"most_units": 2}):
        for one in measured(model, x, y, known=0.9, **limits):
            assert (one.lower, one.upper) == (0, 0.9)
    (truth,) = measured(model, x[:1], y[:1])
    (beyond,) = measured(model, x[:1], y[:1], max_eps=truth.upper / 2)
    assert beyond.upper == math.inf and beyond.lower == truth.upper / 2
    (stopped,) = measured(a_network(64, 40, 40, 4), with_corners(1, (64,)), torch.tensor([0]), known=0.9, seconds=0.3)
    assert 0 <= stopped.lower < stopped.upper <= 0.9 and stopped.seconds < 3


def test_layers_are_those_of_the_network():
    torch.manual_seed(0)
    first = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    convolution = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.AvgPool2d(2))
    model = nn.Sequential(convolution, nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU()), nn.Linear(5, 4)).eval()
    x = torch.rand(6, 2, 8, 8)
    first, second, last = affine_layers(model, x.shape[1:])
    z = x.flatten(1).double().numpy().T
    for layer in (first, second):
        z = np.maximum(layer.weight @ z + layer.bias[:, None], 0)
    np.testing.assert_allclose((last.weight @ z).T + last.bias, model(x).detach().numpy(), atol=1e-5)
    with pytest.raises(UserError, match="layer Tanh: the exact solver knows Sequential, ReLU"):
        affine_layers(nn.Sequential(nn.Flatten(), nn.Tanh()), (1, 2, 2))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder of an untrained network, that is right about some images."""
    torch.manual_seed(0)
    config = json.loads((RUN / "config.json").read_text()) | {"network": NETWORK}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": dense_24(1, 8, 8, 10).state_dict(), "config": config}, folder / "model_best.pt")
    monkeypatch.setattr(exact_margins, "FMN_STEPS", 20)
    monkeypatch.setattr(exact_margins, "APGD_STEPS", 20)
    return folder


def test_images_are_kept_one_by_one_and_never_solved_twice(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "margins.json"
    argv = [str(run), "--network", NETWORK, "--test_size", "40", "--out", str(out)]
    solve, calls = exact_margins.exact_margin, []

    def stops(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(*args)

    monkeypatch.setattr(exact_margins, "exact_margin", stops)
    assert exact_margins.main(argv) == 130
    assert len(json.loads(out.read_text())["run"]["images"]) == 2
    assert exact_margins.main(argv) == 0
    assert len(json.loads(out.read_text())["run"]["images"]) == len(calls) - 1
    content, solved = out.read_bytes(), len(calls)
    capsys.readouterr()
    assert exact_margins.main(argv) == exact_margins.main(["--out", str(out)]) == 0
    assert len(calls) == solved and out.read_bytes() == content
    said = capsys.readouterr().out
    images = json.loads(content)["run"]["images"].values()
    assert f"digits, dense_24, mma, seeds 0: {len(images)} of {len(images)} images solved" in said
    for image in images:
        assert all(value is None or value >= image["upper"] - 1e-6 for value in image["found"])
    assert len(said.splitlines()) == 2 * (4 + 14 + 1)
    fails(capsys, exact_margins.main, [*argv, "--seconds", "7"], "other weights or settings", "--out")
    out.write_text(re.sub("visits 6, [0-9]+ passes", "visits 7, 9 passes", out.read_text()))
    fails(capsys, exact_margins.main, [*argv, "--test_size", "60"], "run by other attacks", "--out")
    out.write_text("{")
    fails(capsys, exact_margins.main, argv, "margins.json: is damaged", "--out")


def test_runs_and_flags_that_do_not_fit_are_one_line(run, capsys):
    fails(capsys, exact_margins.main, [run], "names the network", "--network")
    fails(capsys, exact_margins.main, [RUN], "layer LeNet5", "ReLU")
    fails(capsys, exact_margins.main, ["--seconds", "0"], "--seconds 0: must be above 0")
    file = torch.load(run / "model_best.pt")
    torch.save(file | {"config": file["config"] | {"norm": "L2"}}, run / "model_best.pt")
    fails(capsys, exact_margins.main, [run, "--network", NETWORK], "trained under L2", "Linf")


def test_a_table_leaves_out_what_is_not_solved():
    images = {
        str(k): {"lower": 0.1, "upper": upper, "seconds": 1.0, "found": [0.1 + k / 1250, None]}
        for k, upper in enumerate([0.1, 0.1, 0.1, 0.2, None])
    }
    network = {"kind": "a kind", "seed": 3, "attacks": ["a", "b"], "images": images}
    head, *_, row, nothing, _ = exact_margins.table([network])
    assert head == "a kind, seeds 3: 3 of 5 images solved, in 1.0 s each; exact mean margin 0.1000"
    assert row.startswith("| a | 0.80 [0.00, 1.60] | 0.80 | 1.52 | 67% | 0 |")
    assert nothing == "| b | – | – | – | – | 3 |"
