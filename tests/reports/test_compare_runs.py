"""Runs against a baseline: pairing by seed and image, coverage of the interval, bad input."""

import json

import numpy as np
import pytest

from command_lines import fails
from report_runs import make_run, write_evaluation
from reports import compare_runs


@pytest.fixture
def attacked(tmp_path):
    """`attacked(name, flags, …)` makes a run folder, attacked at 0.3 on validation images."""

    def make(name, text, split="val", images="i", clean=0.9, passes=3_000_000, attack="pgd"):
        folder = make_run(tmp_path / name, accuracies=())
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "train", "step": 200, "steps_per_second": 10, "passes": passes}) + "\n")
        row = {"eps": 0.3, "robust_acc": text.count("1") / len(text), "flags": text}
        more = {"split": split, "images": images, "n": len(text), "clean_acc": clean}
        write_evaluation(folder, attack, "Linf", **more, results=[row])
        return folder

    return make


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"][2:]


def test_the_seeds_that_both_have_are_compared_image_by_image(attacked, capsys):
    """Whatever the order of the folders; a seed that the baseline alone has does not count in the difference."""
    runs = [attacked(f"digits-Linf-MMA-0.3-sd{s}-fast", text) for s, text in ((2, "0000"), (1, "1111"), (0, "1100"))]
    runs += [attacked(f"digits-Linf-MMA-0.3-sd{s}-fast-odd", text) for s, text in ((0, "0100"), (1, "0111"))]
    assert compare_runs.main([*map(str, runs), "--eps", "0.3", "--split", "val"]) == 0
    first, second = rows_of(capsys.readouterr().out)
    assert first[:4] == ["digits-Linf-MMA-0.3-fast", "3", "3.00 ± 0.00", "0 ± 0"] and first[-2:] == ["50.0 ± 50.0", "–"]
    mean, half = -25.0, 100 * 1.959964 * np.std([-1, 0, 0, 0], ddof=1) / 2
    assert second[-1] == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}], 2 seeds"


def test_of_several_evaluations_the_largest_that_all_have_counts(attacked, capsys):
    """One run on 6 and on 4 images, the other on 4."""
    both, one = attacked("digits-Linf-A-sd0", "110000", images="all"), attacked("digits-Linf-B-sd0", "1111")
    path = both / "eval_pgd_Linf.json"
    content = json.loads(path.read_text())
    more = {"eps": 0.3, "robust_acc": 0.25, "flags": "1000", "images": "i", "n": 4, "clean_acc": 0.5, "split": "val"}
    content["results"].append({**content["results"][0], **more})
    path.write_text(json.dumps(content))
    assert compare_runs.main([str(both), str(one), "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 validation images") and [row[5] for row in rows_of(out)] == ["25.0", "100.0"]


def test_by_another_attack(attacked, capsys):
    """One that was not run is asked for by its own command."""
    runs = [attacked(f"digits-Linf-{name}-sd0", text, attack="autoattack") for name, text in (("A", "11"), ("B", "10"))]
    assert compare_runs.main([*map(str, runs), "--split", "val", "--attack", "autoattack"]) == 0
    out = capsys.readouterr().out
    assert "AutoAttack at 0.3" in out and rows_of(out)[1][-1].startswith("-50.0 [")
    fails(capsys, compare_runs.main, [*runs, "--split", "val"], "evaluate_on_pgd_attacks.py", "--split val")
    other = attacked("digits-Linf-C-sd0", "11")
    fails(capsys, compare_runs.main, [other, "--split", "val", "--attack", "autoattack"], "evaluate_on_autoattack.py")


def test_the_interval_covers():
    """Of 400 draws of three seeds over 300 images about 95 % enclose the true difference."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        hard = rng.random(300) < 0.3  # images on which the methods differ, in every seed
        draws = [{f"sd{s}": rng.random(300) < np.where(hard, p, 0.95) for s in range(3)} for p in (0.6, 0.4)]
        first, second = (
            {s: compare_runs.Measured(None, ("i", 300), 0, v * 1) for s, v in runs.items()} for runs in draws
        )
        mean, low, high, seeds = compare_runs.paired(first, second)
        inside += low <= 0.3 * 0.2 <= high
        assert seeds == 3 and low < mean < high
    assert 0.91 <= inside / 400 <= 0.985


def test_what_cannot_be_compared_is_refused(attacked, tmp_path, capsys):
    run, other = attacked("digits-Linf-A-sd0", "1100"), attacked("digits-Linf-B-sd0", "1100", images="j")
    test, seed = attacked("digits-Linf-C-sd0", "11", split="test"), attacked("digits-Linf-D-sd1", "1100")
    val = ["--split", "val"]
    fails(capsys, compare_runs.main, [run, other, *val], "not attacked on the same images")
    command = f"evaluate_on_pgd_attacks.py --model {test} --eps 0.3 --split val"
    fails(capsys, compare_runs.main, [run, test, *val], command)
    fails(capsys, compare_runs.main, [run, seed, *val], "no seed in common")
    (other / "eval_pgd_Linf.json").write_text("{")
    fails(capsys, compare_runs.main, [run, other, *val], "damaged")
    fails(capsys, compare_runs.main, [tmp_path / "none"], "not there")
    fails(capsys, compare_runs.main, [run, *val, "--out", tmp_path], "cannot be written")
