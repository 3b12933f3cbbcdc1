"""Train a network normally, one with PGD at one eps and one with MMA on scikit-learn's digits, attack them, show the
difference."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate_on_pgd_attacks
import train
from errors import exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import margins
from evaluations.subject import load_subject
from records.commands import command
from reports import make_report, plots
from reports.runs import Run, read_runs

OUT = ROOT / "runs" / "quickstart"
MAX_EPS = 1.0  # nothing in [0, 1] is farther
RADII = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
NETWORKS = {  # name in the table -> run folder, flags of train.py
    "standard training": ("digits-Linf-STD-sd0", "--method std --max_steps 500"),
    "PGD at eps 0.2": ("digits-Linf-PGD-0.2-sd0", "--method pgd --train_eps 0.2 --max_steps 700"),
    "MMA, d_max 0.3": ("digits-Linf-MMA-0.3-sd0", "--hinge_maxeps 0.3 --max_steps 700"),
}


def train_and_attack(name: str, folder: Path, flags: str) -> tuple[list[float], np.ndarray]:
    """Train (or go on, or skip), attack, measure margins on the test set: robust accuracy by eps, 0 among them; margins."""
    print(f"\n== {name} ==", flush=True)
    common = ["--dataset", "digits", "--norm", "Linf", "--device", "cpu", "--resume", "--savepath", str(folder)]
    attack = ["--model", str(folder), "--device", "cpu", "--nb_iter", "40", "--nb_restart", "4", "--batch_size", "50"]
    status = train.main([*common, *flags.split()])
    status = status or evaluate_on_pgd_attacks.main([*attack, "--eps", *map(str, RADII)])
    if status:
        sys.exit(status)
    rows = json.loads((folder / "eval_pgd_Linf.json").read_text())["results"]
    subject = load_subject(EvaluationFlags(model=str(folder)), torch.device("cpu"))
    x, y, _ = subject.test.everything()
    measure = margins("Linf", MAX_EPS, steps=10, projections=1, targets=9, batch_size=200)
    eps = measure(subject.model, x, y).eps.numpy()
    return [rows[0]["clean_acc"], *(row["robust_acc"] for row in rows)], eps


def mean_margin(margins: np.ndarray) -> str:
    """Of upper bounds; there is none where an image has no adversarial one."""
    return f"{margins.mean():.3f}" if np.isfinite(margins).all() else "none"


def draw_margins(margins: list[np.ndarray], runs: list[Run]) -> Figure:
    """Their distribution over the test images."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for eps, look, line in zip(margins, plots.looks(runs).values(), plots.LINES, strict=False):
        label, style = f"{look.name} (mean at most {mean_margin(eps)})", {"color": look.style["color"], "ls": line}
        axes.hist(eps, [0.0125 * i for i in range(37)], label=label, histtype="step", lw=2, **style)
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # space for the legend
    axes.set(xlabel="upper bound of the margin: ℓ∞ distance to the decision boundary", ylabel="test images")
    axes.set_title("Digits: distribution of margins (0: misclassified)")
    axes.legend()
    return figure


@exits_on_user_error
def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes none
    started = time.monotonic()
    folders = [OUT / folder for folder, _ in NETWORKS.values()]
    found = {name: train_and_attack(name, OUT / folder, flags) for name, (folder, flags) in NETWORKS.items()}
    print(f"\nDigits, 397 test images, Linf; robust against PGD (40 steps, 4 restarts) at each eps; see {OUT}\n")
    print(f"{'':18}{'clean':>10}" + "".join(f"{f'eps {eps:g}':>10}" for eps in RADII) + f"{'mean margin ≤':>16}")
    for name, (accuracies, eps) in found.items():
        cells = "".join(f"{accuracy:>10.1%}" for accuracy in accuracies)
        print(f"{name:18}{cells}{mean_margin(eps):>16}")
    runs = read_runs(folders)
    figures = {"margins": draw_margins([eps for _, eps in found.values()], runs)}
    figures["robustness"], _ = plots.draw_robustness(runs)
    pictures = [plots.save(figure, f"{OUT}/{name}", "")[0] for name, figure in figures.items()]
    print("\npictures:      " + "\n               ".join(map(str, pictures)))
    print("run folders:   " + "\n               ".join(map(str, folders)))
    print(f"took {time.monotonic() - started:.0f} s. Next, MNIST (downloads 10 MB; half an hour of one CPU core):")
    mnist = "--dataset mnist --norm Linf --hinge_maxeps 0.45 --recipe fast --resume"
    print(f"  {command('train.py', *mnist.split())}\n", flush=True)
    return make_report.main([*map(str, folders), "--out", str(OUT / "report.html")])


if __name__ == "__main__":
    sys.exit(main())
