"""Bars: a line now and then in a log, messages whole, the forecast said once; commands name the interpreter in use."""

import io
import shlex
import subprocess
import sys
import time

import pytest

from records import progress
from records.commands import ROOT, command, interpreter
from records.progress import Progress, Teller, duration, tell


class Terminal(io.StringIO):
    def isatty(self):
        return True


def log(monkeypatch):
    """Standard error, from here on, is a file; pytest sets its own anew after the fixtures."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return sys.stderr


def terminal(monkeypatch):
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(sys, "stdout", file)
    return file


def test_a_log_gets_a_line_now_and_then_and_not_one_a_step(monkeypatch):
    shown = log(monkeypatch)
    monkeypatch.setattr(progress, "LOG_EVERY", 0.1)
    start = time.monotonic()
    with Progress(400, "step") as bar:
        for _ in range(400):
            bar.update()
            time.sleep(0.001)
    lines = shown.getvalue().splitlines()
    assert "\r" not in shown.getvalue() and "" not in lines
    assert 2 <= len(lines) <= (time.monotonic() - start) / 0.1 + 1
    assert lines[-1].startswith("400 of 400 steps")


def test_a_piece_that_takes_long_is_seen_to_move(monkeypatch):
    shown = log(monkeypatch)
    monkeypatch.setattr(progress, "LOG_EVERY", 0.1)
    start = time.monotonic()
    with Progress(1, "image") as bar:
        for number in range(400):
            bar.moving(f"{number} passes")
            time.sleep(0.001)
    lines = shown.getvalue().splitlines()
    assert 2 <= len(lines) <= (time.monotonic() - start) / 0.1 + 1
    assert all(line.startswith("0 of 1 images, ") and line.endswith(" passes") for line in lines)


def test_pieces_that_fall_away_are_not_waited_for(capsys, monkeypatch):
    log(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "attack", warm=True) as bar:
        bar.fewer(400)
        now[0] = 60.0
        bar.update(60)
    assert capsys.readouterr().out.splitlines() == ["about 9 min for the 540 attacks left"]


def test_a_teller_says_what_it_should(capsys):
    for speaks, quiet, heard in ((True, False, ["a", "b"]), (True, True, ["a"]), (False, False, [])):
        teller = Teller(speaks, quiet)
        teller.say("a"), teller.note("b")
        assert capsys.readouterr().out.splitlines() == heard
        with teller.bar(1, "image") as bar:
            assert (bar.bar is not None) == (speaks and not quiet)


def test_a_short_piece_of_work_leaves_no_line_in_a_log(monkeypatch):
    shown = log(monkeypatch)
    with Progress(3, "step") as bar:
        bar.update(3)
    assert shown.getvalue() == ""


def test_a_bar_swallows_no_message(monkeypatch):
    file = terminal(monkeypatch)
    with Progress(100, "image") as bar:
        for number in range(100):
            bar.update()
            if number % 10 == 0:
                tell(f"message {number}")
    shown = [line.rpartition("\r")[2] for line in file.getvalue().split("\n")]
    assert [line for line in shown if line.startswith("message")] == [f"message {n}" for n in range(0, 100, 10)]


@pytest.mark.parametrize("file", [log, terminal])
def test_quiet_shows_nothing(file, monkeypatch):
    shown = file(monkeypatch)
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with Progress(2, "step", quiet=True) as bar:
        bar.note("loss 1")
        bar.update(2)
    assert shown.getvalue() == "" and bar.done == 2


def test_the_note_is_shown_with_the_next_update(monkeypatch):
    shown = terminal(monkeypatch)
    with Progress(2, "step") as bar:
        bar.note("loss 0.25")
        bar.bar.mininterval = 0
        bar.update()
    assert "loss 0.25" in shown.getvalue()


def test_how_long_it_will_take_is_said_once_from_what_was_measured(capsys, monkeypatch):
    log(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "step", done=100, beside="checks not counted") as bar:
        for _ in range(20):
            now[0] += 1 if bar.done > 100 else 60  # the first step warms up
            bar.update()
    assert capsys.readouterr().out.splitlines() == ["about 15 min for the 894 steps left, checks not counted"]


def test_short_work_is_not_forecast(capsys, monkeypatch):
    log(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(20, "step") as bar:
        for _ in range(20):
            now[0] += 1
            bar.update()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "1 s"), (45.4, "45 s"), (90, "2 min"), (5400, "1 h 30 min"), (7230, "2 h 00 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_command_that_is_shown_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("train.py", "--help", "--savepath", "a folder")
    assert shlex.split(shown)[1:] == [shlex.split(shown)[1], "--help", "--savepath", "a folder"]
    done = subprocess.run(shown, shell=True, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout


def test_the_interpreter_is_the_one_in_use(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(ROOT)
    name = interpreter()
    assert "python" in name and name != "python"
    shown = subprocess.run([name, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == sys.prefix
    (tmp_path / "python").symlink_to("/bin/false")
    assert interpreter() == name


def test_several_processes_are_started_by_torchrun():
    assert shlex.split(command("train.py", processes=2))[1:5] == [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
    ]
