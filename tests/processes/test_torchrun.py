"""torchrun for real: a process that dies or raises, a restart, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import ranks
from command_lines import SMALL, rows
from ranks import Started, in_processes
from records import checkpoint
from support import ROOT

pytestmark = pytest.mark.slow  # processes of their own, each of which imports torch

FLAGS = [*SMALL, "--eval_batch_size", "10"]


def torchrun(folder, *fault, restarts=0, steps=16, processes=2):
    launch = f"-m torch.distributed.run --nproc_per_node {processes} --max-restarts {restarts} --master-port"
    script = ["tests/support/faulty_train.py", *map(str, fault)] if fault else ["train.py"]
    flags = [*FLAGS, "--max_steps", str(steps), "--savepath", str(folder)]
    return subprocess.Popen(
        [sys.executable, *launch.split(), str(ranks.free_port()), *script, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process, timeout=150):
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def alive(process):
    """Processes left of torchrun's."""
    return subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()


def test_a_process_killed_in_an_attack_is_started_again_and_the_run_goes_on(tmp_path):
    process = torchrun(tmp_path / "run", "attack", 1, "kill", 6, restarts=1)
    out = finish(process)
    assert process.returncode == 0, out
    assert "exitcode: -9" in out and re.search(r"going on from step [1-9]", out) and "finished" in out
    steps = [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert steps == list(range(2, 17, 2)), "no row doubled or missing"


def test_when_training_returns_no_thread_of_gloo_is_left_that_could_abort_the_process_as_it_ends(tmp_path):
    left = in_processes(2, ranks.threads_after_training, [*FLAGS, "--max_steps", "2", "--savepath", tmp_path / "run"])
    assert all(names and not [name for name in names if "gloo" in name] for names in left), left


def test_a_process_that_raises_in_a_check_ends_all_with_its_cause(tmp_path):
    process = torchrun(tmp_path / "run", "check", 1, "raise", 1)
    out = finish(process)
    assert process.returncode != 0 and not alive(process)
    assert "Root Cause" in out and "rank      : 1" in out and "injected in check" in out


def test_the_first_process_killed_in_a_save_ends_all_and_leaves_the_state_whole(tmp_path):
    process = torchrun(tmp_path / "run", "save", 0, "kill", 4)
    out = finish(process)
    assert process.returncode != 0 and not alive(process), out
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 4


def test_a_folder_that_holds_another_run_is_not_gone_on_with_by_a_restart(tmp_path):
    folder = tmp_path / "run"
    assert Started(ranks.train_alone, [*FLAGS, "--max_steps", "2", "--savepath", folder]).join() == 0
    before = (folder / "last.pt").read_bytes()
    process = torchrun(folder, restarts=1, processes=1)
    out = finish(process)
    assert process.returncode != 0 and "holds a run already" in out and "going on" not in out
    assert (folder / "last.pt").read_bytes() == before


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_stops_all_after_a_step_and_the_run_goes_on_alone(tmp_path, processes):
    folder = tmp_path / "run"
    process = torchrun(folder, steps=3000, processes=processes)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or '"step": 8' not in (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the launcher and every process
    began = time.monotonic()
    out = finish(process)
    assert process.returncode != 0 and not alive(process)
    assert time.monotonic() - began < 60
    assert "Exception ignored" not in out and "state saved; go on with: " in out and "--resume" in out
    assert ("torch.distributed.run --nproc_per_node 2" in out) == (processes == 2)
    step = checkpoint.load(folder / "last.pt")["step"]
    assert 8 <= step < 3000
    more = ["--max_steps", "3000", "--savepath", folder, "--resume"]
    alone = Started(ranks.train_alone, [*FLAGS, *more])
    alone.wait_for(lambda: f"going on from step {step}" in alone.text and ", val: " in alone.text)
    alone.process.terminate()
    assert alone.join() == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_if_no_step_ends_every_process_exits_without_saving(tmp_path, number):
    """One process hangs for good, the other waits for it in a collective."""
    processes = ranks.started_together(
        2, ranks.train_hanging, [*FLAGS, "--max_steps", "90", "--savepath", tmp_path / "run"], 2.0
    )
    for process in processes:
        process.wait_for(lambda process=process: "in step 3" in process.text)
    for process in processes:
        os.kill(process.process.pid, number)
    assert [process.join(30) for process in processes] == [128 + number] * 2
    assert all("exit without saving" in process.text for process in processes)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 0
