"""The command lines for real: train, stop, resume, attack; and every refusal in one line with status 2."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import evaluate_on_pgd_attacks
import train
from command_lines import ATTACK, SMALL, fails, files, found_in, rows
from errors import UserError
from records import checkpoint, resume
from records.progress import Teller
from records.runlog import RunFolder
from support import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small finished run, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main([*SMALL, "--max_steps", "30", "--savepath", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_the_run_folder(trained):
    names = {"config.json", "metrics.jsonl", "last.pt", "last.prev.pt", "model_best.pt", "margins.npy", ".lock"}
    assert set(files(trained)) == names
    config = json.loads((trained / "config.json").read_text())
    assert config["hinge_maxeps"] == 0.3 and config["environment"]["torch"] == torch.__version__
    train_rows = [r for r in rows(trained, False) if r["kind"] == "train"]
    assert [r["step"] for r in train_rows] == list(range(2, 31, 2))
    assert set(train_rows[0]) == {
        "kind",
        "step",
        "epoch",
        "lr",
        "clean_loss",
        "clean_acc",
        "mma_loss",
        "mean_eps",
        "steps_per_second",
        "passes",
    }
    checks = [r for r in rows(trained) if r["kind"] == "eval"]
    assert [(r["split"], r["step"]) for r in checks] == [
        (s, n) for n in (*range(4, 29, 4), 30) for s in ("val", "test")
    ]
    assert set(checks[0]) == {
        "kind",
        "split",
        "step",
        "epoch",
        "clean_acc",
        "robust_acc",
        "mean_margin",
        "check_passes",
    }
    margins = np.load(trained / "margins.npy")
    assert margins.shape == (8, 200) and margins.dtype == np.float16
    best = torch.load(trained / "model_best.pt", weights_only=True)
    assert {"epoch", "model", "config", "metrics"} <= set(best)
    assert best["metrics"]["val"]["mean_margin"] == max(r["mean_margin"] for r in checks if r["split"] == "val")


def test_finished_runs_are_skipped_and_full_folders_refused(run, capsys):
    before = files(run)
    argv = [*SMALL, "--max_steps", "30", "--savepath", str(run)]
    assert train.main([*argv, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
    fails(capsys, train.main, argv, run, "--resume")
    fails(capsys, train.main, [*argv, "--resume", "--seed", "1"], "--seed 1 here, 0 there")
    fails(capsys, train.main, [*argv, "--resume", "--max_steps", "20"], "--max_steps 20 here, 30 there")
    fails(capsys, train.main, [*argv, "--resume", "--norm", "L2"], "--norm L2 here, Linf there")
    assert files(run) == before
    for name in ("last.pt", "last.prev.pt", "margins.npy"):  # as it is committed
        (run / name).unlink()
    assert train.main([*argv, "--resume"]) == 0
    fails(capsys, train.main, [*argv, "--resume", "--max_steps", "40"], "last.pt", "another --savepath")


@pytest.mark.slow
def test_more_steps_continue_a_finished_run(run, tmp_path):
    """30 steps, then 40: the same weights as 40 at once, and a row for each step."""
    assert train.main([*SMALL, "--max_steps", "40", "--resume", "--savepath", str(run)]) == 0
    whole = tmp_path / "whole"
    assert train.main([*SMALL, "--max_steps", "40", "--savepath", str(whole)]) == 0
    a, b = (checkpoint.load(folder / "last.pt") for folder in (run, whole))
    assert checkpoint.digest(a["model"]) == checkpoint.digest(b["model"]) and torch.equal(a["eps"], b["eps"])

    def alike(folder):  # the first run made one more check, at its end
        return [{name: value for name, value in row.items() if name != "check_passes"} for row in rows(folder)]

    assert [r for r in alike(run) if r["step"] != 30 or r["kind"] == "train"] == alike(whole)


@pytest.mark.parametrize(
    ("flags", "length"),
    [(["--one_cycle"], "cycle_steps"), (["--method", "pgdls", "--train_eps", "0.2"], "ramp_steps")],
)
def test_more_steps_keep_the_lengths_of_the_start(flags, length, tmp_path, capsys):
    argv = [*SMALL, *flags, "--savepath", str(tmp_path / "run")]
    argv = [flag for flag in argv if "pgdls" not in argv or flag not in ("--hinge_maxeps", "0.3")]

    def config():
        return json.loads((tmp_path / "run" / "config.json").read_text())

    assert train.main([*argv, "--max_steps", "4"]) == 0
    fixed = config()[length]
    assert train.main([*argv, "--max_steps", "6", "--resume"]) == 0
    assert (config()["max_steps"], config()[length]) == (6, fixed)
    assert ("the rate is next to 0" in capsys.readouterr().err) == (length == "cycle_steps")
    assert train.main([*argv, "--max_steps", "7", f"--{length}", "5", "--resume"]) == 2


def test_a_run_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch, capsys):
    """The folder was not there when this one began."""
    argv = [*SMALL, "--savepath", str(tmp_path / "run")]
    make = train.new_trainer

    def slow(*given):
        trainer = make(*given)
        monkeypatch.setattr(train, "new_trainer", make)
        assert train.main([*argv, "--max_steps", "4"]) == 0
        slow.left = files(tmp_path / "run")
        return trainer

    monkeypatch.setattr(train, "new_trainer", slow)
    assert train.main([*argv, "--max_steps", "2"]) == 2
    assert "another process has begun a run here meanwhile: add --resume" in capsys.readouterr().err
    assert files(tmp_path / "run") == slow.left


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted(tmp_path, number):
    """In mid-epoch, in processes of their own: bit for bit the same state, rows, margins and best model."""
    argv = [sys.executable, str(ROOT / "train.py"), *SMALL, "--train_size", "600", "--max_steps", "60"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    subprocess.run([*argv, "--savepath", str(whole)], check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(
        [*argv, "--savepath", str(part)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((part / "metrics.jsonl").exists() and len(rows(part)) >= 2):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert re.search(r"go on with: \S*python3? \S*train.py", out) and "--resume" in out
    stopped_at = checkpoint.load(part / "last.pt")["step"]
    assert 0 < stopped_at < 60
    subprocess.run([*argv, "--savepath", str(part), "--resume"], check=True, capture_output=True, timeout=120)
    a, b = (checkpoint.load(folder / "last.pt") for folder in (whole, part))
    for key in set(a) - {"config"}:
        assert checkpoint.digest(a[key]) == checkpoint.digest(b[key]), key
    assert rows(whole) == rows(part)
    assert np.array_equal(np.load(whole / "margins.npy"), np.load(part / "margins.npy"))
    best = [checkpoint.load(folder / "model_best.pt") for folder in (whole, part)]
    assert checkpoint.digest(best[0]["model"]) == checkpoint.digest(best[1]["model"])


def test_a_signal_is_heeded_from_the_first_line_on(tmp_path, capsys, monkeypatch):
    def say(teller, text):
        print(text)
        if "steps in all" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Teller, "note", say)
    assert train.main([*SMALL, "--max_steps", "30", "--savepath", str(tmp_path / "run")]) == 130
    assert "state saved; go on with: " in capsys.readouterr().out


def test_resume_cuts_back_what_was_written_after_the_last_save(run):
    """Rows, margins and half a line beyond last.pt, as after a kill, are forgotten and written anew."""
    expected = rows(run)
    shutil.copy(run / "last.prev.pt", run / "last.pt")  # the save before the last check
    state = checkpoint.load(run / "last.pt")
    assert (state["step"], state["checked_step"]) == (30, 28)
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    half_a_line = '{"kind": "train", "st'
    (run / "metrics.jsonl").write_text(
        "".join([*lines[:-2], lines[-3].replace('"step": 30', '"step": 31'), half_a_line])
    )
    assert train.main([*SMALL, "--max_steps", "30", "--resume", "--savepath", str(run)]) == 0
    assert rows(run) == expected
    assert np.load(run / "margins.npy").shape == (8, 200)


@pytest.mark.parametrize("damage", [b"", b"<html>", None])
def test_resume_falls_back_to_the_previous_checkpoint(run, capsys, damage):
    expected, model = rows(run), checkpoint.load(run / "last.pt")["model"]
    good = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(good[: len(good) // 2] if damage is None else damage)
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join(lines[:-2]))  # killed before the rows of the last check
    assert train.main([*SMALL, "--max_steps", "30", "--resume", "--savepath", str(run)]) == 0
    assert "warning" in capsys.readouterr().err
    assert rows(run) == expected
    assert checkpoint.digest(checkpoint.load(run / "last.pt")["model"]) == checkpoint.digest(model)


def test_two_damaged_states_are_both_named_and_nothing_is_asked_to_be_removed(run, capsys):
    for name in ("last.pt", "last.prev.pt"):
        (run / name).write_bytes(b"<html>")
    before = files(run)
    argv = [*SMALL, "--max_steps", "40", "--resume", "--savepath", run]
    fails(capsys, train.main, argv, run / "last.pt", run / "last.prev.pt", "another --savepath", f"move {run} away")
    assert files(run) == before
    with pytest.raises(UserError) as error:
        resume.usable_state(RunFolder(run), print)
    assert "remove" not in str(error.value) and "another file" not in str(error.value).replace("kind of", "")


def test_lost_rows_are_said(run, capsys):
    argv = [*SMALL, "--max_steps", "40", "--resume", "--savepath", str(run)]
    (run / "metrics.jsonl").unlink()
    assert train.main(argv) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"{run / 'metrics.jsonl'}: not there" in line and "up to step 30 are lost" in line
    assert train.main([*argv, "--max_steps", "44"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_attack(run, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK, "--eps", "0.2", "1/20", "--save_adv"]) == 0
    out = capsys.readouterr().out
    result = json.loads((run / "eval_pgd_Linf.json").read_text())
    assert list(result) == ["format", "attack", "model_sha256", "dataset", "norm", "results"]
    assert [(r["eps"], r["n"]) for r in result["results"]] == [(0.05, 60), (0.2, 60)]
    assert [row["settings"]["eps_iter"] for row in result["results"]] == [0.0125, 0.05]
    for row in result["results"]:
        assert len(row["flags"]) == 60 and row["robust_acc"] == row["flags"].count("1") / 60
        assert row["ci95"][0] <= row["robust_acc"] <= row["ci95"][1]
        assert f"{row['robust_acc']:.2%}" in out
    assert result["results"][0]["robust_acc"] > result["results"][1]["robust_acc"]
    saved = checkpoint.load(run / "adv_pgd_Linf.pt")
    from loading.datasets import load_test

    clean = load_test("digits", ".", test_size=60, device=torch.device("cpu")).split.everything()
    from evaluations.flags import parse_pgd
    from evaluations.subject import load_subject

    model = load_subject(parse_pgd(["--model", str(run), *ATTACK]), torch.device("cpu")).model
    for row in result["results"]:
        x_adv = saved["x_adv"][row["eps"]]
        assert (x_adv - clean.x).abs().max() <= row["eps"] + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        assert "".join("1" if ok else "0" for ok in (model(x_adv).argmax(1) == clean.y)) == row["flags"]


def test_attack_gives_the_same_flags_again_and_reads_the_references_format(run, tmp_path, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK]) == 0
    first = found_in(run)
    theirs = tmp_path / "theirs" / "model.pt"
    theirs.parent.mkdir()
    torch.save(
        {"epoch": 3, "model": torch.load(run / "model_best.pt", weights_only=True)["model"]},
        theirs,
        _use_new_zipfile_serialization=False,
    )
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model", theirs, *ATTACK], "--dataset is missing")
    assert evaluate_on_pgd_attacks.main(["--model", str(theirs), *ATTACK, "--dataset", "digits", "--norm", "Linf"]) == 0
    assert found_in(theirs.parent) == first and first[0]["eps"] == 0.2


def test_attack_in_another_norm_is_said_and_recorded(run, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK, "--norm", "L2"]) == 0
    assert "--norm: L2 instead of the checkpoint's Linf" in capsys.readouterr().out
    result = json.loads((run / "eval_pgd_L2.json").read_text())
    assert result["norm"] == "L2" and result["results"][0]["eps"] == 1.0
    assert "norm" in result["results"][0]["settings"]["overrides"]


def test_models_that_cannot_be_attacked(run, tmp_path, capsys):
    main = evaluate_on_pgd_attacks.main
    fails(capsys, main, ["--model", tmp_path / "nothing.pt"], "nothing.pt")
    fails(capsys, main, ["--model", run, "--network", "wrn28_4"], "of another network")
    fails(capsys, main, ["--model", run, "--device", "gpu"], "--device gpu")
    fails(capsys, main, ["--model", run, "--device", "cuda:7"], "--device cuda:7")
    fails(capsys, main, ["--model", run, "--eps", "2"], "--eps 2")
    fails(capsys, main, ["--model", run, "--test_size", "1000"], "--test_size 1000")
    (run / "model_best.pt").write_bytes((run / "model_best.pt").read_bytes()[:9000])
    fails(capsys, main, ["--model", run], "model_best.pt")
    assert not list(run.glob("eval_*"))


NET = """
import torch
class net(torch.nn.Module):
    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.linear = torch.nn.Linear(4 * height * width, num_classes)
    def forward(self, x):
        return self.linear(self.conv(x).view(len(x), -1))  # needs the plain memory order
def bad_shape(*_):
    return torch.nn.Flatten()
"""


def test_ones_own_network(tmp_path, capsys, monkeypatch):
    """Trained by name, stored by name, and only run again where the user names it."""
    (tmp_path / "my_nets.py").write_text(NET)
    folder = tmp_path / "own"
    argv = [*SMALL, "--max_steps", "8", "--savepath", str(folder), "--network", "my_nets:net"]
    assert train.main(argv) == 0
    shown = capsys.readouterr().out.split("evaluate_on_pgd_attacks.py")[1].split()
    assert shown == ["--model", str(folder), "--network", "my_nets:net"]
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model", folder, *ATTACK], "--network my_nets:net")
    assert evaluate_on_pgd_attacks.main([*shown, *ATTACK]) == 0
    fails(
        capsys,
        train.main,
        [*SMALL, "--savepath", tmp_path / "no", "--network", "my_nets:bad_shape"],
        "(2, 64)",
        "logits",
    )
    assert not (tmp_path / "no").exists()


def test_pretrained(run, tmp_path, capsys):
    folder = tmp_path / "tuned"
    argv = [*SMALL, *shlex.split("--norm L2 --hinge_maxeps 1.5 --max_steps 1 --lr 1e-9"), "--savepath", str(folder)]
    assert train.main([*argv, "--pretrained", str(run)]) == 0
    assert "norm Linf" in capsys.readouterr().out
    a, b = (checkpoint.load(f / "model_best.pt")["model"]["linear2.weight"] for f in (run, folder))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert train.main([*SMALL, "--max_steps", "8", "--savepath", str(folder), "--tensorboard"]) == 0
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/clean_loss", "train/mean_eps", "val/mean_margin", "test/robust_acc"} <= set(events.Tags()["scalars"])
    assert events.Tags()["histograms"] == ["train/margins"]
    expected = [r["clean_loss"] for r in rows(folder) if r["kind"] == "train"]
    assert [e.value for e in events.Scalars("train/clean_loss")] == pytest.approx(expected)


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset", "digits", "--norm", "Linf", "--clean_loss_coeff", "1", "--lr", "1e-3"],
        ["--dataset", "digits", "--norm", "L2", "--hinge_maxeps", "1.5", "--clean_loss_coeff", "0"],
        ["--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "0.3", "--network", "wrn28_4", "--augment"],
        ["--dataset", "digits", "--norm", "L2", "--hinge_maxeps", "1.5", "--optimizer", "sgd", "--deterministic"],
    ],
)
def test_combinations(flags, tmp_path):
    small = shlex.split("--max_steps 3 --train_size 40 --val_size 12 --test_size 0 --batch_size 16 --nb_iter 2")
    try:
        assert (
            train.main([*flags, *small, "--device", "cpu", "--disp_interval", "1", "--savepath", str(tmp_path / "run")])
            == 0
        )
    finally:
        torch.use_deterministic_algorithms(False)
    found = rows(tmp_path / "run")
    assert [r["step"] for r in found if r["kind"] == "train"] == [1, 2, 3]
    assert {r["split"] for r in found if r["kind"] == "eval"} == {"val"}
    if "1e-3" in flags:
        assert found[0]["mma_loss"] is None and found[0]["mean_eps"] is None


def test_image_folder_from_the_command_line(tmp_path, capsys):
    from folders import images

    for part, count in (("train", 12), ("test", 6)):
        for name in ("ant", "bee"):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for i, image in enumerate(images(count, 16, seed=i_seed(part, name))):
                image.save(tmp_path / "pictures" / part / name / f"{i}.png")
    argv = shlex.split(
        "--dataset imagefolder --norm L2 --hinge_maxeps 1 --data_root pictures --device cpu --network lenet5 --max_steps 3 --batch_size 8 --nb_iter 2"
    )
    assert train.main([*argv, "--savepath", "mine"]) == 0
    assert (
        evaluate_on_pgd_attacks.main(["--model", "mine", "--nb_iter", "2", "--nb_restart", "2", "--device", "cpu"]) == 0
    )
    assert json.loads((tmp_path / "mine" / "eval_pgd_L2.json").read_text())["results"][0]["n"] == 12
    capsys.readouterr()
    fails(capsys, train.main, [*argv, "--data_root", "nowhere", "--savepath", "other"], "nowhere", "--data_root")
    assert not (tmp_path / "other").exists()


def i_seed(part, name):
    return {"train": 0, "test": 10}[part] + {"ant": 1, "bee": 2}[name]


@pytest.mark.slow
def test_from_another_folder_as_a_newcomer_would(command, tmp_path):
    """Through the interpreter: an error is one line without a traceback, --help works."""
    status, out, err = command("train.py", "--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "-3")
    assert (status, out) == (2, "") and err.startswith("error: --hinge_maxeps -3") and err.count("\n") == 1
    status, out, err = command("evaluate_on_pgd_attacks.py", "--help")
    assert status == 0 and "--save_adv" in out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, capsys, file_modes_count):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    fails(capsys, train.main, [*SMALL, "--savepath", folder / "run"], "locked")


def test_a_run_in_a_folder_that_has_become_read_only(run, capsys, file_modes_count):
    before = files(run)
    for path in run.iterdir():
        path.chmod(0o400)
    run.chmod(0o500)
    fails(capsys, train.main, [*SMALL, "--max_steps", "40", "--resume", "--savepath", run], "cannot be written")
    assert files(run) == before
    run.chmod(0o700)


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, train.main, [*SMALL, "--savepath", tmp_path / "file" / "run"], "file")


def test_two_processes_do_not_train_in_one_folder(run, capsys):
    before = files(run)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; "
            f"from records.runlog import RunFolder; folder = RunFolder(Path({str(run)!r})); folder.lock(); print('locked', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "locked\n"
        fails(
            capsys,
            train.main,
            [*SMALL, "--max_steps", "40", "--resume", "--savepath", run],
            "another process",
            str(other.pid),
        )
    finally:
        other.kill()
        other.wait()
    without_lock = [{k: v for k, v in f.items() if k != ".lock"} for f in (files(run), before)]
    assert without_lock[0] == without_lock[1]
    RunFolder(run).lock()


def test_a_network_without_its_state_is_not_overwritten(run, capsys):
    """A model put there by hand, or a committed unfinished run: refused, nothing changed."""
    (run / "last.pt").unlink()
    (run / "last.prev.pt").unlink()
    before = files(run)
    fails(capsys, train.main, [*SMALL, "--max_steps", "40", "--resume", "--savepath", run], "last.pt", "--savepath")
    for name in ("config.json", "metrics.jsonl", "margins.npy"):
        (run / name).unlink()
    fails(capsys, train.main, [*SMALL, "--max_steps", "40", "--resume", "--savepath", run], "last.pt")
    assert (run / "model_best.pt").read_bytes() == before["model_best.pt"]


def test_a_run_that_diverges_stops_with_status_3_and_saves_nothing_of_it(tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        train.main([*SMALL, "--max_steps", "30", "--lr", "1e30", "--optimizer", "sgd", "--savepath", str(folder)]) == 3
    )
    assert "not finite" in capsys.readouterr().err
    assert all(torch.isfinite(v).all() for v in checkpoint.load(folder / "last.pt")["model"].values())


def test_more_refusals_before_training(tmp_path, capsys):
    (tmp_path / "nets2.py").write_text(
        "import torch\n"
        "def pair(c, h, w, n):\n    class P(torch.nn.Linear):\n        def forward(self, x): return super().forward(x.flatten(1)), 1\n    return P(c * h * w, n)\n"
        "def frozen(c, h, w, n): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c * h * w, n)).requires_grad_(False)\n"
        "def bn(c, h, w, n): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c * h * w, n), torch.nn.BatchNorm1d(n))\n"
    )
    for name, *parts in (("pair", "nets2:pair"), ("frozen", "no parameter")):
        fails(capsys, train.main, [*SMALL, "--savepath", tmp_path / "no", "--network", f"nets2:{name}"], *parts)
    for size in ("1", "199"):
        fails(
            capsys,
            train.main,
            [*SMALL, "--savepath", tmp_path / "no", "--network", "nets2:bn", "--batch_size", size],
            "BatchNorm",
        )
    fails(capsys, train.main, [*SMALL, "--max_steps", "1", "--savepath", ""], "--savepath: is empty")
    assert not (tmp_path / "no").exists() and not (tmp_path / "trained_models").exists()


def test_damaged_side_files_are_named(run, capsys):
    argv = [*SMALL, "--max_steps", "40", "--resume", "--savepath", str(run)]
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("[]\n" + lines)
    fails(capsys, train.main, argv, "metrics.jsonl", "line 1")
    (run / "metrics.jsonl").write_text(lines)
    (run / "margins.npy").write_bytes(b"")
    fails(capsys, train.main, argv, "margins.npy")
    (run / "config.json").write_text("[]")
    fails(capsys, train.main, argv, "config.json")


def test_attack_again(run, capsys):
    """The same command says "already done"; a smaller evaluation, and another one, stand beside it."""
    main, argv = evaluate_on_pgd_attacks.main, ["--model", str(run), *ATTACK, "--eps", "0.1"]
    assert main(argv) == 0
    result = (run / "eval_pgd_Linf.json").read_text()
    capsys.readouterr()
    assert main(argv) == 0
    assert "already done" in capsys.readouterr().out and (run / "eval_pgd_Linf.json").read_text() == result
    assert main([*argv, "--test_size", "30"]) == main([*argv, "--nb_iter", "6"]) == 0
    assert [(row["n"], row["settings"]["nb_iter"]) for row in found_in(run)] == [(60, 5), (60, 6), (30, 5)]


def test_pretrained_is_not_needed_to_go_on(run, tmp_path):
    folder = tmp_path / "tuned"
    argv = [*SMALL, "--lr", "1e-4", "--savepath", str(folder), "--pretrained", str(run)]
    assert train.main([*argv, "--max_steps", "2"]) == 0
    shutil.rmtree(run)
    assert train.main([*argv, "--max_steps", "4", "--resume"]) == 0


def test_without_git(monkeypatch):
    from records import runlog

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert runlog.git_commit() is None
