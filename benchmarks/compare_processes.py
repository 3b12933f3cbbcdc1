"""What several processes compute against one: `python benchmarks/compare_processes.py` prints a Markdown table.

Digits; LeNet5 and a small WideResNet (10-1, BatchNorm over all processes); gloo. From networks that have most examples right:
an MMA step on each of some batches in float64 and in float32; then 50 steps from the beginning, and the PGD evaluation of one network. Uses the tests'
functions: the development requirements must be installed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "processes")]

import test_distributed as shared
import torch

import ranks
from errors import exits_on_user_error
from flags import Parser
from ranks import in_processes
from records import checkpoint

BATCHES = 8
BOUND = 2 * 1.05 * 0.3 / 2**10  # of radii: two halvings of the bisection
NETWORKS = {"lenet5": "lenet5", "wrn": shared.WRN}


def first_batches(folder: Path, name: str, dtype: torch.dtype) -> list[list[str]]:
    """Rows: how far gradients and radii of two and three processes are from one's."""
    plain, *several = (in_processes(size, shared.steps_here, folder, name, dtype, BATCHES)[0] for size in (1, 2, 3))
    rows = []
    for size, found in zip((2, 3), several, strict=True):
        gradient = [
            float((ours - theirs).norm() / theirs.norm()) for (ours, _), (theirs, _) in zip(found, plain, strict=True)
        ]
        eps = torch.cat([(ours - theirs).abs() for (_, ours), (_, theirs) in zip(found, plain, strict=True)])
        rows.append(
            [
                name,
                f"a step on each of {BATCHES} batches, {str(dtype).removeprefix('torch.')}",
                str(size),
                f"gradient: median {median(gradient):.1e}, largest {max(gradient):.1e} (relative); "
                f"{int((eps > BOUND).sum())} of {len(eps)} ε farther than 2 ε_max/2^K",
            ]
        )
    return rows


def fifty_steps(folder: Path, name: str) -> list[list[str]]:
    """Rows: mean radius, mean validation margin and weights after 50 steps."""
    states = {size: shared.run(size, folder / f"{name}-{size}", "--network", NETWORKS[name]) for size in (1, 2, 3)}
    rows = []
    for size in (2, 3):
        mean, plain = (float(states[n]["eps"].double().mean()) for n in (size, 1))
        rows.append(
            [
                name,
                "50 steps",
                str(size),
                f"mean ε {mean:.5f} instead of {plain:.5f} ({mean / plain - 1:+.2%}), best mean "
                f"margin {states[size]['best_margin']:.4f} instead of {states[1]['best_margin']:.4f}",
            ]
        )
    return rows


def evaluation(folder: Path, name: str) -> list[list[str]]:
    """Rows: flags of the PGD evaluation that differ."""
    flags = {}
    for size in (1, 2, 3):
        copy = shutil.copytree(folder / name, folder / f"{name}-eval-{size}")
        argv = [
            "--model",
            str(copy),
            "--network",
            NETWORKS[name],
            *shlex.split("--device cpu --nb_iter 20 --nb_restart 4 --batch_size 40 --eps 0.05 0.1 0.2"),
        ]
        assert in_processes(size, ranks.evaluate_quietly, argv)[0][0] == 0
        results = json.loads((copy / "eval_pgd_Linf.json").read_text())["results"]
        flags[size] = "".join(row["flags"] for row in results)
    return [
        [
            name,
            "PGD evaluation, 397 images, 3 ε",
            str(size),
            f"{sum(a != b for a, b in zip(flags[size], flags[1], strict=True))} of {len(flags[1])} flags differ",
        ]
        for size in (2, 3)
    ]


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print. Returns the exit status."""
    Parser(description="What several processes compute against one.", allow_abbrev=False).parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, network in NETWORKS.items():
            flags = [
                *shlex.split("--dataset digits --norm Linf --device cpu --method std"),
                "--network",
                network,
                *shlex.split("--max_steps 120 --lr 2e-3"),
                "--savepath",
                str(folder / name),
            ]
            assert in_processes(1, ranks.train, flags)[0][0] == 0
            right = checkpoint.load(folder / name / "model_best.pt")["metrics"]["val"]["clean_acc"]
            print(f"{name}: {right:.1%} of the validation images right")
        print("\n| network | what | processes | against one process |\n| --- | --- | --- | --- |")
        for name in NETWORKS:
            for row in (
                *first_batches(folder, name, torch.float64),
                *first_batches(folder, name, torch.float32),
                *fifty_steps(folder, name),
                *evaluation(folder, name),
            ):
                print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
