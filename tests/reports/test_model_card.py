"""Model cards: what the folder says and no more; committed cards up to date."""

import json
import shutil

import pytest
from matplotlib.figure import Figure

from command_lines import fails, files
from records.pretrained import committed_runs
from report_runs import TRAINED, distances, row
from reports.model_card import card, main
from support import ROOT


@pytest.mark.parametrize("name", committed_runs())
def test_committed_cards_are_what_the_program_writes(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    (folder,) = ROOT.glob(f"trained_models/{name}")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # drawn anew, by whichever version of matplotlib
    assert (folder / "README.md").read_text() == card(folder.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path):
    """A copy of the committed run, to be changed."""
    shutil.copytree(TRAINED, tmp_path / TRAINED.name, ignore=shutil.ignore_patterns("last*", "margins*", "README.md"))
    return tmp_path / TRAINED.name


def change(folder, attack="pgd", rows=None, **head):
    """Rewrite the evaluation by PGD, or make one by another attack out of it."""
    content = json.loads((folder / "eval_pgd_Linf.json").read_text())
    content |= head | {"attack": attack} | ({"results": rows} if rows else {})
    (folder / f"eval_{attack}_Linf.json").write_text(json.dumps(content))
    return content["results"]


def test_what_is_missing_is_said(folder):
    (folder / "model_best.pt").unlink()
    page = card(folder)  # the figures of weights that are not kept are shown
    assert "AutoAttack, ℓ∞" in page and "AutoAttack: not evaluated" not in page
    for path in folder.glob("eval_*"):
        path.unlink()
    assert main([str(folder)]) == 0
    page = (folder / "README.md").read_text()
    assert "Not evaluated." in page and "AutoAttack: not evaluated" in page
    assert "the weights are not in this folder" in page and "margins.npy is not at hand" in page
    assert "torch.hub.load" not in page


def test_figures_stand_with_their_intervals_images_and_effort(folder):
    rows = change(folder)
    page = card(folder)
    for one in rows:
        low, high = one["ci95"]
        assert f"{100 * one['robust_acc']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {one['n']} test | " in page
    validation = row(0.1, 0.5, split="val", settings={"nb_iter": 7, "nb_restart": 3})
    change(folder, rows=[validation, distances([0.1, 0.2, None], passes=993.6)])
    change(folder, "autoattack", [row(0.2, 0.5, settings={"standard": True})])
    page = card(folder)
    for part in (
        *("| 200 val | 7 steps, 3 restarts |", "| distances: 0.15, 0.2, – | 3 test | 994 passes an image |"),
        *("| AutoAttack, ℓ∞ | 0.2 |", "| standard |"),
    ):
        assert part in page


def test_another_checkpoint_is_left_out_and_a_run_that_is_not_finished_says_so(folder):
    """Passes are those of the last row that counts them."""
    change(folder, model_sha256="0")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_steps": 9000}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 2001, "passes": 1234567}) + "\n{half a li")
    page = card(folder)
    assert page.count("of another checkpoint") == 1 and "| white-box PGD" not in page
    assert "| steps | 2001 of 9000 |" in page and "| passes | 1 234 567 " in page


def test_results_of_another_function_and_odd_values_are_left_out(folder):
    other = row(0.123, 0.5, settings={"overrides": {"standardise": "image"}})
    change(folder, rows=[row(0.1, 0.4), other])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"environment": "edited"}))
    page = card(folder)
    assert "| 0.123 |" not in page and "ε 0.123" not in page
    assert "`eval_pgd_Linf.json` has results with `--standardise`" in page
    assert "| machine | not recorded |" in page


def test_a_readme_of_the_users_own_is_left_alone(folder, capsys):
    path = folder / "README.md"
    path.write_text("Mine.\n")
    before = files(folder)
    fails(capsys, main, [folder], path, "not written by this program")
    assert files(folder) == before
    path.unlink()
    assert main([str(folder)]) == main([str(folder)]) == 0, "its own it writes anew"
