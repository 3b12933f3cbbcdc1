"""Terminals, pipes, environments and folders as people have them: one line or no difference, never a traceback."""

import errno
import fcntl
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_on_pgd_attacks
import train
import utils
from command_lines import SMALL, fails
from errors import UserError
from processes.distributed import launched_size
from records.reading import read_settings
from support import ROOT

PRINTS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from errors import exits_on_user_error
@exits_on_user_error
def main():
    for _ in range(20000):
        print("ℓ∞ ≤ 0.3")
    return 0
sys.exit(main())
"""


def run(stdout, **more):
    found = subprocess.run(
        [sys.executable, "-c", PRINTS], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, **more
    )
    return found.returncode, found.stderr


def test_a_terminal_that_lacks_characters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert run(subprocess.DEVNULL, env=environment) == (0, "")


def test_a_reader_that_leaves_early():
    """`| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    status, said = run(writing)
    os.close(writing)
    assert status == 2 and said.count("\n") == 1 and "ended first" in said and "make room" not in said


def test_output_that_is_full_or_closed():
    with Path("/dev/full").open("w") as full:
        status, said = run(full)
    assert status == 2 and said.count("\n") == 1 and "make room" in said
    assert run(None, preexec_fn=lambda: os.close(1)) == (0, "")


@pytest.mark.parametrize("closed", [1, 2])
def test_training_where_an_output_is_closed(tmp_path, closed):
    """As `nohup … >&-` and services start programs."""
    argv = [*SMALL, "--max_steps", "1", "--train_size", "60", "--savepath", str(tmp_path / "run")]
    given = [sys.executable, str(ROOT / "train.py"), *argv]
    found = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, preexec_fn=lambda: os.close(closed))
    assert found.returncode == 0 and "Error" not in found.stdout + found.stderr
    assert (tmp_path / "run" / "model_best.pt").exists()


@pytest.mark.parametrize("program", ["train.py", *sorted(path.name for path in ROOT.glob("evaluate_on_*.py"))])
def test_help_from_an_isolated_python_in_ascii_and_without_torch(tmp_path, program):
    """Isolated, it leaves the program's folder off its path."""
    argv = [sys.executable, "-I", "-X", "importtime", ROOT / program, "--help"]
    environment = os.environ | {
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
    }  # -I heeds no PYTHONIOENCODING
    found = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0 and "Traceback" not in found.stderr
    usage, *_, example = found.stdout.strip().splitlines()
    if program != "evaluate_on_transfer.py":  # whose parser is its own
        assert usage.endswith("[--FLAG VALUE ...]") and example.startswith(f"example: python {program} ")
        assert not re.search(r"\| +torch$", found.stderr, re.MULTILINE)


def test_what_a_launcher_left_behind(monkeypatch, capsys, tmp_path):
    short = [*SMALL, "--max_steps", "1", "--train_size", "60", "--savepath", str(tmp_path / "run")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, train.main, short, "WORLD_SIZE=2 is set, RANK is not")
    monkeypatch.setenv("RANK", "1")
    fails(capsys, train.main, short, "WORLD_SIZE=2 is set, MASTER_ADDR is not")
    fails(capsys, train.main, [*short, "--seed", "x"], "--seed")
    for name, value in (
        ("MASTER_PORT", "x"),
        ("RANK", "x"),
        ("LOCAL_RANK", "x"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "²"),
    ):
        whole = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
        with monkeypatch.context() as patch:
            for own, other in (whole | {name: value}).items():
                patch.setenv(own, other)
            with pytest.raises(UserError, match=f"{name}={value} is no such number"):
                launched_size()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("LOCAL_RANK", "x")
    fails(capsys, train.main, [*short, "--seed", "x"], "--seed")
    assert train.main(short) == 0


def test_a_path_at_home(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags.toml").write_bytes(b"\xef\xbb\xbfmax_steps = 1\ntrain_size = 60\n")  # as some editors save it
    assert read_settings("flags.toml") == {"max_steps": 1, "train_size": 60}
    assert train.main([*SMALL, "--config=~/flags.toml", "--savepath=~/run"]) == 0
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model=~/none"], str(tmp_path / "none"))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


def test_two_processes_write_one_file_and_a_dead_one_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    for name, number in (("stray", dead.stdout.strip()), ("others", os.getppid())):
        (tmp_path / f".results.json.{platform.node()}-{number}.tmp").write_text(name)

    def second():
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", os.getppid)
            assert utils.temporary_name(path).read_text() == "others"

    utils.write_atomically(path, b"mine", second)
    assert path.read_bytes() == b"mine"
    assert [one.read_text() for one in tmp_path.glob(".*.tmp")] == ["others"]


def test_a_file_system_without_locks_and_syncs(tmp_path, monkeypatch, capsys):
    def cannot(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    for module, name in ((fcntl, "flock"), (os, "fsync"), (os, "link")):
        monkeypatch.setattr(module, name, cannot)
    run = tmp_path / "run"
    assert train.main([*SMALL, "--max_steps", "2", "--train_size", "60", "--savepath", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.count("no locks here") == 1 and (run / "last.prev.pt").exists() and (run / "model_best.pt").exists()


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.2, "0.2"), (0.03, "0.03"), (0.1234567, "0.12346"), (2.0, "2")]
)
def test_a_radius_as_it_was_typed(eps, text):
    assert utils.radius_text(eps) == text
