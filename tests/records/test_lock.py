"""Two runs in one folder: real second processes, a killed one, and locks that another host left."""

import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

import train
from command_lines import SMALL, fails
from errors import UserError
from records import lock
from records.lock import NAME, FolderLock
from support import ROOT

HOLD = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from records.lock import FolderLock; "
    "FolderLock(Path(sys.argv[2])).acquire(); print('locked', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def left_by(folder, host, age):
    """A lock file as another program left it `age` seconds ago."""
    path = folder / NAME
    path.write_text(json.dumps({"pid": 4711, "host": host}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_process_is_refused_and_a_killed_one_followed_at_once(tmp_path, other, capsys):
    said = (f"process {other.pid} on {platform.node()}", "another process trains here", "choose another folder")
    fails(capsys, train.main, [*SMALL, "--max_steps", "1", "--savepath", tmp_path], *said)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert json.loads((tmp_path / NAME).read_text()) == {"pid": other.pid, "host": platform.node()}, "not written over"
    other.send_signal(signal.SIGKILL)
    other.wait()
    own = FolderLock(tmp_path)
    own.acquire()
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    own.release()


def test_a_lock_of_another_host_counts_until_it_is_stale(tmp_path, capsys):
    path = left_by(tmp_path, "elsewhere", 100)
    argv = [*SMALL, "--max_steps", "1", "--train_size", "60", "--savepath", str(tmp_path)]
    fails(capsys, train.main, argv, "process 4711 on elsewhere", "100 s ago", "200 s", "remove", path)
    assert json.loads(path.read_text())["pid"] == 4711 and [p.name for p in tmp_path.iterdir()] == [NAME]
    left_by(tmp_path, "elsewhere", 301)
    assert train.main(argv) == 0
    assert path.read_text() == "", "released at the end: the next host need not wait"


@pytest.mark.parametrize("wrong", [-86400, 86400])
def test_the_clock_of_a_host_does_not_count(tmp_path, monkeypatch, wrong):
    """Its heartbeat and now are both stamped by the file system."""
    right = time.time
    left_by(tmp_path, "elsewhere", 100)
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    with pytest.raises(UserError, match=r"heartbeat 10\d s ago"):
        FolderLock(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    monkeypatch.undo()
    left_by(tmp_path, "elsewhere", 301)
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    own = FolderLock(tmp_path)
    own.acquire()
    own.release()


@pytest.mark.parametrize(
    "text", ["", "process 12 on elsewhere", "[]", '{"pid": "x"}', '{"pid": 1e999, "host": 1}', "[" * 5000]
)
def test_a_lock_file_that_names_nobody_is_taken(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    own = FolderLock(tmp_path)
    own.acquire()
    own.release()


def test_a_lock_of_this_host_whose_process_is_gone_is_taken(tmp_path):
    left_by(tmp_path, platform.node(), 1)
    own = FolderLock(tmp_path)
    own.acquire()
    own.release()


def test_the_lock_is_given_back_after_an_error_too(tmp_path, capsys):
    fails(capsys, train.main, [*SMALL, "--val_size", "5000", "--savepath", tmp_path], "--val_size 5000")
    assert (tmp_path / NAME).read_text() == ""


def test_the_heartbeat_renews_the_file_until_the_release(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    own, path = FolderLock(tmp_path), tmp_path / NAME
    own.acquire()
    own.acquire()
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime < time.time() - 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > time.time() - 60
    own.release()
    own.release()
    time.sleep(0.1)
    os.utime(path, (1, 1))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1
    second = FolderLock(tmp_path)
    second.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path).acquire()
    second.release()
