"""The long fault loops: kills at random moments, damage at random places, processes of torchrun that die; with figures.

`python benchmarks/soak.py [--kills 50] [--runs 20] [--flips 2000] [--seed 0]`; `bash scripts/soak.sh` prepares .venv first. A few
processes at a time are forked from one that has torch loaded. Exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import numpy as np
import torch
from tqdm import tqdm

import ranks
from errors import UserError
from records import checkpoint

FLAGS = shlex.split(
    "--dataset digits --norm Linf --hinge_maxeps 0.3 --device cpu --train_size 200 --val_size 30 --test_size 20 --nb_iter 3 --eval_batch_size 10 --disp_interval 2 --max_steps 24 --save_interval 0.0001 --resume"
)


def content(folder: Path) -> list:
    """What a finished run leaves, but for its speed."""
    state, best = checkpoint.load(folder / "last.pt"), checkpoint.load(folder / "model_best.pt")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]
    parts = {key: checkpoint.digest(value) for key, value in state.items() if key != "config"}
    return [parts, checkpoint.digest(best["model"]), rows, np.load(folder / "margins.npy").tobytes()]


def kill_a_saving_loop(folder: Path, kills: int, draws: random.Random) -> dict:
    """SIGKILL at a random moment of a process that does nothing but save; the state is whole every time."""
    lost, saved = 0, 0
    for _ in tqdm(range(kills), desc="kills of a saving loop", unit="kill"):
        process = ranks.Started(ranks.save_for_ever, folder)
        process.wait_for(lambda process=process: "saved" in process.text)
        time.sleep(draws.uniform(0, 0.3))
        process.process.kill()
        process.join()
        try:
            now = checkpoint.load(folder / "last.pt")["number"]
            lost += now < max(saved, int(process.text.split("\n")[-2].split()[-1]))  # the last that it said was saved
            saved = now
        except UserError:
            lost += 1
    return {"kills": kills, "saves": saved, "lost": lost}


def kill_runs(folder: Path, runs: int, draws: random.Random) -> dict:
    """Whole runs, each killed four times at random moments; every result equals the undisturbed one."""
    whole = folder / "whole"
    began = time.monotonic()
    assert ranks.Started(ranks.train_alone, [*FLAGS, "--savepath", whole]).join() == 0
    seconds, expected = time.monotonic() - began, content(whole)
    kills, different, stray = 0, 0, 0
    for number in tqdm(range(runs), desc="runs killed four times", unit="run"):
        run = folder / str(number)
        for attempt in range(5):
            process = ranks.Started(ranks.train_alone, [*FLAGS, "--savepath", run])
            process.process.join(draws.uniform(0, seconds / 2) if attempt < 4 else None)
            if process.process.is_alive():
                process.process.kill()
                kills += 1
            process.join()
        different += content(run) != expected
        stray += len(list(run.glob(".*.tmp")))
    return {"runs": runs, "kills": kills, "different": different, "stray_files": stray}


def damage(folder: Path, times: int, draws: random.Random) -> dict:
    """Truncations and flipped bytes at random places of a state; none is taken for whole."""
    raw = (folder / "whole" / "last.pt").read_bytes()
    whole = checkpoint.digest(checkpoint.load(folder / "whole" / "last.pt"))
    file, unseen, harmless = folder / "damaged.pt", 0, 0
    for number in tqdm(range(times), desc="damaged states", unit="file"):
        changed = bytearray(raw)
        if number % 2:
            changed[draws.randrange(len(raw))] ^= 1 << draws.randrange(8)
        else:
            del changed[draws.randrange(len(raw)) :]
        file.write_bytes(changed)
        try:
            same = checkpoint.digest(checkpoint.load(file)) == whole
            unseen, harmless = unseen + (not same), harmless + same  # a byte of the archive's padding means nothing
        except UserError:
            pass
    return {"damages": times, "taken_for_whole": unseen, "without_effect": harmless}


def torchrun(folder: Path, place: str, kind: str, rank: int, restarts: int) -> dict:
    """One process of two dies or raises; how long until all have ended, and how."""
    run = folder / f"{place}-{kind}-{rank}-{restarts}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--max-restarts={restarts}",
        f"--master-port={ranks.free_port()}",
        str(ROOT / "tests" / "faulty_train.py"),
        place,
        str(rank),
        kind,
        "3",
        *FLAGS,
        "--savepath",
        str(run),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    at = [line for line in done.stdout.splitlines() if line.startswith("fault at ")]
    cause = "injected" in done.stderr if kind == "raise" else "exitcode: -9" in done.stderr or "SIGKILL" in done.stderr
    state = checkpoint.load(run / "last.pt")["step"]
    return {
        "place": place,
        "kind": kind,
        "rank": rank,
        "max_restarts": restarts,
        "status": done.returncode,
        "seconds_to_the_end": round(time.time() - float(at[0].split()[-1]), 1) if at else None,
        "cause_named": cause,
        "last_step": state,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 50), ("runs", 20), ("flips", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    draws = random.Random(flags.seed)
    found: dict = {
        "command": "python benchmarks/soak.py " + " ".join(sys.argv[1:]),
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "saves").mkdir()
        found["killed while saving"] = kill_a_saving_loop(folder / "saves", flags.kills, draws)
        found["killed while training"] = kill_runs(folder, flags.runs, draws)
        found["damaged"] = damage(folder, flags.flips, draws)
        faults = [
            (place, kind, rank, 0)
            for place in ("forward", "attack", "save", "check")
            for kind in ("kill", "raise")
            for rank in (0, 1)
            if place != "save" or rank == 0
        ]
        faults += [(place, "kill", 0, 1) for place in ("forward", "attack", "save", "check")]
        found["torchrun"] = [torchrun(folder, *fault) for fault in tqdm(faults, desc="torchrun", unit="run")]
    found["lost"] = (
        found["killed while saving"]["lost"]
        + found["killed while training"]["different"]
        + found["killed while training"]["stray_files"]
        + found["damaged"]["taken_for_whole"]
        + sum(
            (fault["status"] == 0) != (fault["max_restarts"] > 0)
            or (fault["status"] != 0 and not fault["cause_named"])
            or (fault["status"] == 0 and fault["last_step"] != 24)
            or fault["seconds_to_the_end"] is None
            or (fault["status"] != 0 and fault["seconds_to_the_end"] > 60)
            for fault in found["torchrun"]
        )
    )
    print(json.dumps(found, indent=1))
    return int(found["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
