"""Tables and pictures of run folders: the figures by hand, what is published beside them, what is missing or damaged."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from config import PRESETS
from evaluations.minimum_norm import summary
from evaluations.subject import Subject
from loading.batches import Split
from networks.build import build_model
from records import checkpoint
from reports import (
    fill_tables,
    make_tables,
    plot_examples,
    plot_margins,
    plot_passes,
    plot_robustness,
    published,
)
from reports.figures import averages, eps_key, strongest
from reports.make_tables import make_page
from reports.results import read_run
from support import ROOT


def accuracies(n=1000, clean=0.98, robust=None, **more):
    """The content of an evaluation by accuracy."""
    rows = [
        {
            "eps": eps,
            "robust_acc": acc,
            "ci95": [acc - 0.02, acc + 0.02],
            "flags": "1" * round(acc * n) + "0" * (n - round(acc * n)),
        }
        for eps, acc in (robust or {0.3: 0.9}).items()
    ]
    return {
        "n": n,
        "clean_acc": clean,
        "clean_ci95": [clean - 0.02, clean + 0.02],
        "seed": 0,
        "model_sha256": "a",
        "settings": {"nb_iter": 100},
        "seconds": 1,
        "results": rows,
        **more,
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Make a run folder: run(name, steps done, pgd_Linf=content or text, …) -> its path."""
    monkeypatch.chdir(tmp_path)

    def make(name, steps=100_000, dataset=None, **evaluations):
        folder = tmp_path / name
        folder.mkdir()
        own, norm = name.split("-")[:2]
        config = {"dataset": dataset or own, "norm": norm, "batch_size": 50, "hinge_maxeps": 0.3, "max_steps": steps}
        (folder / "config.json").write_text(json.dumps(config))
        rows = [{"kind": "eval", "split": "val", "step": step} for step in (steps // 2, steps)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for file, content in evaluations.items():
            if isinstance(content, dict):
                attack, attack_norm = file.split("_")
                content = json.dumps({"attack": attack, "dataset": dataset or own, "norm": attack_norm, **content})
            (folder / f"eval_{file}.json").write_text(content)
        return folder

    return make


def tables(*folders):
    """(rows, page): of each row the cells by column, under (method without its mark, attack)."""
    page, _ = make_page(folders)
    found, header = {}, None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| method"):
            header = cells
        elif line.startswith("|") and not line.startswith("| ---"):
            row = dict(zip(header, cells, strict=True))
            found[row["method"].rsplit(" [", 1)[0], row["attack"]] = row
    return found, page


def fails(capsys, main, argv, *parts):
    """Status 2 and one line that holds every part."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    for part in parts:
        assert str(part) in error


PGD = "white-box PGD"


def test_averages_by_hand(run):
    evaluation = accuracies(clean=0.9, robust={0.1: 0.8, 0.2: 0.6, 0.3: 0.1})
    assert averages(evaluation) == pytest.approx((0.6, 0.5))
    rows, page = tables(run("digits-Linf-MMA-0.3-sd0", pgd_Linf=evaluation))
    row = rows["MMA-0.3", PGD]
    assert [row[c] for c in ("clean", "ε = 0.1", "ε = 0.2", "ε = 0.3", "AvgAcc", "AvgRobAcc")] == [
        "90.0",
        "80.0",
        "60.0",
        "10.0",
        "60.0",
        "50.0",
    ]
    assert "digits-Linf-MMA-0.3-sd0`" in page and "## Digits, ℓ∞" in page


def test_a_row_with_fewer_radii_says_so(run):
    rows, _ = tables(
        run("digits-Linf-MMA-0.3-sd0", pgd_Linf=accuracies(robust={0.1: 0.8, 0.2: 0.6})),
        run("digits-Linf-STD-sd0", pgd_Linf=accuracies(robust={0.2: 0.1})),
    )
    assert rows["STD", PGD]["AvgRobAcc"] == "10.0 (of 1 ε)" and rows["STD", PGD]["ε = 0.1"] == "–"
    assert rows["MMA-0.3", PGD]["AvgRobAcc"] == "70.0"


def test_the_published_value_stands_beside_ours(run):
    rows, page = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=accuracies(robust={0.1: 0.95, 0.3: 0.9})))
    ours, strongest = rows["MMA-0.45", PGD], rows["MMA-0.45, published", published.STRONGEST]
    assert ours["ε = 0.3"] == "90.0" and ours["n"] == "1000 of 10000"
    assert [strongest[f"ε = 0.{k}"] for k in (1, 2, 3, 4)] == ["97.9", "96.0", "92.6", "85.2"]
    assert strongest["AvgAcc"] == "94.1" and strongest["n"] == "10000"  # (98.9 + 97.9 + 96.0 + 92.6 + 85.2) / 5
    reported = rows["MMA-0.45, published", published.PGD]
    assert (reported["clean"], reported["ε = 0.3"], reported["AutoAttack"]) == ("98.95", "92.59", "91.40 at 0.3")
    assert published.DISCUSSION in page and published.LEADERBOARDS in page
    rows, _ = tables(run("cifar10-Linf-MMA-32-sd0", pgd_Linf=accuracies(robust={8 / 255: 0.4})))
    assert rows["MMA-32, published", published.STRONGEST]["ε = 32/255"] == "0.8"
    assert rows["MMA-32", PGD]["ε = 8/255"] == "40.0"


def test_jpeg_images_are_not_compared_with_published_figures(run):
    for name in ("cifar10jpeg-Linf-MMA-32-sd0", "cifar10-Linf-MMA-32-sd0"):
        rows, page = tables(run(name, dataset="imagefolder", pgd_Linf=accuracies(robust={8 / 255: 0.4})))
        assert len(rows) == 1 and "published" not in page and "CIFAR-10, " not in page


def test_a_partial_run_is_called_by_its_full_name(run):
    full, short = "mnist-Linf-MMA-0.45-sd0-1000steps", run("mnist-Linf-MMA-0.45-sd0", 500, pgd_Linf=accuracies())
    rows, page = tables(run(full, 1000, pgd_Linf=accuracies()), short)
    assert (full, PGD) in rows and ("MMA-0.45 (500 of the preset's 100000 steps)", PGD) in rows
    assert f"{full}` (1000 of the preset's 100000 steps)" in page


def test_what_a_recipe_s_whole_run_is_depends_on_method_and_network(run):
    """`--recipe fast` has steps of its own for each; an odd config is no reason to end."""
    folder = run("cifar10jpeg-Linf-PGD-8-sd0-fast", 100, dataset="imagefolder", pgd_Linf=accuracies())
    for method, network, steps in (
        ("pgd", "small_resnet", 15_900),
        ("mma", "small_resnet", 11_400),
        ("pgd", None, 9000),
    ):
        config = {"dataset": "imagefolder", "norm": "Linf", "recipe": "fast", "method": method, "network": network}
        (folder / "config.json").write_text(json.dumps(config))
        assert read_run(folder).partial == f"100 of the recipe's {steps} steps"
    for odd in (7, [], "nothing"):
        (folder / "config.json").write_text(json.dumps({**config, "method": odd, "network": odd}))
        assert read_run(folder).partial == "100 of the recipe's 5300 steps"


def test_seeds_are_one_row_with_mean_and_spread(run):
    values = [0.80, 0.82, 0.87]
    folders = [
        run(f"digits-Linf-MMA-0.3-sd{seed}", pgd_Linf=accuracies(n=397 if seed else 200, robust={0.1: value}))
        for seed, value in enumerate(values)
    ]
    rows, page = tables(*folders, run("digits-Linf-MMA-0.2-sd0", pgd_Linf=accuracies(robust={0.1: 0.5})))
    assert (
        rows["MMA-0.3, 3 seeds", PGD]["ε = 0.1"]
        == f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
    )
    assert rows["MMA-0.2", PGD]["ε = 0.1"] == "50.0"
    assert "white-box PGD: n differs between seeds (sd0: 200, sd1: 397, sd2: 397)" in page
    for folder in folders:
        assert f"`{folder}`" in page


def test_other_settings_and_missing_results_of_a_seed_are_said(run):
    rows, page = tables(
        run("digits-Linf-PGD-0.2-sd0", 500, pgd_Linf=accuracies(settings={"nb_iter": 40})),
        run("digits-Linf-PGD-0.2-sd1", 600, pgd_Linf=accuracies(), autoattack_Linf=accuracies(robust={0.3: 0.7})),
    )
    assert "nb_iter differs between seeds (sd0: 40, sd1: 100)" in page and "steps done differs" in page
    assert rows["PGD-0.2, 2 seeds", PGD]["AutoAttack"] == "70.0 (1 of 2 seeds) at 0.3"


def test_autoattack_says_its_n_and_whether_it_is_standard(run):
    auto = accuracies(n=200, robust={0.3: 0.85}, settings={"standard": False})
    rows, _ = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=accuracies(), autoattack_Linf=auto))
    assert rows["MMA-0.45", PGD]["AutoAttack"] == "85.0 at 0.3 (n 200 of 10000, not standard AutoAttack)"


def test_an_attack_of_another_norm_has_its_own_table(run):
    rows, page = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=accuracies(), pgd_L2=accuracies(robust={2.0: 0.3})))
    assert "## MNIST, ℓ2" in page and ("MMA-0.45, trained under ℓ∞", PGD) in rows


def test_strongest_of_white_box_and_transferred(run):
    """Robust is what stands in both; on other images the transfer evaluation is taken as it is."""
    pgd, transfer = accuracies(n=10, robust={0.3: 0.6}), accuracies(n=10, robust={0.3: 0.5})
    transfer["results"][0]["flags"] = "0000011111"
    rows, _ = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=pgd, transfer_Linf=transfer))
    assert rows["MMA-0.45", published.STRONGEST]["ε = 0.3"] == "10.0"  # of 1111110000 and 0000011111
    head = {"dataset": "mnist", "model_sha256": "abc"}
    for other, more, left in ((head, {"n": 20}, 0.1), ({**head, "dataset": "imagefolder"}, {"n": 20}, 0.5)):
        longer = {**pgd, **other, **more, "results": [{**pgd["results"][0], "flags": "1111110000" + 10 * "1"}]}
        row = strongest({**transfer, **other}, longer)["results"][0]
        assert row["robust_acc"] == left and row["ci95"][0] < left < row["ci95"][1]


def test_radii_attacked_in_another_way_are_marked(run):
    """Each cell says in what it differs from the line, and nothing is averaged over two ways."""
    usual, less = {"nb_iter": 100, "nb_restart": 10}, {"nb_iter": 1, "nb_restart": 1}
    pgd = accuracies(robust={0.1: 0.9, 0.3: 0.5})
    for row, settings in zip(pgd["results"], (less, usual), strict=True):
        row["settings"] = settings | {"eps_iter": row["eps"] / 40}
    rows, _ = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=pgd))
    line = rows["MMA-0.45", "white-box PGD"]
    assert (line["ε = 0.1"], line["ε = 0.3"]) == ("90.0 (nb_restart 1, nb_iter 1)", "50.0")
    assert line["AvgAcc"] == line["AvgRobAcc"] == "–"
    pgd["results"][0]["settings"] = usual | {"eps_iter": 1e-5}
    rows, _ = tables(run("mnist-Linf-MMA-0.45-sd1", pgd_Linf=pgd))
    line = rows["MMA-0.45", "white-box PGD"]
    assert line["ε = 0.3"] == "50.0 (eps_iter 0.0075)" and line["AvgAcc"] == "–", (
        "of two equal in effort the line speaks of the first"
    )


def test_a_list_of_attacks_is_not_called_autoattack_at_any_radius(run):
    auto = accuracies(robust={0.1: 0.9, 0.2: 0.8})
    for row, standard in zip(auto["results"], (True, False), strict=True):
        row["settings"] = {"standard": standard}
    auto["settings"] = {"standard": True}
    rows, _ = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=accuracies(), autoattack_Linf=auto))
    assert rows["MMA-0.45", "white-box PGD"]["AutoAttack"] == "90.0 at 0.1; 80.0 (not standard) at 0.2"


def test_distances_with_the_published_ones(run):
    cw = {
        "n": 1000,
        "clean_acc": 0.99,
        "mean": 2.1,
        "quartiles": [1.7, 2.2, None],
        "not_found": 3,
        "distances": [],
        "anpgd": {"mean": 2.2, "quartiles": [1.8, 2.3, 2.6], "search_end": 2.1},
    }
    rows, _ = tables(run("mnist-L2-MMA-2.0-sd0", cw_L2=cw))
    columns = ("clean [%]", "mean", "25 %", "median", "75 %", "not found")
    assert [rows["MMA-2.0", "Carlini-Wagner ℓ2"][c] for c in columns] == ["99.0", "2.100", "1.700", "2.200", "–", "3"]
    assert [rows["MMA-2.0, published", "Carlini-Wagner ℓ2"][c] for c in columns] == [
        "99.3",
        "2.15",
        "1.81",
        "2.22",
        "2.58",
        "–",
    ]
    assert rows["MMA-2.0", "AN-PGD, at most 2.1"]["75 %"] == "2.600"


def test_by_how_much_pgd_overestimates(run):
    """On the images that both attacked; only an attack without gradients that is stronger is a warning."""
    pgd, other = accuracies(n=1000, robust={0.3: 0.9}), accuracies(n=100, robust={0.3: 0.5})
    _, page = tables(run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=pgd, autoattack_Linf=other))
    assert "PGD overestimates by 50.0 points at 0.3: AutoAttack leaves 50.0%, PGD 100.0%, of the same 100" in page
    assert "⚠" not in page
    _, page = tables(run("mnist-Linf-MMA-0.45-sd1", pgd_Linf=pgd, square_Linf=other))
    assert "⚠ MMA-0.45: " in page and "masked gradients: PGD overestimates by 50.0 points" in page
    colour = {
        attack: accuracies(robust={8 / 255: left}) for attack, left in (("pgd_Linf", 0.5), ("transfer_Linf", 0.4))
    }
    _, page = tables(run("cifar10-Linf-MMA-32-sd0", **colour))
    assert "PGD overestimates by 10.0 points at 8/255: transfer leaves" in page
    near = {"n": 50, "clean_acc": 1.0, "mean": 1.0, "quartiles": [1.0] * 3, "distances": [0.2] * 20 + [0.4] * 30}
    _, page = tables(run("mnist-Linf-MMA-0.45-sd4", pgd_Linf=pgd, fmn_Linf={**near, "model_sha256": "a"}))
    assert "PGD overestimates by 40.0 points at 0.3: FMN leaves 60.0%, PGD 100.0%, of the same 50" in page
    stale, as_strong = {**other, "model_sha256": "another"}, accuracies(n=100, robust={0.3: 1.0})
    for seed, nothing in ((2, stale), (3, as_strong)):
        _, page = tables(run(f"mnist-Linf-MMA-0.45-sd{seed}", pgd_Linf=pgd, autoattack_Linf=nothing))
        assert "overestimates" not in page


def test_doubtful_figures_are_marked(run):
    checks = {"falls with eps": {"ok": False, "value": "40 % at 0.1"}, "network": {"ok": True}, "square": {"ok": None}}
    insane = run("digits-Linf-MMA-0.3-sd0", pgd_Linf=accuracies(sanity=checks))
    stale = run("digits-Linf-STD-sd0", pgd_Linf=accuracies())
    (stale / "model_best.pt").write_bytes(b"another network")
    rows, page = tables(insane, stale, run("digits-Linf-PGD-0.2-sd0", pgd_Linf=accuracies()))
    assert rows["MMA-0.3", PGD]["ε = 0.3"] == rows["STD", PGD]["ε = 0.3"] == "⚠ 90.0"
    assert rows["PGD-0.2", PGD]["ε = 0.3"] == "90.0"
    assert "sanity check failed: falls with eps (40 % at 0.1)" in page and "square" not in page and "stale" in page


@pytest.mark.parametrize(
    "text",
    ["{cut", "[]", '{"attack": "pgd"}', json.dumps({"results": 3}), "\ud800".encode("utf-8", "surrogatepass")],
    ids=["cut", "list", "few keys", "wrong", "not text"],
)
def test_damaged_and_missing_results(run, capsys, text):
    good, bad = run("digits-Linf-STD-sd0", pgd_Linf=accuracies()), run("digits-Linf-MMA-0.3-sd0")
    (bad / "eval_pgd_Linf.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert make_tables.main([str(good), str(bad)]) == 0
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and str(bad / "eval_pgd_Linf.json") in said.err
    assert f"## Not evaluated\n\n- `{bad}`" in said.out and "| STD [1]" in said.out


def test_wrong_values_are_damage(run):
    for key, value in {
        "n": 0,
        "clean_acc": 1.5,
        "norm": "L7",
        "results": [{"eps": 0.1, "robust_acc": float("nan")}],
        "settings": 3,
        "attack": "square",
    }.items():
        content = {"attack": "pgd", "dataset": "digits", "norm": "Linf", **accuracies(), key: value}
        page, damaged = make_page([run(f"digits-Linf-STD-{key}", pgd_Linf=json.dumps(content))])
        assert len(damaged) == 1 and "| STD" not in page


def test_tables_on_the_command_line(run, capsys, tmp_path):
    folder = run("digits-Linf-STD-sd0", pgd_Linf=accuracies())
    assert make_tables.main([str(folder), "--out", "page.md"]) == 0
    assert "| STD [1]" in (tmp_path / "page.md").read_text()
    fails(capsys, make_tables.main, [tmp_path / "none"], tmp_path / "none", "not there")
    fails(capsys, make_tables.main, [tmp_path / "page.md"], tmp_path / "page.md", "is a file")
    capsys.readouterr()
    assert make_tables.main([str(tmp_path / "page.md"), str(folder)]) == 0 and "| STD [1]" in capsys.readouterr().out
    fails(capsys, make_tables.main, [folder, "--out", tmp_path / "no" / "page.md"], "cannot be written")
    fails(capsys, make_tables.main, [], "required")


def test_run_folders_of_the_repository(capsys):
    """By relative names, though named with the whole path."""
    folders = sorted(path for path in (ROOT / "trained_models").iterdir() if path.is_dir())
    page, damaged = make_page(folders)
    assert not damaged and str(ROOT) not in page and "`trained_models/" in page


def test_radii_that_differ_by_rounding_are_one():
    assert eps_key(0.3 * 2 / 6) == eps_key(0.1) != eps_key(0.1001)


# --- README.md and docs/results.md ----------------------------------------------------------------------------------


def filled_rows(text, folders, name="results"):
    """The cells of each line of the marked table."""
    page = fill_tables.filled(
        f"before\n<!-- {name}:begin -->\n{text}<!-- {name}:end -->\nafter", list(map(read_run, folders))
    )
    assert page.startswith("before\n") and page.endswith("\nafter")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:-2]]


def test_published_beside_ours(run):
    """Nothing is taken over from what stood there; of two rows at one radius the one of most images, then effort."""
    old = "| MNIST ℓ∞ MMA-0.45 | 0.3 | 98.95 / 99.99 |\n"
    assert filled_rows(old, [])[2][2] == "98.95 / not run yet"
    rows = [
        {"eps": 0.3, "robust_acc": acc, "n": n, "settings": {"nb_iter": steps, "nb_restart": 10}, "flags": "1" * n}
        for acc, n, steps in ((0.95, 100, 100), (0.91, 10_000, 100), (0.93, 10_000, 40))
    ]
    whole = run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=accuracies(n=10_000, clean=0.98, results=rows))
    part = accuracies(n=200, robust={0.3: 0.85}, sanity={"network": {"ok": False, "value": ""}})
    short = run("mnist-Linf-MMA-0.45-sd0-short", 500, pgd_Linf=accuracies(n=10_000), autoattack_Linf=part)
    found = filled_rows(old, [short, whole])
    assert found[2][:5] == ["MNIST ℓ∞ MMA-0.45", "0.3", "98.95 / 98.00", "92.59 / 91.00", "91.40 / not run yet"]
    assert found[3][0] == "MNIST ℓ∞ MMA-0.45, `mnist-Linf-MMA-0.45-sd0-short` (500 of the preset's 100000 steps)"
    assert found[3][4] == "91.40 / ⚠ 85.00 (n 200)"


def test_by_eps_and_distances_beside_ours(run):
    pgd, transfer = accuracies(n=10, robust={0.1: 0.9, 0.3: 0.6}), accuracies(n=10, robust={0.1: 0.8, 0.3: 0.5})
    folder = run("mnist-Linf-MMA-0.45-sd0", pgd_Linf=pgd)
    mine = [row for row in filled_rows("", [folder], "by-eps") if row[0].startswith("MMA-0.45, ours")]
    assert mine == [["MMA-0.45, ours, white-box only", "98.0 (n 10)", "90.0 (n 10)", "–", "60.0 (n 10)", "–"]]
    pgd["results"][1]["n"] = 5
    folder = run("mnist-Linf-MMA-0.45-sd1", pgd_Linf=pgd)
    mine = [row for row in filled_rows("", [folder], "by-eps") if row[0].startswith("MMA-0.45, ours")]
    assert mine[0][4] == "60.0 (n 5)" and mine[0][2] == "90.0 (n 10)"
    del pgd["results"][1]["n"]
    folder = run("mnist-Linf-TRADES-0.3-sd0", pgd_Linf=pgd, transfer_Linf=transfer)
    mine = [row for row in filled_rows("", [folder], "by-eps") if row[0].startswith("TRADES, ours")]
    assert mine[0] == ["TRADES, ours", "98.0 (n 10)", "80.0 (n 10)", "–", "50.0 (n 10)", "–"]


def test_distances_beside_ours_are_the_nearest_of_each_image(run):
    """Carlini-Wagner saw two images, DDN five; it found nothing for the last."""
    cw = {"n": 2, "clean_acc": 1.0, **summary([3.0, 1.0]), "not_found": 0, "distances": [3.0, 1.0]}
    ddn = {"n": 5, "clean_acc": 0.8, **summary([2.0, 2.0, 0.0, 4.0, math.inf]), "not_found": 1}
    folder = run("mnist-L2-MMA-2.0-sd0", cw_L2=cw, ddn_L2=ddn | {"distances": [2.0, 2.0, 0.0, 4.0, None]})
    (mine,) = [row for row in filled_rows("", [folder], "distances") if "ours" in row[0]]
    assert mine == ["MMA-2.0, ours, Carlini-Wagner ℓ2 n 2, DDN n 5", "80.0", "–", "1.00", "2.00", "4.00"]


# --- pictures ------------------------------------------------------------------------------------------------------


def is_picture(base):
    png, pdf = (base.with_name(base.name + ending) for ending in (".png", ".pdf"))
    return (
        png.read_bytes().startswith(b"\x89PNG")
        and pdf.read_bytes().startswith(b"%PDF")
        and png.stat().st_size > 5000
        and pdf.stat().st_size > 5000
    )


def test_robustness_picture(run, capsys, tmp_path):
    mma = run("digits-Linf-MMA-0.3-sd0", pgd_Linf=accuracies(robust={0.1: 0.8, 0.2: 0.6}))
    std = run("digits-Linf-STD-sd0", pgd_Linf=accuracies(robust={0.1: 0.3}, sanity={"network": {"ok": False}}))
    assert plot_robustness.main([str(mma), str(std), "--out", "out/MMA-0.3"]) == 0
    assert is_picture(tmp_path / "out" / "MMA-0.3")
    main = plot_robustness.main
    fails(capsys, main, [run("digits-Linf-PGD-0.2-sd0")], "eval_pgd_Linf.json", "not there")
    fails(capsys, main, [mma, run("digits-L2-MMA-1.5-sd0", pgd_L2=accuracies())], "norm", "two pictures")
    fails(capsys, main, [mma, run("mnist-Linf-STD-sd0", pgd_Linf=accuracies())], "data set")
    fails(capsys, main, [mma, mma], "named twice")
    fails(capsys, main, [tmp_path / "none"], "not there")


def test_the_curve_begins_with_the_clean_images():
    points = plot_robustness.curve(accuracies(clean=0.9, robust={0.2: 0.5, 0.1: 0.8}))
    assert [point[:2] for point in points] == [(0, 90), (0.1, 80), (0.2, 50)]
    assert points[2][2:] == pytest.approx((48, 52))


def test_passes_picture(run, capsys, tmp_path):
    """Robust accuracy of each check stands over the passes counted by then, in an interval of the images it saw."""
    folder, bare = run("digits-Linf-MMA-0.3-sd0"), run("digits-Linf-STD-sd0")
    rows = [
        {"kind": "train", "step": 10, "passes": 2e6},
        {"kind": "eval", "split": "val", "step": 20, "robust_acc": 0.5},
    ]
    rows += [
        {"kind": "train", "step": 30, "passes": 4e6},
        {"kind": "eval", "split": "val", "step": 40, "robust_acc": 0.8},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passes, robust, low, high = plot_passes.curve(folder, {"check_size": 100, "val_size": 5000})
    assert passes.tolist() == [2, 4] and robust.tolist() == [50, 80]
    assert (low[1], high[1]) == pytest.approx((71.1, 86.7), abs=0.1)
    assert plot_passes.main([str(folder), "--out", "passes.png"]) == 0
    assert is_picture(tmp_path / "passes")
    pictures = run("cifar10jpeg-Linf-PGD-8-sd0-fast", dataset="imagefolder")
    config = json.loads((pictures / "config.json").read_text())
    (pictures / "config.json").write_text(json.dumps(config | {"test_eps": 8 / 255}))
    (pictures / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text())
    axes = plot_passes.draw([pictures])[0].axes[0]
    assert axes.get_title().startswith("CIFAR-10 (JPEG)") and "ε = 8/255 " in axes.get_ylabel()
    fails(capsys, plot_passes.main, [folder, bare], "no check with counted passes")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"robust_acc": 7}) + "\n" for row in rows))
    fails(capsys, plot_passes.main, [folder], "not between 0 and 1")


def test_margins_picture(run, capsys, tmp_path):
    folders = [run(f"digits-Linf-MMA-0.3-sd{seed}", steps=48) for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        np.save(folder / "margins.npy", np.random.default_rng(seed).uniform(0, 0.3, (2, 1200)).astype(np.float16))
    assert plot_margins.main([*map(str, folders), "--out", "margins.png"]) == 0
    assert is_picture(tmp_path / "margins")
    margins = plot_margins.read_margins(folders[0], {"batch_size": 50})
    assert margins.epochs.tolist() == [1, 2]  # 24 steps an epoch


def test_runs_without_margins_are_left_out_of_the_picture_for_the_right_reason(run, capsys, tmp_path):
    good, zero, none, plain = (run(f"digits-Linf-{name}-sd0") for name in ("MMA-0.3", "MMA-0.2", "MMA-0.1", "STD"))
    np.save(good / "margins.npy", np.full((2, 1200), 0.1, np.float16))
    np.save(zero / "margins.npy", np.zeros((2, 1200), np.float16))
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"method": "std"}))
    main = plot_margins.main
    fails(capsys, main, [none], none / "margins.npy", "not there, this copy of the run is without it")
    fails(capsys, main, [zero], zero / "margins.npy", "every margin in it is 0, as no image was right")
    fails(capsys, main, [plain], plain / "margins.npy", "only MMA and OMMA training record margins")
    assert main([*map(str, (none, good, plain, zero)), "--out", "margins.png"]) == 0
    assert is_picture(tmp_path / "margins")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: left out: ") for line in lines)
    assert [str(path) in line for path, line in zip((none, plain, zero), lines, strict=True)] == [True] * 3
    panels = [axes for part in plot_margins.draw([none, good])[0].subfigs for axes in part.axes]
    assert [axes.get_title(loc="left").split(":")[0] for axes in panels] == [good.name, ""]
    (none / "margins.npy").write_bytes(b"\x93NUMPY cut")
    fails(capsys, main, [none], "damaged")


def test_examples_picture(run, tmp_path, capsys):
    config = PRESETS["digits", "Linf"]
    folder = run("digits-Linf-STD-sd0")
    content = {
        "epoch": 1,
        "model": build_model("lenet5", 1, 8, 8, 10).state_dict(),
        "config": {**config.to_dict(), "clean_loss_coeff": 1.0},
    }
    checkpoint.save(folder / "model_best.pt", content)
    assert plot_examples.main([str(folder), "--count", "3"]) == 0
    assert is_picture(tmp_path / "runs" / "examples-digits-Linf-STD-sd0")
    fails(capsys, plot_examples.main, [tmp_path / "none"], "cannot be read")
    fails(capsys, plot_examples.main, [folder, "--count", "0"], "--count 0")
    fails(capsys, plot_examples.main, [folder, "--max_eps", "0"], "--max_eps 0: a radius")


@pytest.mark.parametrize("recipe", [{}, {"search": "secant", "num_search_steps": 4, "nb_iter": 1, "check_nb_iter": 10}])
def test_examples_have_the_length_of_the_margin(recipe):
    """A linear classifier: |w (x - 1/2)| / ||w||_1 under Linf; 0 for a misclassified image, inf beyond the search."""
    config = replace(PRESETS["digits", "Linf"], hinge_maxeps=0.2, **recipe)
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    margins = torch.tensor([0.01, -0.03, 0.1, -0.15, 0.19, 0.24, 0.05])  # signed: which side the image lies on
    pixels = 0.5 + margins[:, None] * weight.sign()
    images = (255 * pixels).round().to(torch.uint8).reshape(-1, 1, 4, 4)
    labels = (margins > 0).long()
    labels[-1] = 0  # misclassified
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval().requires_grad_(False)
    model[1].weight.copy_(torch.stack([torch.zeros(16), weight]))
    model[1].bias.copy_(torch.stack([torch.zeros(()), -weight.sum() / 2]))
    subject = Subject(model, None, "", Split(images, labels, torch.arange(7)), config, "digits", "Linf", {})
    found = plot_examples.find(subject, 7)
    exact = ((found.x - 0.5).flatten(1) @ weight).abs() / weight.abs().sum()
    within = exact[:5]
    bracket = config.search_maxeps / 2**10
    assert ((found.length[:5] >= within - 1e-5) & (found.length[:5] <= within + 2.1 * bracket)).all()
    assert found.length[5] == torch.inf and found.length[6] == 0
    assert (found.predicted[:5] != labels[:5]).all() and found.predicted[5] == labels[5]
    assert torch.equal(found.x_adv[5:], found.x[5:])
    further = plot_examples.find(subject, 7, max_eps=0.3)  # where one more has its margin
    assert exact[5] - 1e-5 <= further.length[5] <= exact[5] + 2.1 * 0.3 / 2**10 and further.predicted[5] != labels[5]
