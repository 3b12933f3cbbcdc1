"""Run folders: named and grouped by config.json, what training cost, damaged files, the command that trains them again."""

import hashlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from config import PRESETS
from errors import UserError
from flags import parse_train
from report_runs import distances, evaluate, gives_again, make_run, row
from reports.runs import frame, labels, nearest_known, read_run, read_runs, training_command
from reports.tables import remarks
from support import ROOT


@pytest.mark.parametrize(
    "changes",
    [
        {"clean_loss_coeff": 0.4, "lr": ((0, 0.01), (300, 0.001)), "deterministic": True},
        {"augment": True, "train_size": 100, "network": "wrn28_4"},
        {"quiet": True, "num_workers": 7, "device": "cpu", "resume": True, "disp_interval": 3, "data_root": "d"},
    ],
)
def test_the_command_gives_the_run_again(changes):
    gives_again(replace(PRESETS["digits", "Linf"], **{"method": "mma", "hinge_maxeps": 0.3} | changes))


def test_names_and_seeds_are_config_s_whatever_the_folder_is_called(tmp_path):
    """Also in different folders above; what the runs of one method and radius do not share is said."""
    runs = [make_run(tmp_path / name / "mnist-L2-STD-sd9", seed=seed) for name, seed in (("a", 0), ("b", 1))]
    runs.append(make_run(tmp_path / "second", eps_iter_scale=1.0, seed=5))
    runs.append(make_run(tmp_path / "pgd", method="pgd", hinge_maxeps=None, train_eps=0.2))
    runs.append(make_run(tmp_path / "std", method="std", clean_loss_coeff=1.0, hinge_maxeps=None, disp_interval=3))
    runs.append(make_run(tmp_path / "cut", hinge_maxeps=0.2, max_steps=999))
    runs.append(make_run(tmp_path / "colour", dataset="cifar10", hinge_maxeps=8 / 255))
    found = read_runs(runs)
    others = ["PGD, ε 0.2", "standard training", "MMA, d_max 0.2", "MMA, d_max 8/255"]
    assert labels(found) == [*["MMA, d_max 0.3"] * 2, "MMA, d_max 0.3, eps_iter_scale 1", *others]
    assert [run.seed for run in found[:3]] == [0, 1, 5] and found[5].settings["steps done"] == "144 of 999"
    twice = labels(read_runs([runs[0], make_run(tmp_path / "again")]))
    assert twice == [f"MMA, d_max 0.3 ({runs[0]})", f"MMA, d_max 0.3 ({tmp_path / 'again'})"], "one seed, not two"


@pytest.mark.parametrize(
    ("root", "name"),
    [("a/cifar10jpeg", "cifar10jpeg"), ("b/cifar10", "cifar10 (image folder)"), ("data", "imagefolder")],
)
def test_a_folder_of_pictures_is_called_by_its_own_name(tmp_path, root, name):
    run = read_run(make_run(tmp_path / "run", dataset="imagefolder", data_root=root, hinge_maxeps=8 / 255))
    assert run.images == name and run.words == "MMA, d_max 8/255"


@pytest.mark.parametrize(
    ("method", "each"), [("mma", 53), ("omma", 53), ("std", 1), ("pgd", 41), ("pgdls", 41), ("trades", 43)]
)
def test_cost_of_training(tmp_path, method, each):
    """At most 53 passes an image are the paper's: 40 steps, 11 of the search, clean and mixed. Those counted count."""
    alpha = {"omma": 0.0, "std": 1.0}.get(method, 1 / 3)
    folder = make_run(tmp_path / "run", method=method, nb_iter=40, clean_loss_coeff=alpha)
    run = read_run(folder)
    assert (run.passes, run.passes_at_most, run.minutes) == (None, 144 * 50 * each, pytest.approx(14.4 / 60))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 144, "passes": 123.0}) + "\n{half a li")
    assert read_run(folder).passes == read_run(folder).passes_at_most == 123.0


def test_each_checkpoint_of_a_folder_has_its_own_rows(tmp_path):
    """Several of another program in one folder are several networks; of a run of ours the best network's results count."""
    theirs, run = tmp_path / "theirs", make_run(tmp_path / "run")
    theirs.mkdir()
    for folder, names in ((theirs, ("a.pth", "b.safetensors")), (run, ("model_best.pt", "last.pt"))):
        contents = []
        for name, robust in zip(names, (0.6, 0.4), strict=True):
            (folder / name).write_text(name)
            sha256 = hashlib.sha256(name.encode()).hexdigest()
            evaluate(folder, "pgd", [row(0.1, robust)], dataset="digits", sha256=sha256)
            contents.insert(0, json.loads((folder / "eval_pgd_Linf.json").read_text()))
        (folder / "eval_pgd_Linf.json").write_text(json.dumps(contents[0] | {"others": contents[1:]}))
    found = read_runs([theirs])
    assert [run.name for run in found] == ["theirs/a.pth", "theirs/b.safetensors"]
    assert [frame([run])["robust"].tolist() for run in (*found, read_run(run))] == [[60], [40], [60]]


def test_a_file_evaluated_as_several_functions_is_several_lines(tmp_path):
    """As after a guess at its standardisation: the lower figure of the wrong one does not hide the right one's."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    as_guessed = [{"settings": {"overrides": {"standardise": how}}} for how in ("image", "none")]
    evaluate(folder, "pgd", [row(0.1, 0.2, **as_guessed[0]), row(0.1, 0.4, **as_guessed[1])], dataset="cifar10")
    table = frame([read_run(folder)])
    assert table["label"].tolist() == ["theirs, standardise image", "theirs, standardise none"]
    assert table["robust"].tolist() == [20, 40]
    (folder / "eval_pgd_Linf.json").unlink()
    found = [distances([0.4, 0.1], **as_guessed[0]), distances([0.2, 0.3], **as_guessed[1])]
    evaluate(folder, "fmn", found, dataset="cifar10")
    assert nearest_known(frame([read_run(folder)])) in ([0.4, 0.1], [0.2, 0.3]), "of one function alone"


TEN = "1111110000"


@pytest.mark.parametrize(
    ("dataset", "pgd", "sha256", "left"),
    [
        ("mnist", TEN, "a", 10),
        ("mnist", TEN + 10 * "1", "a", 10),
        ("mnist", TEN[:8], "a", 50),
        ("mnist", TEN, "b", 50),
        ("imagefolder", TEN + 10 * "1", "a", 50),
    ],
)
def test_transferred_images_count_beside_the_white_box_ones(tmp_path, dataset, pgd, sha256, left):
    """Robust is what stands in both, if PGD saw all of these images, of one checkpoint; of pictures if they are as many."""
    folder = make_run(tmp_path / "run", dataset=dataset)
    evaluate(folder, "pgd", [row(0.3, 0, flags=pgd)])
    evaluate(folder, "transfer", [row(0.3, 0, flags="0000011111")], sha256=sha256)
    table = frame([read_run(folder)])
    assert table[table["attack"] == "transfer"]["robust"].tolist() == [left]


def test_doubts(tmp_path):
    checks = {"falls with eps": {"ok": False, "value": "40 % at 0.1"}, "network": {"ok": True}, "square": {"ok": None}}
    folder = make_run(tmp_path / "run")
    odd = row(0.1, 0.9, sanity=checks, warnings=["fell by 1.0 %", "fell by 3.0 %"], invalid=2)
    evaluate(folder, "pgd", [odd, row(0.2, 0.5)])
    assert frame([read_run(folder)])["doubted"].all()
    (folder / "model_best.pt").write_bytes(b"another network")
    stale, check, warned, invalid = read_run(folder).doubts("eval_pgd_Linf.json")
    assert "stale" in stale and check == "sanity check failed: falls with eps (40 % at 0.1)"
    assert "1.0 to 3.0" in warned and invalid.startswith("2 images")


def test_doubts_of_one_standardisation_are_none_of_another(tmp_path):
    """Nor is what attacks without gradients find of it."""
    wrong = {"nb_iter": 100, "overrides": {"standardise": "none"}}
    low = {"clean accuracy above chance": {"ok": False, "value": "8 %"}}
    folder = make_run(tmp_path / "run")
    evaluate(folder, "pgd", [row(0.1, 0.7)])
    square = [row(0.1, 0.05, settings=wrong, sanity=low), row(0.1, 0.9, sanity={"network": {"ok": True, "value": ""}})]
    evaluate(folder, "square", square)
    found = frame([read_run(folder)])
    assert found.sort_values("robust")["doubted"].tolist() == [True, False, False]
    said = "\n".join(remarks(found))
    assert "masked gradients" not in said and said.count("above chance") == 1


def test_a_small_d_max_beside_its_own_least_radius(tmp_path):
    """Where the usual least radius lies above the end of the search."""
    run = read_run(make_run(tmp_path / "run", hinge_maxeps=0.04, attack_mineps=0.01))
    assert labels([run, read_run(make_run(tmp_path / "usual"))])[0] == "MMA, d_max 0.04"
    again, _ = parse_train(shlex.split(training_command(run.config, "x"))[2:])
    assert (again.hinge_maxeps, again.attack_mineps) == (0.04, 0.01)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"step": 1e999, "kind": []}', b"\xff\x00", b"null"])
@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "eval_pgd_Linf.json"])
def test_damaged_files_are_said_and_left_out(tmp_path, file, content):
    folder = make_run(tmp_path / "run", {0.1: 0.9})
    (folder / file).write_bytes(content)
    run = read_run(folder)
    assert [file in line for line in run.damaged] == [True] * (file != "metrics.jsonl")
    assert labels([run]) == ["MMA, d_max 0.3" if run.config else "run"] and len(frame([run])) == (file[0] != "e")


ODD = [{"clean_acc": 1.5}, {"eps": "x"}, {"robust_acc": None}, {"ci95": [0.1]}, {"settings": 3}, {"sanity": {"a": {}}}]


@pytest.mark.parametrize("change", [*ODD, {"n": 3}, {"flags": 200 * "2"}, {"warnings": 3}, {"eps": float("nan")}])
def test_results_that_are_not_what_an_evaluation_writes_are_damage(tmp_path, change):
    folder = make_run(tmp_path / "run", {0.1: 0.9})
    (folder / "eval_pgd_Linf.json").rename(folder / "eval_fmn_Linf.json")
    evaluate(folder, "cw", [distances([0.1, 0.2]) | {"n": 3}])
    evaluate(folder, "other", [row(0.1, 0.9)])
    evaluate(folder, "square", [row(0.1, 0.9) | change])
    few, name, unknown, odd = read_run(folder).damaged
    assert "a row of" in few and "its name is not eval_pgd_Linf.json" in name and "no attack" in unknown, odd


def test_margins(tmp_path):
    """By epoch, as the log has its checks; why there are none."""
    folder = make_run(tmp_path / "run", margins=True)
    epochs, eps = read_run(folder).margins()
    assert eps.shape == (6, 1200) and epochs.tolist() == [1, 2, 3, 4, 5, 6]  # 24 steps an epoch
    for content, why in ((np.zeros((6, 1200), np.float16), "every margin in it is 0"), (np.zeros(3), "damaged")):
        np.save(folder / "margins.npy", content)
        with pytest.raises(UserError, match=why):
            read_run(folder).margins()


@pytest.mark.parametrize(("package", "program"), [("pandas", "make_tables"), ("plotly", "make_report")])
def test_a_package_that_is_missing_is_one_line(package, program):
    code = f"import sys; sys.modules['{package}'] = None; import reports.{program}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"error: package {package}")
    assert done.stderr.count("\n") == 1 and "pip install -r requirements/report.txt" in done.stderr
