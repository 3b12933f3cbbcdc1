"""The command lines for real: train, stop, resume, attack; and every refusal in one line with status 2."""

import json
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import torch

import evaluate_on_pgd_attacks
import train
from command_lines import ATTACK, SMALL, fails, files, found_in, rows
from errors import UserError
from evaluations.flags import PgdFlags, parse_flags
from evaluations.subject import load_subject
from loading.datasets import load_test
from ranks import Started
from records import checkpoint, resume, run_folder
from records.progress import Teller
from records.run_folder import RunFolder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def going_on(folder, steps=40):
    return [*SMALL, "--max_steps", str(steps), "--resume", "--savepath", str(folder)]


# --- the run folder and going on from it -----------------------------------------------------------------------------


def test_the_run_folder(trained):
    names = {"config.json", "metrics.jsonl", "last.pt", "last.prev.pt", "model_best.pt", "margins.npy", ".lock"}
    assert set(files(trained)) == names
    config = json.loads((trained / "config.json").read_text())
    assert config["hinge_maxeps"] == 0.3 and config["environment"]["torch"] == torch.__version__
    train_rows = [r for r in rows(trained, False) if r["kind"] == "train"]
    assert [r["step"] for r in train_rows] == list(range(2, 31, 2))
    named = "kind step epoch lr clean_loss clean_acc mma_loss mean_eps steps_per_second passes"
    assert " ".join(train_rows[0]) == named
    checks = [r for r in rows(trained) if r["kind"] == "eval"]
    expected = [(split, step) for step in (*range(4, 29, 4), 30) for split in ("val", "test")]
    assert [(r["split"], r["step"]) for r in checks] == expected
    assert " ".join(checks[0]) == "kind split step epoch clean_acc robust_acc mean_margin check_passes"
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
    for flag, value, own in (
        *(("--seed", "1", "0"), ("--max_steps", "20", "30"), ("--norm", "L2", "Linf"), ("--method", "trades", "mma")),
        *(("--dataset", "mnist", "digits"), ("--network", "wrn_10_1", "lenet5"), ("--precision", "bf16", "fp32")),
    ):
        fails(capsys, train.main, [*argv, "--resume", flag, value], f"{flag} {value} here, {own} there")
    assert files(run) == before
    of_run = "--data_root elsewhere --disp_interval 5 --save_interval 1 --quiet --tensorboard --no-cuda_graphs"
    assert train.main([*argv, "--resume", *of_run.split()]) == 0
    for name in ("last.pt", "last.prev.pt", "margins.npy"):  # as it is committed
        (run / name).unlink()
    assert train.main([*argv, "--resume"]) == 0
    fails(capsys, train.main, going_on(run), "last.pt", "another --savepath")
    best = (run / "model_best.pt").read_bytes()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).unlink()
    fails(capsys, train.main, going_on(run), "last.pt")
    assert (run / "model_best.pt").read_bytes() == best, "a network without its state is not overwritten"


@pytest.mark.parametrize(
    ("flags", "length"), [("--hinge_maxeps 0.3 --one_cycle", "cycle_steps"), ("--method pgdls", "ramp_steps")]
)
def test_more_steps_keep_the_lengths_of_the_start(flags, length, tmp_path, capsys):
    argv = [*SMALL[:4], *SMALL[6:], *flags.split(), "--savepath", str(tmp_path / "run")]

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


def lock_for_a_minute(path):
    folder = RunFolder(path)  # kept, and with it the lock
    folder.lock()
    print("locked")
    time.sleep(60)


def test_two_processes_do_not_train_in_one_folder(run, capsys):
    before = files(run)
    other = Started(lock_for_a_minute, run)
    other.wait_for(lambda: "locked" in other.text)
    who = f"process {other.process.pid}"
    fails(capsys, train.main, going_on(run), "another process", f"{who} on ", "choose another folder")
    assert who in (run / ".lock").read_text(), "not written over"
    other.process.kill()
    other.process.join()
    assert {**files(run), ".lock": b""} == {**before, ".lock": b""}
    folder = RunFolder(run)
    folder.lock()  # at once, though the one that held it was killed
    folder.unlock()
    assert (run / ".lock").read_text() == ""


def test_a_signal_is_heeded_from_the_first_line_on(tmp_path, capsys, monkeypatch):
    def say(teller, text):
        print(text)
        if "steps in all" in text:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Teller, "note", say)
    assert train.main([*SMALL, "--max_steps", "30", "--savepath", str(tmp_path / "run")]) == 130
    assert "state saved; go on with: " in capsys.readouterr().out


def test_resume_cuts_back_what_was_written_after_the_last_save(run):
    """Rows, margins and half a line beyond last.pt; after a real kill: see test_faults.py."""
    expected = rows(run)
    shutil.copy(run / "last.prev.pt", run / "last.pt")  # the save before the last check
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert train.main(going_on(run, 30)) == 0
    assert rows(run) == expected and np.load(run / "margins.npy").shape == (8, 200)


def test_two_damaged_states_are_both_named_and_nothing_is_asked_to_be_removed(run, capsys):
    for name in ("last.pt", "last.prev.pt"):
        (run / name).write_bytes(b"<html>")
    before = files(run)
    parts = run / "last.pt", run / "last.prev.pt", "another --savepath", f"move {run} away"
    fails(capsys, train.main, going_on(run), *parts)
    assert files(run) == before
    with pytest.raises(UserError) as error:
        resume.usable_state(RunFolder(run))
    assert "remove" not in str(error.value) and "another file" not in str(error.value).replace("kind of", "")


def test_lost_rows_are_said(run, capsys):
    (run / "metrics.jsonl").unlink()
    assert train.main(going_on(run)) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"{run / 'metrics.jsonl'}: not there" in line and "up to step 30 are lost" in line
    assert train.main(going_on(run, 44)) == 0
    assert "warning" not in capsys.readouterr().err


def test_pretrained(run, tmp_path, capsys):
    folder = tmp_path / "tuned"
    argv = [*SMALL, *shlex.split("--norm L2 --hinge_maxeps 1.5 --max_steps 1 --lr 1e-9"), "--savepath", str(folder)]
    assert train.main([*argv, "--pretrained", str(run)]) == 0
    assert "trained with norm Linf, going on with L2" in capsys.readouterr().out
    a, b = (checkpoint.load(f / "model_best.pt")["model"]["linear2.weight"] for f in (run, folder))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    shutil.rmtree(run)  # not needed to go on
    assert train.main([*argv, "--pretrained", str(run), "--max_steps", "2", "--resume"]) == 0


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
        "--norm Linf --clean_loss_coeff 1 --lr 1e-3",
        "--norm L2 --hinge_maxeps 1.5 --clean_loss_coeff 0",
        "--norm Linf --hinge_maxeps 0.3 --network wrn_10_1 --augment",
        "--norm L2 --hinge_maxeps 1.5 --optimizer sgd --deterministic",
    ],
)
def test_combinations(flags, tmp_path):
    small = "--dataset digits --train_size 40 --val_size 12 --test_size 0 --batch_size 16 --nb_iter 2 --device cpu"
    argv = [*small.split(), *flags.split(), "--max_steps", "3", "--disp_interval", "1"]
    try:
        assert train.main([*argv, "--savepath", str(tmp_path / "run")]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    found = rows(tmp_path / "run")
    assert [r["step"] for r in found if r["kind"] == "train"] == [1, 2, 3]
    assert {r["split"] for r in found if r["kind"] == "eval"} == {"val"}
    if "1e-3" in flags:
        assert found[0]["mma_loss"] is None and found[0]["mean_eps"] is None


# --- attacking -------------------------------------------------------------------------------------------------------


def test_attack(run, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK, "--eps", "0.2", "1/20", "--save_adv"]) == 0
    out, found = capsys.readouterr().out, found_in(run)
    shown = [(row["eps"], row["n"], row["settings"]["eps_iter"]) for row in found]
    assert shown == [(0.05, 60, 0.025), (0.2, 60, 0.1)]
    assert found[0]["robust_acc"] > found[1]["robust_acc"]
    saved = checkpoint.load(run / "adv_pgd_Linf.pt")
    clean = load_test("digits", ".", test_size=60, device=torch.device("cpu")).split.everything()
    model = load_subject(parse_flags(PgdFlags, ["--model", str(run), *ATTACK]), torch.device("cpu")).model
    for row in found:
        assert len(row["flags"]) == 60 and row["robust_acc"] == row["flags"].count("1") / 60
        assert row["ci95"][0] <= row["robust_acc"] <= row["ci95"][1] and f"{row['robust_acc']:.2%}" in out
        x_adv = saved["x_adv"][row["eps"]]
        assert (x_adv - clean.x).abs().max() <= row["eps"] + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        assert "".join("1" if ok else "0" for ok in (model(x_adv).argmax(1) == clean.y)) == row["flags"]


def test_the_references_format_gives_the_same_flags(run, tmp_path, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK]) == 0
    theirs = tmp_path / "theirs" / "model.pt"
    theirs.parent.mkdir()
    content = {"epoch": 3, "model": torch.load(run / "model_best.pt", weights_only=True)["model"]}
    torch.save(content, theirs, _use_new_zipfile_serialization=False)
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model", theirs, *ATTACK], "--dataset and --norm are missing")
    assert evaluate_on_pgd_attacks.main(["--model", str(theirs), *ATTACK, "--dataset", "digits", "--norm", "linf"]) == 0
    (row,), (other,) = found_in(theirs.parent), found_in(run)
    for each, ok in ((row, None), (other, True)):
        assert each["sanity"].pop("clean accuracy as the file says")["ok"] is ok, "theirs says none"
    assert row == other and row["eps"] == 0.2


def test_attack_in_another_norm_is_said_and_recorded(run, capsys):
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK, "--norm", "L2"]) == 0
    assert "--norm: L2 instead of the checkpoint's Linf" in capsys.readouterr().out
    (row,) = found_in(run, norm="L2")
    assert row["eps"] == 1.0 and "norm" in row["settings"]["overrides"]


# --- one's own network and pictures ----------------------------------------------------------------------------------

NETS = """
import torch
class net(torch.nn.Module):
    def __init__(self, channels, height, width, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, 4, 3, padding=1)
        self.linear = torch.nn.Linear(4 * height * width, num_classes)
    def forward(self, x):
        return self.linear(self.conv(x).view(len(x), -1))  # needs the plain memory order
def flat(*_):
    return torch.nn.Flatten()
def frozen(c, h, w, n):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c * h * w, n)).requires_grad_(False)
def bn(c, h, w, n):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c * h * w, n), torch.nn.BatchNorm1d(n))
"""


def test_ones_own_network(tmp_path, capsys):
    """Trained by name, stored by name, and only run again where the user names it."""
    (tmp_path / "my_nets.py").write_text(NETS)
    folder = tmp_path / "own"
    argv = [*SMALL, "--max_steps", "8", "--savepath", str(folder), "--network", "my_nets:net"]
    assert train.main(argv) == 0
    shown = capsys.readouterr().out.split("evaluate_on_pgd_attacks.py")[1].split()
    assert shown == ["--model", str(folder), "--network", "my_nets:net"]
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model", folder, *ATTACK], "--network my_nets:net")
    assert evaluate_on_pgd_attacks.main([*shown, *ATTACK]) == 0


def test_refusals_before_training(tmp_path, capsys):
    (tmp_path / "nets2.py").write_text(NETS)
    for flags, *parts in (
        ("--network nets2:flat", "(2, 64)", "logits"),
        ("--network nets2:frozen", "no parameter"),
        ("--network nets2:bn --batch_size 199", "BatchNorm"),
        ("--val_size 5000", "--val_size 5000"),
    ):
        fails(capsys, train.main, [*SMALL, "--savepath", tmp_path / "no", *flags.split()], *parts)
    fails(capsys, train.main, [*SMALL, "--max_steps", "1", "--savepath", ""], "--savepath: is empty")
    assert not (tmp_path / "no").exists() and not (tmp_path / "trained_models").exists()


# --- what the file system refuses ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_another_folder_as_a_newcomer_would(command, tmp_path):
    """Through the interpreter: an error is one line without a traceback. --help: see test_surroundings.py."""
    status, out, err = command("train.py", "--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "-3")
    assert (status, out) == (2, "") and err.startswith("error: --hinge_maxeps -3") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(run, tmp_path, capsys, file_modes_count):
    (tmp_path / "file").write_text("")
    fails(capsys, train.main, [*SMALL, "--savepath", tmp_path / "file" / "run"], "file")
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(capsys, train.main, [*SMALL, "--savepath", tmp_path / "locked" / "run"], "locked")
    before = files(run)
    for path in run.iterdir():
        path.chmod(0o400)
    run.chmod(0o500)
    fails(capsys, train.main, going_on(run), str(run), "Permission denied: mend that")
    assert files(run) == before
    run.chmod(0o700)


def test_without_git(monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("git")

    assert run_folder.git_commit() is None or len(run_folder.git_commit().partition("-")[0]) == 40
    monkeypatch.setattr(run_folder.subprocess, "run", gone)
    assert run_folder.git_commit() is None
