"""Train a network normally, one with PGD at one eps and one with MMA on scikit-learn's digits, attack them, show the
difference."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate_on_pgd_attacks
import train
from errors import exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import margins
from evaluations.subject import load_subject
from reports import make_report

OUT = ROOT / "runs" / "quickstart"
MAX_EPS = 1.0  # nothing in [0, 1] is farther
RADII = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
NETWORKS = {  # name in table and pictures -> run folder, flags of train.py, how it is drawn
    "standard training": ("digits-Linf-STD-sd0", "--method std --max_steps 500", "0.75", "--", "s"),
    "PGD at eps 0.2": ("digits-Linf-PGD-0.2-sd0", "--method pgd --train_eps 0.2 --max_steps 700", "0.45", ":", "^"),
    "MMA, d_max 0.3": ("digits-Linf-MMA-0.3-sd0", "--hinge_maxeps 0.3 --max_steps 700", "0.1", "-", "o"),
}


def train_and_attack(name: str, folder: Path, flags: str) -> dict:
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
    return {"accuracy": [rows[0]["clean_acc"], *(row["robust_acc"] for row in rows)], "margins": eps}


def mean_margin(margins: np.ndarray) -> str:
    """Of upper bounds; there is none where an image has no adversarial one."""
    return f"{margins.mean():.3f}" if np.isfinite(margins).all() else "none"


def print_table(found: dict[str, dict]) -> None:
    print(f"\nDigits, 397 test images, Linf; robust against PGD (40 steps, 4 restarts) at each eps; see {OUT}\n")
    print(f"{'':18}{'clean':>10}" + "".join(f"{f'eps {eps:g}':>10}" for eps in RADII) + f"{'mean margin ≤':>16}")
    for name, result in found.items():
        cells = "".join(f"{accuracy:>10.1%}" for accuracy in result["accuracy"])
        print(f"{name:18}{cells}{mean_margin(result['margins']):>16}")


def draw(found: dict[str, dict]) -> list[Path]:
    """The distribution of margins, and robust accuracy against eps."""
    (distribution, left), (robustness, right) = (plt.subplots(figsize=(6, 3.6), layout="constrained") for _ in range(2))
    for (name, result), (_, _, color, line, marker) in zip(found.items(), NETWORKS.values(), strict=True):
        label, style = f"{name} (mean at most {mean_margin(result['margins'])})", {"color": color, "ls": line, "lw": 2}
        left.hist(result["margins"], [0.0125 * i for i in range(37)], label=label, histtype="step", **style)
        right.plot([0, *RADII], [100 * share for share in result["accuracy"]], label=name, marker=marker, **style)
    left.set_ylim(top=1.35 * left.get_ylim()[1])  # room for the legend
    left.set(xlabel="upper bound of the margin: Linf distance to the decision boundary", ylabel="test images")
    left.set_title("Digits: distribution of margins (0: misclassified)")
    right.set(xlabel="eps: Linf radius of the attack (images in [0, 1])", ylabel="robust accuracy [%]", ylim=(0, 103))
    right.set_title("Digits: accuracy under repeated PGD")
    right.grid(alpha=0.3)
    for figure, axes, name in ((distribution, left, "margins"), (robustness, right, "robustness")):
        axes.legend()
        figure.savefig(OUT / f"{name}.png", dpi=150)
    return [OUT / "margins.png", OUT / "robustness.png"]


@exits_on_user_error
def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes none
    started = time.monotonic()
    folders = {name: OUT / folder for name, (folder, *_) in NETWORKS.items()}
    found = {name: train_and_attack(name, folders[name], flags) for name, (_, flags, *_) in NETWORKS.items()}
    pictures = draw(found)
    print_table(found)
    print("\npictures:      " + "\n               ".join(map(str, pictures)))
    print("run folders:   " + "\n               ".join(map(str, folders.values())))
    print(f"took {time.monotonic() - started:.0f} s. Next, MNIST (downloads 10 MB; half an hour of one CPU core):")
    python, program = os.path.relpath(sys.executable), os.path.relpath(ROOT / "train.py")
    print(f"  {python} {program} --dataset mnist --norm Linf --hinge_maxeps 0.45 --recipe fast --resume\n", flush=True)
    return make_report.main([*map(str, folders.values()), "--out", str(OUT / "report.html")])


if __name__ == "__main__":
    sys.exit(main())
