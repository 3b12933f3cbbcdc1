"""What a command shows: messages whole beside a bar, nothing when quiet; how long training takes; commands that run."""

import io
import shlex
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from config import PRESETS
from records.commands import ROOT, command, interpreter
from records.progress import Teller, duration, tell
from records.recorder import RunRecorder
from records.run_folder import RunFolder


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Full(io.StringIO):
    """A log file on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("speaks", "quiet", "heard"), [(True, False, "ab"), (True, True, "a"), (False, False, "")])
def test_a_teller_says_what_it_should(capsys, monkeypatch, speaks, quiet, heard):
    shown = Terminal()
    teller = Teller(speaks, quiet)
    teller.say("a"), teller.note("b")
    assert "".join(capsys.readouterr().out.split()) == heard
    monkeypatch.setattr(sys, "stderr", shown)
    with teller.bar(3, "image", done=1) as bar:
        bar.update(2)
    assert ("3/3" in shown.getvalue()) == (heard == "ab")


def test_a_bar_swallows_no_message(monkeypatch):
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(sys, "stdout", file)
    with Teller().bar(100, "image") as bar:
        for number in range(100):
            bar.update()
            if number % 10 == 0:
                tell(f"message {number}")
    shown = [line.rpartition("\r")[2] for line in file.getvalue().split("\n")]
    assert [line for line in shown if line.startswith("message")] == [f"message {n}" for n in range(0, 100, 10)]


def test_a_log_is_not_written_into_at_each_step_and_may_be_on_a_full_disk(tmp_path, monkeypatch):
    log = io.StringIO()
    for file in (log, Full()):
        monkeypatch.setattr(sys, "stderr", file)
        run = RunRecorder(RunFolder(tmp_path), replace(PRESETS["digits", "Linf"], max_steps=200), 0, 200)
        with run:
            for _ in range(200):
                run.step()
                time.sleep(0.001)
    assert log.getvalue().count("\r") <= 4


def test_how_long_training_takes_is_said_once_as_if_all_images_were_right(tmp_path, capsys):
    config = replace(PRESETS["digits", "Linf"], max_steps=1000, nb_iter=10, num_search_steps=10, batch_size=50)
    assert config.passes_an_image == 23
    row = {"kind": "train", "clean_loss": 1.0, "clean_acc": 0.5, "mean_eps": 0.1}
    run = RunRecorder(RunFolder(tmp_path), config, 0, 200)
    with run:
        for step in (100, 200, 300, 400):  # of each 100 steps' images none is right: two passes an image, 10 s
            run.rows([{**row, "step": step, "passes": 100 * step, "steps_per_second": 10.0}])
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "at most about 15 min for the steps left, checks not counted"  # 800 * 50 * 23 / 1000 a second


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "1 s"), (45.4, "45 s"), (90, "2 min"), (5400, "1 h 30 min"), (7230, "2 h 00 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_command_that_is_shown_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("train.py", "--help", "--savepath", "a folder")
    assert shlex.split(shown)[1:] == [shlex.split(shown)[1], "--help", "--savepath", "a folder"]
    assert "usage" in subprocess.run(shown, shell=True, capture_output=True, text=True, check=True).stdout
    torchrun = "-m torch.distributed.run --nproc_per_node 2"
    assert torchrun in command("train.py", processes=2)


def test_the_interpreter_is_the_one_in_use(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    name = interpreter()
    assert "python" in name and name != "python"
    shown = subprocess.run([name, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == sys.prefix
    (tmp_path / "python").symlink_to("/bin/false")
    assert interpreter() == name
