"""Model cards: what the folder says and no more, the command that gives the run again, committed cards up to date."""

import dataclasses
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest

from command_lines import fails, files
from config import PRESETS, Config
from flags import parse_train
from records.pretrained import committed_runs
from reports.model_card import card, main, training_command
from support import ROOT

RUN = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"


@pytest.mark.parametrize("name", committed_runs())
def test_committed_cards_are_what_the_program_writes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (folder,) = ROOT.glob(f"trained_models/{name}")
    assert (folder / "README.md").read_text() == card(folder.relative_to(ROOT))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hinge_maxeps": 32 / 255, "dataset": "cifar10"},
        {"method": "omma", "clean_loss_coeff": 0.0, "hinge_maxeps": 0.3, "seed": 7},
        {"clean_loss_coeff": 0.4, "lr": ((0, 0.01), (300, 0.001)), "deterministic": True},
        {"method": "pgd", "hinge_maxeps": None, "train_eps": 0.1, "max_steps": 500},
        {"augment": True, "train_size": 100, "network": "wrn28_4"},
    ],
)
def test_the_command_gives_the_run_again(changes):
    preset = PRESETS[changes.get("dataset", "digits"), "Linf"]
    config = replace(preset, **{"method": "mma", "hinge_maxeps": 0.3} | changes)
    words = shlex.split(training_command(config, "runs/a b"))
    again, _ = parse_train(words[2:])
    assert words[:2] == ["python", "train.py"] and again.savepath == "runs/a b"
    for field in dataclasses.fields(Config):
        if field.name != "savepath":
            assert getattr(again, field.name) == getattr(config, field.name), field.name


@pytest.fixture
def folder(tmp_path):
    """A copy of the committed run, to be changed."""
    shutil.copytree(RUN, tmp_path / RUN.name, ignore=shutil.ignore_patterns("last*", "margins*", "README.md", ".lock"))
    return tmp_path / RUN.name


def test_what_is_missing_is_said(folder, capsys):
    (folder / "model_best.pt").unlink()
    for path in folder.glob("eval_*"):
        path.unlink()
    assert main([str(folder)]) == 0
    page = (folder / "README.md").read_text()
    assert "Not evaluated." in page and "AutoAttack: not evaluated" in page
    assert "the weights are not in this folder" in page and "margins.npy is not at hand" in page
    assert "torch.hub.load" not in page


def test_evaluations_of_weights_that_are_not_kept_are_shown(folder):
    (folder / "model_best.pt").unlink()
    assert "AutoAttack, ℓ∞" in card(folder) and "AutoAttack: not evaluated" not in card(folder)


def test_figures_stand_with_their_intervals_and_images(folder):
    path = folder / "eval_pgd_Linf.json"
    content = json.loads(path.read_text())
    page = card(folder)
    for row in content["results"]:
        low, high = row["ci95"]
        assert f"{100 * row['robust_acc']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in page
    content["results"][0] |= {"n": 50}  # a row may speak for itself
    path.write_text(json.dumps(content))
    assert "| 50 test |" in card(folder)


def test_of_validation_images_where_there_are_no_others(folder):
    path = folder / "eval_pgd_Linf.json"
    content = json.loads(path.read_text()) | {"split": "val"}
    content["results"] = [{**row, "split": "val"} for row in content["results"]]
    path.write_text(json.dumps(content))
    assert f"| {content['n']} val |" in card(folder) and "Not evaluated" not in card(folder)


def test_transferred_images_count_beside_the_white_box_ones(folder):
    """As in the tables: an image that falls to either has fallen."""
    pgd = json.loads((folder / "eval_pgd_Linf.json").read_text())
    row = pgd["results"][3]
    all_stand = {**row, "flags": "1" * row["n"], "robust_acc": 1.0, "ci95": [0.99, 1.0]}
    transfer = {**pgd, "attack": "transfer", "settings": {}, "results": [all_stand]}
    (folder / "eval_transfer_Linf.json").write_text(json.dumps(transfer))
    (line,) = [line for line in card(folder).splitlines() if line.startswith("| strongest of")]
    low, high = row["ci95"]
    assert f"{100 * row['robust_acc']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in line


def test_an_evaluation_of_another_checkpoint_is_left_out(folder):
    path = folder / "eval_pgd_Linf.json"
    path.write_text(path.read_text().replace('"model_sha256": "', '"model_sha256": "0'))
    page = card(folder)
    assert "of another checkpoint" in page and "| white-box PGD" not in page


def test_standard_autoattack_is_no_longer_missing(folder):
    content = json.loads((folder / "eval_pgd_Linf.json").read_text())
    content |= {"attack": "autoattack", "settings": {"standard": True}, "results": content["results"][3:4]}
    (folder / "eval_autoattack_Linf.json").write_text(json.dumps(content))
    page = card(folder)
    assert "| AutoAttack, ℓ∞ | 0.2 |" in page and "AutoAttack: not evaluated" not in page


def test_passes_are_those_of_the_last_train_row(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 2001, "passes": 1234567}) + "\n{half a li")
    assert "| passes | 1 234 567 " in card(folder)


def test_a_readme_of_the_users_own_is_left_alone(folder, capsys):
    path = folder / "README.md"
    path.write_text("Mine.\n")
    np.save(folder / "margins.npy", np.full((2, 1200), 0.1, np.float16))
    before = files(folder)
    fails(capsys, main, [folder], path, "not written by this program")
    assert files(folder) == before
    path.unlink()
    assert main([str(folder)]) == main([str(folder)]) == 0, "its own it writes anew"


def test_no_run_is_one_line(capsys, tmp_path):
    fails(capsys, main, [str(tmp_path / "gone")], "gone")
    fails(capsys, main, [str(tmp_path)], "config.json")
    assert not list(tmp_path.iterdir())
