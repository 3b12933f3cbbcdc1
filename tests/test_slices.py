"""`--max_minutes`: a run in slices is the run without them, bit for bit, however small the slices."""

import json
import re
import shlex
import time

import pytest

import train
from command_lines import SMALL, files, rows
from records import checkpoint

RUN = [*SMALL, *shlex.split("--network linear_networks:Linear --batch_size 50 --max_steps 6 --eval_batch_size 8")]
RUN += ["--lr", "1e-2", "--attack_mineps", "0.02"]


def run(folder, *flags):
    return train.main([*RUN, "--savepath", str(folder), *flags])


def states(folder):
    """Everything that stays, without what tells of time and of the flags that made the slices."""
    last = checkpoint.load(folder / "last.pt")
    last["config"] = {k: v for k, v in last["config"].items() if k not in ("max_minutes", "resume", "savepath")}
    best = checkpoint.load(folder / "model_best.pt")
    best["config"] = last["config"]
    best["metrics"] = {k: dict(v) for k, v in best["metrics"].items()}
    kept = {name: data for name, data in files(folder).items() if name == "margins.npy"}
    return checkpoint.digest([last, best]), kept, rows(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return states(folder)


def test_in_the_smallest_slices_it_is_the_same_run(tmp_path, whole, capsys, monkeypatch):
    """Each does one step or one batch of a check: 6 steps, and 4 + 3 batches after the fourth and the sixth."""
    folder, statuses = tmp_path / "run", []
    loaded = []
    before = train.Trainer.restore
    monkeypatch.setattr(train.Trainer, "restore", lambda *given: (loaded.append(1), before(*given))[1])
    while not statuses or statuses[-1] == 75:
        statuses.append(run(folder, "--max_minutes", "1e-9", "--resume"))
        out = capsys.readouterr().out
        if statuses[-1] == 75:
            said = re.search(r"^--max_minutes 1e-09: stopped after step \d, state saved; go on with: (.*)$", out, re.M)
            assert said and shlex.split(said[1])[2:] == [
                *RUN,
                "--savepath",
                str(folder),
                "--max_minutes",
                "1e-9",
                "--resume",
            ]
        assert len(statuses) < 40
    assert statuses[-1] == 0 and len(statuses) == 6 + 2 * (4 + 3) - 1 + 1, statuses
    assert states(folder) == whole


def test_without_the_flag_it_goes_on_to_the_end(tmp_path, whole):
    folder = tmp_path / "run"
    assert run(folder, "--max_minutes", "1e-9") == 75
    assert run(folder, "--resume") == 0
    assert states(folder) == whole


def test_a_run_that_is_done_in_time_ends_as_ever(tmp_path, whole):
    assert run(tmp_path / "run", "--max_minutes", "60") == 0
    assert states(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_command_ends_before_its_minutes_are_over(command, tmp_path):
    """Its start counts, and so does the save."""
    started = time.monotonic()
    argv = [*SMALL, "--max_steps", "100000", "--savepath", tmp_path / "run", "--max_minutes", "0.8"]
    status, out, err = command("train.py", *argv)
    assert status == 75, err
    assert time.monotonic() - started < 48
    step = int(re.search(r"stopped after step (\d+)", out)[1])
    assert step > 0 and checkpoint.load(tmp_path / "run" / "last.pt")["step"] == step
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["environment"]["memory_layout"] == "channels last"


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_minutes_are_above_zero(minutes, capsys, tmp_path):
    assert run(tmp_path / "run", "--max_minutes", minutes) == 2
    assert "--max_minutes" in capsys.readouterr().err
