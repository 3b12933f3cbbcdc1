"""Train networks on scikit-learn's digits, standard, with PGD at three eps and with MMA, two seeds each; attack them, show the
difference."""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate_on_pgd_attacks
import train
from errors import exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import margins
from evaluations.results import quoted
from evaluations.subject import load_subject
from records.commands import command
from reports import make_report, plots
from reports.runs import read_runs, spread

OUT = ROOT / "runs" / "quickstart"
MAX_EPS = 1.0  # nothing in [0, 1] is farther
RADII = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
NETWORKS = {  # name in the table -> run folders by seed, flags of train.py
    "standard training": ("digits-Linf-STD-sd{}", "--method std"),
    **{f"PGD at eps {e}": (f"digits-Linf-PGD-{e}-sd{{}}", f"--method pgd --train_eps {e}") for e in (0.1, 0.2, 0.3)},
    "MMA, d_max 0.3": ("digits-Linf-MMA-0.3-sd{}", "--hinge_maxeps 0.3"),
}
SEEDS = (0, 1)
TRAINING = "--dataset digits --norm Linf --recipe fast --precision fp32 --check_interval 4 --device cpu --quiet"
ATTACK = ["--device", "cpu", "--nb_iter", "40", "--nb_restart", "4", "--quiet", "--eps", *map(str, RADII)]


def train_and_attack(folder: Path, flags: str) -> list[float]:
    """Train (or go on, or skip), attack, measure margins on the test set: clean accuracy, robust accuracy by eps, median
    margin; accuracies in per cent."""
    status = train.main([*TRAINING.split(), *flags.split(), "--savepath", str(folder), "--resume"])
    status = status or evaluate_on_pgd_attacks.main(["--model", str(folder), *ATTACK])
    if status:
        sys.exit(status)
    subject = load_subject(EvaluationFlags(model=str(folder)), torch.device("cpu"))
    rows = [row for row in quoted(subject.rows("pgd")) if row["eps"] in RADII]
    x, y, _ = subject.test.everything()
    measure = margins("Linf", MAX_EPS, steps=10, projections=1, targets=9, batch_size=200)
    accuracies = [rows[0]["clean_acc"], *(row["robust_acc"] for row in rows)]
    return [*(100 * share for share in accuracies), measure(subject.model, x, y).eps.median().item()]


@exits_on_user_error
def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes none
    started = time.monotonic()
    folders = [OUT / folder.format(seed) for folder, _ in NETWORKS.values() for seed in SEEDS]
    wanted = [f"{flags} --seed {seed}" for _, flags in NETWORKS.values() for seed in SEEDS]
    spawn = multiprocessing.get_context("spawn")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ProcessPoolExecutor(2, spawn, initializer=torch.set_num_threads, initargs=(1,)) as two:
        try:
            results = list(two.map(train_and_attack, folders, wanted))
        except BaseException:  # a training is stopped and saved, as is the next one, which a worker may hold
            two.shutdown(wait=False, cancel_futures=True)
            while workers := multiprocessing.active_children():
                for worker in workers:
                    worker.terminate()
                workers[0].join(10)
            raise
    found = np.array(results).reshape(len(NETWORKS), len(SEEDS), -1)
    print(f"\nDigits, 397 test images, Linf PGD, 40 steps, 4 restarts; mean ± deviation of {len(SEEDS)} seeds, in %\n")
    header = ["clean", *(f"eps {eps:g}" for eps in RADII), "median margin ≤"]
    print(f"{'':18}" + "".join(f"{name:>16}" for name in header))
    for name, seeds in zip(NETWORKS, found, strict=True):
        cells = [spread(list(values), 1) for values in seeds.T[:-1]] + [spread(list(seeds.T[-1]), 3)]
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells))
    print(
        "\nMMA was given no eps. Compare it with PGD at one that is too small, about right, too large for the digits."
    )
    print("Margins are upper bounds, and the digits are easy: what MMA is worth on MNIST stands in docs/results.md.\n")
    figure, _ = plots.draw_robustness(read_runs(folders))
    print("picture: ", plots.save(figure, f"{OUT}/robustness", "")[0])
    print(f"took {time.monotonic() - started:.0f} s. Next, MNIST (downloads 10 MB; about two hours of a CPU core):")
    mnist = "--dataset mnist --norm Linf --hinge_maxeps 0.45 --recipe fast --resume"
    print(f"  {command('train.py', *mnist.split())}\n", flush=True)
    return make_report.main([*map(str, folders), "--out", str(OUT / "report.html")])


if __name__ == "__main__":
    sys.exit(main())
