"""Adversarial images replayed: a network on its own, on another's, and what cannot be compared."""

import re
import shutil
from pathlib import Path

import pytest

import evaluate_on_transfer as transfer
from command_lines import fails, files, found_in
from linear import SMALL, Linear, attack, save_run
from linear import elsewhere as elsewhere  # a fixture
from records import checkpoint
from support import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Networks `a` and `b` of two halves of the digits."""
    root = tmp_path_factory.mktemp("place")
    for name, rows in (("a", slice(0, 600)), ("b", slice(600, 1200))):
        save_run(root / name, rows=rows, test_eps=0.1)
    return root


@pytest.fixture
def here(place, elsewhere):
    """A copy of it, which is the current folder."""
    return shutil.copytree(place, elsewhere, dirs_exist_ok=True)


def figures_in(out):
    return re.findall(r"^(?:accuracy|\[).*", out, re.MULTILINE)


def test_the_strongest_is_each_image_over_every_source(here, capsys):
    assert transfer.main(["a", "b", *SMALL, "--eps", "0.05", "0.1"]) == 0
    out = capsys.readouterr().out
    assert transfer.main(["a", "b", *SMALL, "--eps", "0.05", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "already done" in said and figures_in(said) == figures_in(out) != []
    for own, name in enumerate("ab"):
        model = Linear(1, 8, 8, 10)
        model.load_state_dict(checkpoint.load(here / name / "model_best.pt")["model"])
        for row, white in zip(found_in(here / name, "transfer"), found_in(here / name), strict=True):
            assert [source["run"] for source in row["sources"]] == ["a", "b"] and row["n"] == 40
            assert row["sources"][own]["model_sha256"] == checkpoint.load_model_file(name).sha256
            assert row["clean_acc"] == white["clean_acc"] and f"{100 * row['robust_acc']:.2f}" in out
            right = []
            for source in "ab":
                saved = checkpoint.load(here / source / "adv_pgd_Linf.pt")
                right.append(model(saved["x_adv"][row["eps"]]).argmax(1) == saved["labels"])
            assert row["source_accs"] == [pytest.approx(r.double().mean().item()) for r in right]
            assert row["flags"] == "".join("1" if flag else "0" for flag in right[0] & right[1])
            assert row["robust_acc"] == row["flags"].count("1") / 40 <= row["whitebox_acc"] == white["robust_acc"]
            assert row["robust_acc"] <= row["transferred_acc"] == row["source_accs"][1 - own]
            assert all(ours <= theirs for ours, theirs in zip(row["flags"], white["flags"], strict=True))
            assert row["transferred_acc"] > row["whitebox_acc"], "transferred images are weaker"


def test_images_are_made_only_where_none_fit(here, monkeypatch):
    """Not again for the same networks; again for another checkpoint, radius or a damaged file. Nothing is lost."""
    made, make = [], transfer.pgd_attacks.evaluate

    def counted(flags, *rest, **more):
        made.append(str(Path(flags.model).parent))
        return make(flags, *rest, **more)

    monkeypatch.setattr(transfer.pgd_attacks, "evaluate", counted)
    assert attack("a", "--eps", 0.03, "--seed", 5, "--nb_restart", 1) == 0
    plain = [word for word in SMALL if word not in ("--nb_restart", "2")]
    assert transfer.main(["a", "b", *plain]) == 0 and made == ["a", "b"]
    made_by = [(row["eps"], row["seed"], row["settings"]["nb_restart"]) for row in found_in(here / "a")]
    assert made_by == [(0.03, 5, 1), (0.1, 5, 1)]
    assert found_in(here / "a", "transfer")[0]["seed"] == 5
    assert found_in(here / "b")[0]["settings"]["nb_restart"] == 10
    before = (here / "a" / "eval_transfer_Linf.json").read_text()
    assert transfer.main(["a", "b", *SMALL]) == 0 and made == ["a", "b"]
    assert (here / "a" / "eval_transfer_Linf.json").read_text() == before, "already done"
    assert transfer.main(["a", "b", *SMALL, "--eps", "0.05"]) == 0 and made == ["a", "b"] * 2
    rows = found_in(here / "a")
    assert [(row["eps"], row["settings"]["nb_restart"]) for row in rows] == [(0.03, 1), (0.05, 2), (0.1, 1)]
    assert [row["eps"] for row in found_in(here / "a", "transfer")] == [0.05, 0.1]
    images = here / "b" / "adv_pgd_Linf.pt"
    assert set(checkpoint.load(images)["x_adv"]) == {0.05, 0.1}, "images of every radius are kept"
    images.write_bytes(images.read_bytes()[:5000])
    assert transfer.main(["a", "b", *SMALL]) == 0 and made == [*"abab", "b"]
    other = checkpoint.load(here / "a" / "model_best.pt")
    checkpoint.save(here / "a" / "model_best.pt", {**other, "epoch": 2})
    assert transfer.main(["a", "b", *SMALL]) == 0 and made == [*"abab", "b", "a"]


def test_a_weak_attack_takes_no_images_from_a_strong_one(here, capsys):
    """The saved images stay those that break the network; what was asked for and changes nothing is said."""
    assert attack("a", "--eps", 0.1, "--save_adv") == 0
    strong = found_in(here / "a")[0]["robust_acc"]
    weak = ["--nb_iter", 1, "--nb_restart", 1, "--eps_iter", 0.001]
    assert attack("a", *weak, "--eps", 0.1, "--save_adv", "--overwrite") == 0
    figures = {row["settings"]["nb_iter"]: row["robust_acc"] for row in found_in(here / "a")}
    assert figures[5] == strong < figures[1]
    assert transfer.main(["a", "b", *SMALL]) == 0
    assert found_in(here / "a", "transfer")[0]["whitebox_acc"] == strong
    said = capsys.readouterr().out
    assert "a: of its saved adversarial images --nb_iter and --nb_restart change nothing" in said


def test_images_of_other_sizes_and_splits_are_kept(here):
    for more in ([], ["--test_size", "50"], ["--split", "val", "--test_size", "40"]):
        assert transfer.main(["a", "b", *SMALL, *more]) == 0
    names = {"adv_pgd_Linf.pt", "adv_pgd_Linf_test50.pt", "adv_pgd_Linf_val40.pt"}
    assert {path.name for path in (here / "a").glob("adv_*")} == names
    rows = found_in(here / "a", "transfer")
    assert [(row["split"], row["n"]) for row in rows] == [("test", 50), ("test", 40), ("val", 40)]


def test_a_committed_figure_stays_byte_for_byte(here, monkeypatch):
    """Its radius is stored as 0.19999999999999998 and the other's is 0.2: one radius. Images alone are made, and from the
    random starts of the stored radius."""
    name = "digits-Linf-MMA-0.3-sd0"
    committed = shutil.copytree(ROOT / "trained_models" / name, here / name)
    shutil.copytree(committed, here / "other", ignore=shutil.ignore_patterns("eval_*"))
    before, radii = files(committed), []

    def at_once(*args, restarts, eps, state, **more):
        radii.append(eps)
        state.restart = 10

    monkeypatch.setattr(transfer.pgd_attacks, "repeated_pgd", at_once)
    assert transfer.main(["other", name, "--device", "cpu"]) == 0
    assert radii == [0.2, 0.19999999999999998]
    after = files(committed)
    assert after["eval_pgd_Linf.json"] == before["eval_pgd_Linf.json"]
    assert set(after) - set(before) == {"adv_pgd_Linf.pt", "eval_transfer_Linf.json"}
    assert transfer.main(["other", name, "--device", "cpu"]) == 0 and files(committed) == after, "already done"


def test_an_own_network_beside_one_of_ours(here, capsys):
    """`--network` is for the files that name none of ours, in either order."""
    theirs = "digits-Linf-MMA-0.3-sd0"
    shutil.copytree(ROOT / "trained_models" / theirs, here / theirs, ignore=shutil.ignore_patterns("eval_*"))
    for runs in (["a", theirs], [theirs, "a"]):
        assert transfer.main([*runs, *SMALL, "--eps", "0.1"]) == 0
    own, ours = (found_in(here / name, "transfer")[0] for name in ("a", theirs))
    assert own["settings"]["overrides"]["network"].startswith("linear:Linear") and not ours["settings"]["overrides"]
    assert own["clean_acc"] != ours["clean_acc"] > 0.9
    alone = found_in(here / theirs)[0]["robust_acc"]
    capsys.readouterr()
    shutil.copytree("a", "c")
    assert transfer.main(["c", theirs, *SMALL, "--eps", "0.1", "--standardise", "0.3,0.4", "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert f"{theirs}: has a network of ours" in said and "c: --standardise: 0.3,0.4" in said
    assert found_in(here / theirs, "transfer")[0]["whitebox_acc"] == alone
    shutil.copytree(theirs, "again")
    both = [theirs, "again", *SMALL, "--eps", "0.1"]
    fails(capsys, transfer.main, both, "of another network")


def test_what_cannot_be_compared(here, capsys):
    save_run(here / "wider", test_eps=0.2)
    save_run(here / "l2", norm="L2", test_eps=1.0)
    save_run(here / "fewer", val_size=100)
    for argv, *parts in (
        (["a", "wider", *SMALL], "--eps", "0.1 for a", "0.2 for wider"),
        (["a", "l2", *SMALL], "--norm", "Linf in a", "L2 in l2"),
        (["a", *SMALL], "1 run", "two or more"),
        (["a", "fewer", *SMALL, "--split", "val"], "--split val: a and fewer drew other images", "leave --split out"),
        (["a", "a", *SMALL], "in one folder"),
        (["a", "nowhere", *SMALL], "nowhere"),
        (["a", "b", *SMALL, "--eps", "2"], "--eps 2"),
        (["a", "b"], "--network linear:Linear", "if you trust it"),
    ):
        fails(capsys, transfer.main, argv, *parts)
    assert not list(here.glob("*/eval_*"))
    assert transfer.main(["a", "wider", *SMALL, "--eps", "0.1"]) == 0
    assert transfer.main(["a", "l2", *SMALL, "--eps", "0.1", "--norm", "L2"]) == 0
    assert "norm" in found_in(here / "a", "transfer", "L2")[0]["settings"]["overrides"]
