"""Train a network normally, one with PGD at one eps and one with MMA on scikit-learn's digits, attack them, show the
difference."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate_on_pgd_attacks
import train
from check import check_split
from errors import exits_on_user_error
from evaluations.flags import parse_eval
from evaluations.subject import load_subject
from reports import make_report

OUT = ROOT / "runs" / "quickstart"
RADII = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
NETWORKS = {
    "normal training": ["--method", "std", "--max_steps", "500", "--savepath", str(OUT / "digits-Linf-STD-sd0")],
    "PGD at eps 0.2": [
        *shlex.split("--method pgd --train_eps 0.2 --max_steps 700"),
        "--savepath",
        str(OUT / "digits-Linf-PGD-0.2-sd0"),
    ],
    "MMA, d_max 0.3": [
        *shlex.split("--hinge_maxeps 0.3 --max_steps 700"),
        "--savepath",
        str(OUT / "digits-Linf-MMA-0.3-sd0"),
    ],
}
STYLES = (
    {"color": "0.75", "linestyle": "--", "marker": "s"},
    {"color": "0.45", "linestyle": ":", "marker": "^"},
    {"color": "0.1", "linestyle": "-", "marker": "o"},
)


def must(status: int) -> None:
    if status:
        sys.exit(status)


def train_and_attack(name: str, flags: list[str]) -> dict:
    """Train (or go on, or skip), attack, measure margins on the test set."""
    print(f"\n== {name} ==", flush=True)
    must(train.main(["--dataset", "digits", "--norm", "Linf", "--device", "cpu", "--resume", *flags]))
    folder = Path(flags[-1])
    attack = ["--model", str(folder), "--device", "cpu", "--nb_iter", "40", "--nb_restart", "4", "--batch_size", "50"]
    must(evaluate_on_pgd_attacks.main([*attack, "--eps", *map(str, RADII)]))
    subject = load_subject(parse_eval(attack), torch.device("cpu"))
    margins = check_split(subject.model, subject.test, subject.training, 1, 0).margins.numpy()
    return {"folder": folder, "margins": margins, **json.loads(subject.result_file("pgd").read_text())}


def print_table(found: dict[str, dict]) -> None:
    print(
        f"\nDigits, 397 test images, Linf; robust against PGD (40 steps, 4 restarts) at each eps; measured in {OUT}\n"
    )
    print(f"{'':18}{'clean':>8}" + "".join(f"{f'eps {eps:g}':>10}" for eps in RADII) + f"{'mean margin':>14}")
    for name, result in found.items():
        accuracies = "".join(f"{row['robust_acc']:>10.1%}" for row in result["results"])
        print(f"{name:18}{result['clean_acc']:>8.1%}{accuracies}{result['margins'].mean():>14.3f}")


def draw(found: dict[str, dict]) -> list[Path]:
    """The distribution of margins, and robust accuracy against eps."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    bins = [0.0125 * i for i in range(27)]
    for (name, result), style in zip(found.items(), STYLES, strict=True):
        axes.hist(
            result["margins"],
            bins,
            label=f"{name} (mean {result['margins'].mean():.3f})",
            histtype="step",
            linewidth=2,
            color=style["color"],
            linestyle=style["linestyle"],
        )
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set(
        xlabel="margin: Linf distance to the decision boundary (images in [0, 1])",
        ylabel="test images",
        title="Digits: distribution of margins (0: misclassified)",
    )
    axes.legend()
    figure.savefig(OUT / "margins.png", dpi=150)

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, result), style in zip(found.items(), STYLES, strict=True):
        accuracy = [result["clean_acc"], *(row["robust_acc"] for row in result["results"])]
        axes.plot([0, *RADII], [100 * a for a in accuracy], label=name, linewidth=2, **style)
    axes.set(
        xlabel="eps: Linf radius of the attack (images in [0, 1])",
        ylabel="robust accuracy [%]",
        ylim=(0, 103),
        title="Digits: accuracy under repeated PGD",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(OUT / "robustness.png", dpi=150)
    return [OUT / "margins.png", OUT / "robustness.png"]


@exits_on_user_error
def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes none
    started = time.monotonic()
    found = {name: train_and_attack(name, flags) for name, flags in NETWORKS.items()}
    pictures = draw(found)
    print_table(found)
    print("\npictures:      " + "\n               ".join(str(path) for path in pictures))
    print("run folders:   " + "\n               ".join(str(result["folder"]) for result in found.values()))
    print(
        f"took {time.monotonic() - started:.0f} s. Next, the same on MNIST (downloads 10 MB; hours on a CPU, minutes on a GPU):"
    )
    python, program = os.path.relpath(sys.executable), os.path.relpath(ROOT / "train.py")
    print(f"  {python} {program} --dataset mnist --norm Linf --hinge_maxeps 0.45 --resume\n", flush=True)
    folders = [str(result["folder"]) for result in found.values()]
    return make_report.main([*folders, "--out", str(OUT / "report.html")])


if __name__ == "__main__":
    sys.exit(main())
