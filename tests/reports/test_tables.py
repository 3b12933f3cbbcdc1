"""Tables of run folders: the figures by hand, what is published beside them, what is doubted, missing or damaged."""

import statistics
from pathlib import Path

import pytest

from command_lines import fails
from report_runs import ODD, cells, distances, evaluate, make_run, row, rows
from reports import make_tables, published
from reports.make_tables import accuracy, filled, make_page
from reports.runs import STRONGEST, frame, read_run, read_runs
from reports.tables import BY_DISTANCE

PGD = "white-box PGD"
RECIPE = {"dataset": "mnist", "hinge_maxeps": 0.45}


def tables(*folders, eps=()):
    """(rows, page): of each row the cells by column, under (method without its mark, attack)."""
    page = make_page(read_runs([Path(folder) for folder in folders]), eps)
    found, header = {}, None
    for line in cells(page):
        if line[0] == "method":
            header = line
        elif line[0] != "---":
            line = dict(zip(header, line, strict=True))
            found[line["method"].rsplit(" [", 1)[0], line["attack"]] = line
    return found, page


def figure(cell):
    """Without its interval."""
    return cell.partition(" [")[0]


def test_averages_and_intervals_by_hand(tmp_path):
    """And how many radii they are over, where another line has more; of one radius there is none."""
    folder, few = make_run(tmp_path / "run"), make_run(tmp_path / "few", {0.2: 0.3, 0.3: 0.1}, hinge_maxeps=0.2)
    evaluate(folder, "pgd", rows({0.1: 0.8, 0.2: 0.6, 0.3: 0.1}, clean=0.9, n=1000))
    found, page = tables(folder, few)
    line, short = found["MMA, d_max 0.3", PGD], found["MMA, d_max 0.2", PGD]
    columns = ("clean", "ε = 0.1", "ε = 0.2", "ε = 0.3", "AvgAcc", "AvgRobAcc")
    assert [figure(line[column]) for column in columns] == ["90.0", "80.0", "60.0", "10.0", "60.0", "50.0"]
    assert line["ε = 0.1"] == "80.0 [77.4, 82.4]" and line["clean"] == "90.0 [88.0, 91.7]"
    assert (line["passes [M]"], line["minutes"]) == ("≤ 0.17", "0.2")  # 144 steps of 50, 23 passes; 10 steps a second
    assert f"`{folder}`" in page and "## Digits, ℓ∞" in page
    assert short["AvgRobAcc"] == "20.0 (of 2 ε)" and short["ε = 0.1"] == "–"
    evaluate(folder, "strong", rows({0.1: 0.7}, clean=0.9, n=1000))
    assert tables(folder, few)[0]["MMA, d_max 0.3", "strong PGD"]["AvgAcc"] == "–"


def test_seeds_are_one_row_with_mean_and_spread(tmp_path):
    values = [0.80, 0.82, 0.87]
    folders = [make_run(tmp_path / str(seed) / "run", {0.1: value}, seed=seed) for seed, value in enumerate(values)]
    evaluate(folders[1], "autoattack", [row(0.1, 0.7)])
    found, page = tables(*folders, make_run(tmp_path / "other", {0.1: 0.5}, hinge_maxeps=0.2))
    line = found["MMA, d_max 0.3, 3 seeds", PGD]
    assert line["ε = 0.1"] == f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
    assert line["AutoAttack"] == "70.0 (1 of 3 seeds) at 0.1"
    assert all(f"`{folder}`" in page for folder in folders)


def test_the_published_value_stands_beside_ours(tmp_path):
    found, page = tables(make_run(tmp_path / "run", {0.1: 0.95, 0.3: 0.9}, **RECIPE))
    ours, strongest = found["MMA, d_max 0.45", PGD], found["MMA, d_max 0.45, published", STRONGEST]
    assert figure(ours["ε = 0.3"]) == "90.0" and ours["n"] == "200 of 10000"
    assert [strongest[f"ε = 0.{k}"] for k in (1, 2, 3, 4)] == ["97.9", "96.0", "92.6", "85.2"]
    assert strongest["AvgAcc"] == "94.1" and strongest["n"] == "10000"  # (98.9 + 97.9 + 96.0 + 92.6 + 85.2) / 5
    reported = found["MMA, d_max 0.45, published", published.PGD]
    assert (reported["clean"], reported["ε = 0.3"], reported["AutoAttack"]) == ("98.95", "92.59", "91.40 at 0.3")
    assert published.DISCUSSION in page and published.LEADERBOARDS in page


def test_clean_accuracy_of_seeds_of_other_numbers_of_images_is_of_all(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, **RECIPE) for seed in (0, 1)]
    for run, n, clean in zip(runs, (1000, 10_000), (0.98, 0.96), strict=True):
        evaluate(run, "pgd", [row(0.3, 0.9, n=n, clean=clean)])
    found = frame([*map(read_run, runs)])
    assert accuracy(found, "pgd", None) == "97.0 ± 1.4 (n 1000, 10000)"
    assert accuracy(found, "pgd", 0.3).endswith("(n 1000)")


STANDARD, FEWER = {"standard": True}, {"standard": False}
USUAL, LESS = {"nb_iter": 100, "nb_restart": 10}, {"nb_iter": 1, "nb_restart": 1}


@pytest.mark.parametrize(
    ("pgd", "autoattack", "column", "cell"),
    [
        ([(0.1, 0.9, USUAL)], [(0.1, 0.8, FEWER)], "AutoAttack", "at 0.1 (not standard AutoAttack)"),
        ([(0.1, 0.9, USUAL)], [(0.1, 0.9, STANDARD), (0.2, 0.8, FEWER)], "AutoAttack", "(not standard) at 0.2"),
        ([(0.1, 0.9, LESS), (0.3, 0.5, USUAL)], [], "ε = 0.1", "] (nb_iter 1, nb_restart 1)"),
        ([(0.1, 0.9, LESS), (0.3, 0.5, USUAL)], [], "ε = 0.3", "]"),
        ([(0.1, 0.9, USUAL, 100), (0.3, 0.5, USUAL)], [], "ε = 0.1", "] (n 100)"),
        ([(0.1, 0.9, USUAL)], [(0.1, 0.8, STANDARD, 50)], "AutoAttack", "at 0.1 (n 50 of 397)"),
    ],
)
def test_radii_attacked_in_another_way_are_marked(tmp_path, pgd, autoattack, column, cell):
    """Each cell says in what it differs from the line, and nothing is averaged over two ways; steps go with the radius."""
    folder = make_run(tmp_path / "run")
    for attack, found in (("pgd", pgd), ("autoattack", autoattack)):
        made = [row(eps, acc, *n, settings=way | {"eps_iter": eps / 40}) for eps, acc, way, *n in found]
        evaluate(folder, attack, made)
    line = tables(folder)[0]["MMA, d_max 0.3", PGD]
    assert line[column].endswith(cell) and "AvgAcc" not in line


def test_an_attack_of_another_norm_or_data_set_has_its_own_table(tmp_path):
    folder = make_run(tmp_path / "run", {0.3: 0.9}, **RECIPE)
    evaluate(folder, "pgd", [row(2.0, 0.3)], norm="L2")
    evaluate(folder, "square", [row(0.1, 0.3)], dataset="digits")
    found, page = tables(folder)
    assert "## MNIST, ℓ2" in page and ("MMA, d_max 0.45, trained under ℓ∞", PGD) in found
    assert "## Digits, ℓ∞" in page and ("MMA, d_max 0.45, trained on MNIST", "Square") in found


def test_distances_with_the_published_ones(tmp_path):
    folder = make_run(tmp_path / "run", dataset="mnist", norm="L2", hinge_maxeps=2.0)
    evaluate(folder, "cw", [distances([1.0, 2.0, 3.0, None])], norm="L2")
    found, _ = tables(folder)
    columns = ("clean [%]", "mean", "25 %", "median", "75 %", "not found")
    assert [found["MMA, d_max 2", "Carlini-Wagner ℓ2"][c] for c in columns] == ["98.0", "–", "1.750", "2.500", "–", "1"]
    theirs = found["MMA, d_max 2, published", "Carlini-Wagner ℓ2"]
    assert [theirs[c] for c in columns] == ["99.3", "2.15", "1.81", "2.22", "2.58", "–"]


def test_smallest_distances_say_who_stands_at_any_radius(tmp_path, capsys):
    """Counted by hand; what PGD breaks at a radius up to eps has fallen too, of other weights nothing counts."""
    folder, more = make_run(tmp_path / "run"), make_run(tmp_path / "more", {0.1: 0.5}, hinge_maxeps=0.2)
    fewer = distances([0.0, 0.1, 0.04], settings={"steps": 50})  # is not quoted, and counts
    evaluate(folder, "fmn", [distances([0.0, 0.1, 0.2, 0.3, None]), fewer])
    evaluate(folder, "anpgd", [distances([0.0, 0.15, 0.17, None])])
    evaluate(folder, "pgd", [row(0.1, 0, flags="01110"), row(0.2, 0, flags="01100")])
    evaluate(folder, "square", [row(0.05, 0, flags="00000")], sha256="another")
    found, page = tables(folder, more, eps=[0.05, 0.18])
    by_distance = found["MMA, d_max 0.3", BY_DISTANCE]
    standing = {"clean": 4, "ε = 0.05": 3, "ε = 0.1": 1, "ε = 0.18": 1, "ε = 0.2": 0}
    assert {name: figure(by_distance[name]) for name in standing} == {k: f"{20 * n:.1f}" for k, n in standing.items()}
    assert found["MMA, d_max 0.3", PGD]["ε = 0.18"] == "–" and by_distance["n"] == "5 of 397"
    assert sum(BY_DISTANCE in key for key in found) == 1
    capsys.readouterr()
    assert make_tables.main([str(folder), str(more), "--eps", "1/20", "0.18"]) == 0
    assert capsys.readouterr().out == page
    for flags in (["--eps", "-1"], ["--eps", "0.1", "--fill"]):
        fails(capsys, make_tables.main, [str(folder), *flags], "--eps", "above 0")


def test_by_how_much_pgd_overestimates(tmp_path):
    """On the images that both attacked; only an attack without gradients that is stronger is a warning."""
    start, other = [row(0.3, 0.9, flags="1" * 900 + "0" * 100)], row(0.3, 0.5, flags="1" * 50 + "0" * 50)
    near = distances([0.2] * 20 + [0.4] * 30)
    for attack, found, said in (
        ("square", other, "⚠ masked gradients: PGD overestimates by 50.0 points"),
        ("fmn", near, "PGD overestimates by 40.0 points at 0.3: FMN leaves 60.0%, PGD 100.0%, of the same 50"),
    ):
        folder = make_run(tmp_path / attack)
        evaluate(folder, "pgd", start)
        evaluate(folder, attack, [found])
        assert said in tables(folder)[1]
        evaluate(folder, attack, [found], sha256="another")
        assert "overestimates" not in tables(folder)[1]


def test_doubtful_missing_and_damaged_results(tmp_path, capsys):
    checks = {"falls with eps": {"ok": False, "value": "40 % at 0.1"}}
    insane, bare, bad = make_run(tmp_path / "a"), make_run(tmp_path / "b"), make_run(tmp_path / "c", {0.1: 0.5}, seed=3)
    evaluate(insane, "pgd", [row(0.1, 0.9, sanity=checks)])
    (bad / "eval_pgd_Linf.json").write_text("{cut")
    found, page = tables(insane, bare, bad)
    assert figure(found["MMA, d_max 0.3 (" + str(insane) + ")", PGD]["ε = 0.1"]) == "⚠ 90.0"
    assert "sanity check failed: falls with eps (40 % at 0.1)" in page
    assert f"## Not evaluated\n\n- `{bare}`\n- `{bad}`" in page and "## Damaged" in page
    assert make_tables.main([str(insane), str(bad)]) == 0
    assert str(bad / "eval_pgd_Linf.json") in capsys.readouterr().err


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    """Each folder once, files beside them left out; `|` and line breaks, as in a folder's name, do not break a table."""
    folder, odd, main = make_run(tmp_path / "run", {0.1: 0.9}), make_run(tmp_path / (ODD + "\n| x")), make_tables.main
    monkeypatch.chdir(tmp_path)
    evaluate(odd, "pgd", [row(0.1, 0.9)])
    (odd / "config.json").unlink()
    assert main([str(odd), "--out", "page.md"]) == 0
    page = (tmp_path / "page.md").read_text().splitlines()
    (line,) = [line for line in page if line.startswith("| odd")]
    assert line.count("|") - line.count("\\|") == page[4].count("|") and "r\\|un \\| x [1]" in line
    capsys.readouterr()
    assert main([str(tmp_path / "page.md"), str(folder), str(folder)]) == 0
    assert capsys.readouterr().out.count("| MMA, d_max 0.3 [1]") == 1
    for argv, *parts in (
        ([tmp_path / "none"], "none", "not there"),
        ([tmp_path / "page.md"], "is a file"),
        ([folder, "--out", tmp_path / "no" / "page.md"], "no/page.md: No such file"),
        ([folder, "--fill", "--out", "x"], "--out"),
    ):
        fails(capsys, main, argv, *parts)


# --- README.md and docs/results.md ----------------------------------------------------------------------------------


def blocks(name, *folders, old=""):
    """The cells of each line of the marked table."""
    page = filled(f"before\n<!-- {name}:begin -->\n{old}<!-- {name}:end -->\nafter", read_runs(folders))
    assert page.startswith("before\n") and page.endswith("\nafter")
    return cells(page)


def test_published_beside_ours(tmp_path):
    """Nothing is taken over from what stood there; a figure that is doubted or of fewer images says so."""
    plain = make_run(tmp_path / "plain", dataset="mnist", hinge_maxeps=0.1)
    assert blocks("results", plain, old="| MNIST | 0.3 | 98.95 / 99.99 |\n")[2][2] == "98.95 / not run yet"
    whole = make_run(tmp_path / "whole", **RECIPE, max_steps=100_000, checks=4167)
    evaluate(whole, "pgd", [row(0.3, 0, flags="1" * 9100 + "0" * 900)])
    evaluate(whole, "pgd", [row(1.5, 0.2)], norm="L2")  # of another norm than its training's: not in this table
    shorts = [make_run(tmp_path / f"short-{seed}", **RECIPE, seed=seed) for seed in range(2)]
    line = blocks("results", shorts[0], whole)[2]
    assert line[:5] == ["MNIST ℓ∞: MMA, d_max 0.45", "0.3", "98.95 / 98.00", "92.59 / 91.00", "91.40 / not run yet"]
    # Two seeds are quoted rather than one, on the first images that both were attacked on; all must be there.
    evaluate(shorts[0], "autoattack", [row(0.3, 0, flags="1" * 80 + "0" * 20 + "1" * 100)])
    assert blocks("results", *shorts, whole)[2][4] == "91.40 / not run yet"
    evaluate(shorts[1], "autoattack", [row(0.3, 0, flags="1" * 100, sanity={"network": {"ok": False, "value": ""}})])
    line = blocks("results", *shorts, whole)[2]
    assert line[0] == "MNIST ℓ∞: MMA, d_max 0.45, max_steps 144, 2 seeds"
    assert line[3:5] == ["92.59 / not run yet", "91.40 / ⚠ 90.0 ± 14.1 (n 100)"]


def test_by_eps_beside_ours(tmp_path):
    pgd, transfer = rows({0.1: 0.9, 0.3: 0.6}, n=10), rows({0.1: 0.8, 0.3: 0.5}, n=10)
    mma = make_run(tmp_path / "mma", **RECIPE)
    trades = make_run(tmp_path / "trades", dataset="mnist", method="trades", train_eps=0.3)
    evaluate(mma, "pgd", [pgd[0], row(0.3, 0.6, n=5)])
    evaluate(trades, "pgd", pgd)
    evaluate(trades, "transfer", transfer)
    found = {name: figures for name, *figures in blocks("by-eps", mma, trades)}
    name = "MMA, d_max 0.45, max_steps 144, ours, `mma`, white-box only"
    assert found[name] == ["98.0 (n 10)", "90.0 (n 10)", "–", "60.0 (n 5)", "–"]
    name = "TRADES, ε 0.3, max_steps 144, ours, `trades`"
    assert found[name] == ["98.0 (n 10)", "80.0 (n 10)", "–", "50.0 (n 10)", "–"]


def test_distances_beside_ours_are_the_nearest_of_each_image(tmp_path):
    """Carlini-Wagner saw two images, DDN five; it found nothing for the last."""
    folder = make_run(tmp_path / "run", dataset="mnist", norm="L2", hinge_maxeps=2.0)
    evaluate(folder, "cw", [distances([3.0, 1.0], clean_acc=1.0)], norm="L2")
    evaluate(folder, "ddn", [distances([2.0, 2.0, 0.0, 4.0, None], clean_acc=0.8)], norm="L2")
    (mine,) = [line for line in blocks("distances", folder) if "ours" in line[0]]
    name = "MMA, d_max 2, max_steps 144, ours, `run`, Carlini-Wagner ℓ2 n 2, DDN n 5"
    assert mine == [name, "80.0", "–", "1.00", "2.00", "4.00"]


@pytest.mark.parametrize("page", make_tables.PAGES)
def test_the_committed_pages_are_what_the_run_folders_say(page):
    """`python reports/make_tables.py --fill` changes nothing."""
    text = (make_tables.ROOT / page).read_text()
    committed = sorted(path.parent for path in make_tables.ROOT.glob("trained_models/*/config.json"))
    assert filled(text, read_runs(committed)) == text and ":begin -->" in text
