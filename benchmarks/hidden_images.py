"""What finds the images that AutoAttack breaks and repeated PGD does not: PGD with longer steps, or with leaky gradients.

python benchmarks/hidden_images.py [RUN] [--eps 0.3] [--data_root data]

RUN: a run under Linf that evaluate_on_pgd_attacks.py and evaluate_on_autoattack.py have attacked at eps. Leaky gradients let a
part of the gradient through ReLUs that are off; the network itself is left as it is. Prints a Markdown table: how many of the
images fall to 40 steps of PGD from six random starts, cross-entropy and logit margin in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from errors import UserError, exits_on_user_error
from evaluations.flags import PgdFlags
from evaluations.subject import load_subject
from losses import cross_entropy, logit_margin
from networks.leaky_gradients import LeakyGradients
from pgd import pgd
from reports.figures import eps_key
from reports.results import read_run
from utils import generator

STEPS, STARTS = 40, 6
SLOPES = (0.0, 0.02, 0.05, 0.1)
STEP_SIZES = (0.01, 0.05, 0.1, 0.2)


def hidden(evaluations: Sequence[dict[str, Any]], eps: float) -> list[int]:
    """The test images that stand under PGD at eps and fall to AutoAttack.

    :raises UserError: if one of the two has not been run.
    """
    flags: dict[str, str] = {}
    for evaluation in evaluations:
        for row in evaluation.get("results", ()):
            if eps_key(row["eps"]) == eps_key(eps):
                flags[evaluation["attack"]] = row["flags"]
    if missing := {"pgd", "autoattack"} - flags.keys():
        raise UserError(f"no {missing.pop()} at eps {eps:g} beside the network: run the evaluation first")
    pairs = zip(flags["pgd"], flags["autoattack"], strict=False)
    return [index for index, pair in enumerate(pairs) if pair == ("1", "0")]


def broken(model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, slope: float) -> int:
    """How many of the images (B, ...) one of the starts breaks."""
    fallen, draws = torch.zeros(len(x), dtype=torch.bool), generator(0)
    for start in range(STARTS):
        noise = torch.rand(x.shape, generator=draws)
        with LeakyGradients(slope):
            x_adv = pgd(
                model,
                x,
                y,
                loss_fn=(cross_entropy, logit_margin)[start % 2],
                norm="Linf",
                eps=eps,
                step_size=step_size,
                steps=STEPS,
                noise=noise,
            )
        with torch.no_grad():
            fallen |= model(x_adv).argmax(1) != y
    return int(fallen.sum())


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default="trained_models/mnist-Linf-MMA-0.45-sd0-fast-scale1")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--data_root", default="data")
    flags = parser.parse_args(argv)
    which = hidden(read_run(Path(flags.run)).evaluations, flags.eps)
    subject = load_subject(PgdFlags(model=str(flags.run), data_root=flags.data_root), torch.device("cpu"))
    everything = subject.test.everything()
    x, y = everything.x[which], everything.y[which]
    print(f"{len(x)} images that AutoAttack breaks at {flags.eps:g} and PGD does not\n")
    print("| gradient through ReLUs that are off | " + " | ".join(f"steps of {size:g}" for size in STEP_SIZES) + " |")
    print("| --- " * (1 + len(STEP_SIZES)) + "|")
    for slope in SLOPES:
        cells = [str(broken(subject.model, x, y, flags.eps, size, slope)) for size in STEP_SIZES]
        print(f"| {slope:g} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
