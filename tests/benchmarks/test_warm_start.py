"""AN-PGD visit by visit, from a warm start and from noise."""

from types import SimpleNamespace

import pytest

from benchmarks import warm_start
from command_lines import fails
from linear import MAX_EPS, problem
from support import ROOT


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_what_few_small_steps_find_adds_up_over_visits_only_from_a_warm_start(norm):
    """Two steps of a quarter of the radius each, on a linear classifier: the margin's closed form is the goal."""
    model, x, y = problem((1, 6, 6), 40, norm)
    training = SimpleNamespace(search_maxeps=MAX_EPS, attack_mineps=1e-3)
    subject = SimpleNamespace(model=model.eval(), norm=norm, training=training)
    ratio = {}
    for warm in (False, True):
        found = warm_start.visits(subject, x, y, warm, 2, 0.5)
        ratio[warm] = [float((one.eps / model.margin(x, norm)).mean()) for one in found]
    assert ratio[True][0] == ratio[False][0] > 1.2
    assert ratio[True][-1] < 1.02 < 1.1 < ratio[False][-1]


def test_a_run_without_smallest_distances_is_refused(capsys):
    run = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"
    fails(capsys, warm_start.main, [run, "--test_size", "3"], "no smallest distances of its first 3 test images")
