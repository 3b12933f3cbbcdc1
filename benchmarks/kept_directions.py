"""How near AN-PGD's margins come to the nearest adversarial images known, visit by visit, from kept directions and from noise.

python benchmarks/kept_directions.py [RUN] [--test_size 200] [--data_root data]

RUN: a run under L2 whose smallest distances evaluate_on_minimum_norm.py has measured. The network stands still; each visit
starts from the radius, and where directions are kept from the direction, of the visit before, the first from noise at eps_max.
Prints a Markdown table: the mean of margin / nearest known, over the images that are right and whose nearest lies below
d_max, then how many searches of all images met no wrong point.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from anpgd import AnPgd, Search, Shortest
from errors import UserError, exits_on_user_error
from evaluations.flags import PgdFlags
from evaluations.subject import Subject, load_subject
from losses import soft_logit_margin
from pgd import InnerPgd, noise_towards
from utils import generator

VISITS = 7
SHOWN = (1, 2, 3, 5, 7)
STARTS = (  # whether directions are kept, PGD steps, their length in units of eps / steps
    (False, 6, 2.5),
    (False, 10, 2.5),
    (False, 40, 2.5),
    (True, 6, 2.5),
    (True, 6, 1.0),
    (True, 10, 2.5),
)


def nearest_known(subject: Subject) -> Tensor:
    """(N,) float64: of each test image the shortest distance that the JSON beside the network hold; 0 where it is wrong.

    :raises UserError: if there are none for all of these images.
    """
    count = len(subject.test)
    known = best_known(subject, {})[0]
    best = torch.tensor(known, dtype=torch.float64)
    if len(best) < count or not best.isfinite().all():
        raise UserError(
            f"{subject.path}: no smallest distances of its first {count} test images lie beside it: run python "
            f"evaluate_on_minimum_norm.py --model {subject.path.parent} --test_size {count}"
        )
    return best


def visits(subject: Subject, x: Tensor, y: Tensor, kept: bool, steps: int, scale: float) -> list[Shortest]:
    """(B, ...), (B,) -> what each of `VISITS` visits finds."""
    top, draws = subject.training.search_maxeps, generator(0)
    eps, direction, found = torch.full((len(x),), top).to(x), None, []
    for _ in range(VISITS):
        noise = torch.rand(x.shape, generator=draws).to(x)
        if kept and direction is not None:
            noise = noise_towards(subject.norm, x, eps, direction)
        attack, search = InnerPgd(subject.norm, steps, soft_logit_margin, scale), Search(soft_logit_margin, top)
        shortest = AnPgd(attack, search)(subject.model, x, y, eps, noise)
        found.append(shortest)
        eps, direction = shortest.eps.clamp(min=subject.training.attack_mineps), shortest.direction
    return found


def row(found: list[Shortest], nearest: Tensor, d_max: float) -> list[str]:
    """Cells for the visits that are shown."""
    near = nearest < d_max
    return [
        f"{(found[visit - 1].eps / nearest)[near].mean():.3f}, {int(found[visit - 1].beyond.sum())}" for visit in SHOWN
    ]


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="trained_models/mnist-L2-MMA-4.0-sd0-fast")
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=int, default=200)
    flags = parser.parse_args(argv)
    subject = load_subject(
        PgdFlags(model=flags.run, data_root=flags.data_root, test_size=flags.test_size), torch.device("cpu")
    )
    nearest = nearest_known(subject)
    right = nearest > 0
    everything = subject.test.everything()
    x, y, nearest = everything.x[right], everything.y[right], nearest[right]
    print(
        f"{len(x)} images, nearest known at {nearest.mean():.3f} on average, eps_max {subject.training.search_maxeps:g}\n"
    )
    print("| start | steps, length in eps / steps | " + " | ".join(f"visit {visit}" for visit in SHOWN) + " |")
    print("| --- " * (2 + len(SHOWN)) + "|")
    for kept, steps, scale in STARTS:
        cells = row(visits(subject, x, y, kept, steps, scale), nearest, subject.training.check_maxeps)
        print(f"| {'kept' if kept else 'noise'} | {steps}, {scale:g} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
