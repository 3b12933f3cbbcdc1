"""scripts/first_gpu_hour.sh as it runs on a CPU with digits, and what it keeps."""

import json
import os
import subprocess

import pytest

from flags import parse_train
from presets import PUBLISHED_MAXEPS
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


def listed(which, **variables):
    """(name, minutes of training, of the attack, config) of each run of a list."""
    text = SCRIPT.read_text()
    code = text[text.index("# CIFAR-10 by the fast recipe") : text.index("# `limited")] + "\nruns"
    environment = {**os.environ, "LIST": which, **variables}
    done = subprocess.run(["bash", "-uc", code], env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(name, int(training), int(attack), parse_train(flags)[0]) for name, training, attack, *flags in lines]


@pytest.mark.parametrize("jpeg", ["", "/pictures"])
def test_lists(jpeg):
    """MMA-32 is the first of the hour; with the list for a day all twelve of the paper's rows, PGD-8 and TRADES-8 are there."""
    hour, day = listed("hour", JPEG=jpeg), listed("day", JPEG=jpeg)
    images = "cifar10jpeg" if jpeg else "cifar10"
    assert [name for name, *_ in hour] == [
        f"{images}-Linf-MMA-32-sd0-fast",
        f"{images}-L2-MMA-1.0-sd0-fast",
        "mnist-Linf-MMA-0.45-sd0",
    ]
    for name, training, attack, config in hour + day:
        assert name == config.run_name.replace("imagefolder", "cifar10jpeg")
        assert 0 < training <= 15 and 0 < attack <= 10 and config.device == "cuda"
        if name.endswith("fast"):
            assert config.network == "wrn28_4" and config.recipe == "fast"
            assert (config.dataset, config.data_root) == (("imagefolder", jpeg) if jpeg else ("cifar10", "data"))
    rows = {(norm, method, d) for norm, radii in PAPER.items() for method in ("mma", "omma") for d in radii}
    cifar = [config for _, *_, config in hour + day if config.recipe == "fast"]
    margins = [(config.norm, config.method, config.hinge_maxeps) for config in cifar if config.enlarges_margins]
    assert len(margins) == 12 and set(margins) == rows
    fixed = [(config.method, config.train_eps) for config in cifar if not config.enlarges_margins]
    assert fixed == [("pgd", 8 / 255), ("trades", 8 / 255)] and len(cifar) == 14


def test_an_unknown_list_is_refused(tmp_path):
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path / "out"],
        env={**os.environ, "LIST": "days"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr == "error: LIST=days: there are the lists hour and day\n"


PAPER = {norm: PUBLISHED_MAXEPS["cifar10", norm] for norm in ("Linf", "L2")}


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
    assert steps == [f"{part}: status 0" for part in ("tests", f"{name}.train", f"{name}.attack", "benchmark")]
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
