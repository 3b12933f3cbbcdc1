"""scripts/first_gpu_hour.sh as it runs on a CPU with digits, and what it keeps."""

import json
import os
import subprocess

import pytest

from support import ROOT

SCRIPT = ROOT / "scripts" / "first_gpu_hour.sh"


def functions():
    """The script's functions without its work."""
    text = SCRIPT.read_text()
    start, end = text.index("# `limited"), text.index('if [ -n "${DRY:-}" ]; then\n  device')
    return text[start:end]


def sh(code, folder, **variables):
    given = {"out": folder / "out", "budget": 64_000_000, "piece": 15_000_000, "failed": 0, **variables}
    head = "\n".join(f"{name}={value}" for name, value in given.items())
    (folder / "out").mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", "-c", f"set -u\n{head}\n{functions()}\n{code}"], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run_keeps_figures_weights_and_logs(tmp_path):
    environment = {**os.environ, "DRY": "1", "WORK": str(tmp_path / "work"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert done.returncode == 0, done.stdout + done.stderr
    name = "digits-Linf-MMA-0.3-sd0"
    wanted = [
        "config.json",
        "metrics.jsonl",
        "margins.npy",
        "model_best.pt",
        "eval_pgd_Linf.json",
        "train.log",
        "attack.log",
    ]
    assert kept == {"benchmark.json", "benchmark.log", "tests.log", "steps.txt", *(f"{name}.{part}" for part in wanted)}
    steps = [line.split(",")[0] for line in (tmp_path / "out" / "steps.txt").read_text().splitlines()]
    assert steps == [f"{part}: status 0" for part in ("tests", "benchmark", f"{name}.train", f"{name}.attack")]
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]


def test_what_is_kept_comes_in_pieces_below_a_budget(tmp_path):
    (tmp_path / "weights.pt").write_bytes(os.urandom(250))
    keep = f"keep {tmp_path}/weights.pt first; keep {tmp_path}/weights.pt second; keep {tmp_path}/nothing third"
    done = sh(keep, tmp_path, budget=400, piece=100)
    pieces = sorted((tmp_path / "out").glob("first*"))
    assert [path.stat().st_size for path in pieces] == [100, 100, 50]
    assert b"".join(path.read_bytes() for path in pieces) == (tmp_path / "weights.pt").read_bytes()
    assert "second: left out, 250 bytes" in done.stdout and not list((tmp_path / "out").glob("second*"))


@pytest.mark.parametrize(("command", "failed"), [("true", 0), ("bash -c 'exit 75'", 0), ("bash -c 'exit 3'", 1)])
def test_a_step_that_fails_does_not_end_the_hour_but_is_told(tmp_path, command, failed):
    done = sh(f"limited 1 step {command}; limited 1 next echo on; exit $failed", tmp_path)
    assert done.returncode == failed
    assert (tmp_path / "out" / "next.log").read_text() == "on\n" and "step: status" in done.stdout
