"""AN-PGD visit by visit, from kept directions and from noise."""

from types import SimpleNamespace

import pytest

from benchmarks import kept_directions
from command_lines import fails
from linear_problem import MAX_EPS, problem
from support import ROOT


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_what_few_small_steps_find_adds_up_over_visits_only_if_kept(norm):
    """Two steps of a quarter of the radius each, on a linear classifier: the margin's closed form is the goal."""
    model, x, y = problem((1, 6, 6), 40, norm)
    subject = SimpleNamespace(
        model=model.eval(), norm=norm, training=SimpleNamespace(search_maxeps=MAX_EPS, attack_mineps=1e-3)
    )
    ratio = {}
    for kept in (False, True):
        found = kept_directions.visits(subject, x, y, kept, 2, 0.5)
        ratio[kept] = [float((one.eps / model.margin(x, norm)).mean()) for one in found]
    assert ratio[True][0] == ratio[False][0] > 1.2
    assert ratio[True][-1] < 1.02 < 1.1 < ratio[False][-1]


def test_a_run_without_smallest_distances_is_refused(capsys):
    run = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"
    fails(
        capsys, kept_directions.main, [str(run), "--test_size", "3"], "no smallest distances of its first 3 test images"
    )
