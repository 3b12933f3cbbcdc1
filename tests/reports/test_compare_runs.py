"""Runs against a baseline: pairing by seed and image, coverage of the interval, bad input."""

import numpy as np
import pytest

from command_lines import fails
from evaluations.results import as_flags
from report_runs import cells, evaluate, make_run, row
from reports import compare_runs
from support import ROOT


@pytest.fixture
def attacked(tmp_path):
    """`attacked(name, flags, …)` makes a run folder, attacked by PGD at 0.2 on validation images."""

    def make(name, flags, split="val", images="i", **config):
        folder = make_run(tmp_path / name, **config)
        evaluate(folder, "pgd", [row(0.2, 0, flags=flags, split=split, images=images)])
        return folder

    return make


def test_the_seeds_that_both_have_are_compared_image_by_image(attacked, capsys):
    """Whatever the folders are called; a seed that the baseline alone has does not count in the difference."""
    runs = [attacked(f"run{s}", flags, seed=s) for s, flags in ((2, "0000"), (1, "1111"), (0, "1100"))]
    runs += [attacked(f"other-sd{9 - s}", flags, seed=s, hinge_maxeps=0.2) for s, flags in ((0, "0100"), (1, "0111"))]
    assert compare_runs.main([*map(str, runs), "--split", "val"]) == 0  # at the test radius of the training
    _, _, first, second = cells(capsys.readouterr().out)
    assert first[:4] == ["MMA, d_max 0.3", "3", "≤ 0.17 ± 0.00", "0.2 ± 0.0"] and first[-2:] == ["50.0 ± 50.0", "–"]
    mean, half = -25.0, 100 * 1.959964 * np.std([-1, 0, 0, 0], ddof=1) / 2
    assert second[-1] == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}], 2 seeds"


def test_of_several_evaluations_the_largest_that_all_have_counts(attacked, capsys):
    """One run on 6 and on 4 images, the other on 4."""
    both, one = attacked("A", "110000"), attacked("B", "1111", hinge_maxeps=0.2)
    evaluate(both, "pgd", [row(0.2, 0, flags=f, split="val", images=i) for f, i in (("110000", "all"), ("1000", "i"))])
    assert compare_runs.main([str(both), str(one), "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 validation images") and [line[5] for line in cells(out)[2:]] == ["25.0", "100.0"]


def test_a_run_attacked_as_two_networks_is_refused(attacked, capsys):
    both, one = attacked("A", "1100"), attacked("B", "1111", hinge_maxeps=0.2)
    ways = [{"nb_iter": 100}, {"nb_iter": 100, "overrides": {"standardise": "image"}}]
    evaluate(both, "pgd", [row(0.2, 0, flags="1100", split="val", settings=way) for way in ways])
    said = "attacked at 0.2 as several networks (--standardise: image, not given)"
    fails(capsys, compare_runs.main, [both, one, "--split", "val"], "A: " + said)


def test_rows_that_do_not_say_their_images(capsys):
    """As of the digits table, with three seeds each."""
    runs = [str(path) for name in ("PGD-0.2", "MMA-0.3") for path in sorted(ROOT.glob(f"benchmarks/digits/*-{name}-*"))]
    assert len(runs) == 6 and compare_runs.main(runs) == 0
    assert cells(capsys.readouterr().out)[3][-1] == "-3.4 [-5.6, -1.1], 3 seeds"


def test_intervals_cover():
    """Of many draws about 95 % enclose the true difference: of one seed by its discordances, of three by their mean."""
    rng = np.random.default_rng(2)
    inside = []
    for b, c in rng.multinomial(300, [0.12, 0.05, 0.83], 600)[:, :2]:
        low, high = compare_runs.difference_interval(b, c, 300)
        inside.append(low <= 0.07 <= high)
    assert 0.93 <= np.mean(inside) <= 0.975
    inside = []
    for _ in range(400):
        hard = rng.random(300) < 0.3  # images on which the methods differ, in every seed
        draws = [[rng.random(300) < np.where(hard, p, 0.95) for _ in range(3)] for p in (0.6, 0.4)]
        rows = [{s: {"n": 300, "flags": as_flags(one)} for s, one in enumerate(seeds)} for seeds in draws]
        mean, low, high, seeds = compare_runs.paired(*rows)
        inside.append(low <= 0.3 * 0.2 <= high)
        assert seeds == 3 and low < mean < high
    assert 0.91 <= np.mean(inside) <= 0.985


def test_what_cannot_be_compared_is_refused(attacked, tmp_path, capsys):
    run, other = attacked("A", "1100"), attacked("B", "1100", images="j", hinge_maxeps=0.2)
    test, seed = attacked("C", "11", split="test"), attacked("D", "1100", seed=1, hinge_maxeps=0.2)
    colour, val = attacked("E", "1100", dataset="cifar10"), ["--split", "val"]
    evaluate(run, "autoattack", [row(0.1, 0, flags="11", split="val")])
    assert compare_runs.main([str(run), *val, "--eps", "0.1", "--attack", "autoattack"]) == 0
    assert "AutoAttack at 0.1" in capsys.readouterr().out
    for argv, *parts in (
        ([run, other, *val], "not attacked on the same images"),
        ([run, test, *val], f"evaluate_on_pgd_attacks.py --model {test} --eps 0.2 --split val"),
        ([run, seed, *val], "no seed in common"),
        ([run, *val, "--eps", "0.1"], f"but at 0.2: --eps): run evaluate_on_pgd_attacks.py --model {run} --eps 0.1"),
        ([run, colour, *val], "another data set"),
        ([run, *val, "--out", tmp_path], f"{tmp_path}: Is a directory"),
    ):
        fails(capsys, compare_runs.main, argv, *parts)
    (other / "eval_pgd_Linf.json").write_text("{")
    fails(capsys, compare_runs.main, [run, other, *val], "eval_pgd_Linf.json", "left out")
    (other / "config.json").unlink()
    fails(capsys, compare_runs.main, [run, other, *val], "config.json")
