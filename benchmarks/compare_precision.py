"""Does bfloat16 change what training gives? MMA on the digits for several seeds, in float32 and with bfloat16 inside PGD.

python benchmarks/compare_precision.py [--seeds 5] [--steps 500]

Every network is attacked in float32. Prints mean and standard deviation over seeds; run folders lie in runs/precision.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate_on_pgd_attacks
import train
from check import check_split
from evaluations.flags import parse_pgd
from evaluations.subject import load_subject

RADII = (0.1, 0.2)
COLUMNS = ["clean", *(f"robust at {eps:g}" for eps in RADII), "mean margin"]


def result(precision: str, seed: int, steps: int) -> list[float]:
    """Train (or take what is there), attack; one value for each of `COLUMNS`."""
    folder = ROOT / "runs" / "precision" / f"digits-Linf-MMA-0.3-sd{seed}-{steps}steps-{precision}"
    common = ["--device", "cpu"]
    attack = [*common, "--model", str(folder), "--nb_iter", "40", "--nb_restart", "4", "--batch_size", "100"]
    commands = (
        (
            train,
            [
                *shlex.split("--dataset digits --norm Linf --hinge_maxeps 0.3"),
                "--seed",
                str(seed),
                "--max_steps",
                str(steps),
                "--precision",
                precision,
                "--savepath",
                str(folder),
                "--resume",
                *common,
            ],
        ),
        (evaluate_on_pgd_attacks, [*attack, "--resume", "--eps", *map(str, RADII)]),
    )
    for program, flags in commands:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            status = program.main(flags)
        if status:
            sys.exit(said.getvalue())
    subject = load_subject(parse_pgd(attack), torch.device("cpu"))
    margins = check_split(subject.model, subject.test, subject.training, 1, 0).margins
    found = json.loads(subject.result_file("pgd").read_text())
    return [100 * found["clean_acc"], *(100 * row["robust_acc"] for row in found["results"]), float(margins.mean())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    flags = parser.parse_args()
    runs = [(precision, seed) for seed in range(flags.seeds) for precision in ("fp32", "bf16")]
    found: dict[str, list[list[float]]] = {"fp32": [], "bf16": []}
    for precision, seed in tqdm(runs, unit="run"):
        found[precision].append(result(precision, seed, flags.steps))
    print(f"digits, Linf, MMA 0.3, {flags.steps} steps, {flags.seeds} seeds: mean (standard deviation)")
    print(f"{'':8}" + "".join(f"{name:>20}" for name in COLUMNS))
    for precision, rows in found.items():
        cells = [f"{values.mean():.4g} ({values.std(ddof=1):.2g})" for values in np.array(rows).T]
        print(f"{precision:8}" + "".join(f"{cell:>20}" for cell in cells))
    differences = np.array(found["bf16"]) - np.array(found["fp32"])
    cells = [f"{values.mean():+.3g} ({values.std(ddof=1):.2g})" for values in differences.T]
    print(f"{'change':8}" + "".join(f"{cell:>20}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
