"""How near AN-PGD's margins come to the nearest adversarial images known, visit by visit, from a warm start and from noise.

python benchmarks/warm_start.py [RUN] [--test_size 200] [--data_root data]

RUN: a run under L2 whose smallest distances evaluate_on_minimum_norm.py has measured. The network stands still; each visit
starts from the radius, and with a warm start from the direction, of the visit before (as ATTA, Zheng et al. 2020), the first
from noise at eps_max. Prints a Markdown table: the mean of margin / nearest known, over the images that are right and whose
nearest lies below d_max, then how many searches of all images met no wrong point.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from anpgd import AnPgd, Search, Shortest
from errors import UserError, exits_on_user_error
from evaluations.compare_attacks import nearest
from evaluations.flags import SEARCHES, EvaluationFlags
from evaluations.subject import Subject, load_subject
from flags import Parser
from losses import soft_logit_margin
from pgd import InnerPgd, noise_towards
from utils import generator

VISITS = 7
SHOWN = (1, 2, 3, 5, 7)
STARTS = (  # whether the start is warm, PGD steps, their length in units of eps / steps
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
    rows = [row for attack in SEARCHES for row in subject.rows(attack)]
    best = torch.tensor(nearest(rows, subject.row(0, {}), subject.dataset), dtype=torch.float64)
    if best.isinf().any():
        raise UserError(
            f"{subject.path}: no smallest distances of its first {len(best)} test images lie beside it: run python "
            f"evaluate_on_minimum_norm.py --model {subject.path.parent} --test_size {len(best)}"
        )
    return best


def visits(subject: Subject, x: Tensor, y: Tensor, warm: bool, steps: int, scale: float) -> list[Shortest]:
    """(B, ...), (B,) -> what each of `VISITS` visits finds. scale: length of PGD's steps in units of eps / steps."""
    top, draws = subject.training.search_maxeps, generator(0)
    anpgd = AnPgd(InnerPgd(subject.norm, steps, soft_logit_margin, scale), Search(soft_logit_margin, top))
    eps, found = torch.full((len(x),), top).to(x), []
    for _ in range(VISITS):
        noise = torch.rand(x.shape, generator=draws).to(x)
        if warm and found:
            noise = noise_towards(subject.norm, x, eps, found[-1].direction)
        found.append(anpgd(subject.model, x, y, eps, noise))
        eps = found[-1].eps.clamp(min=subject.training.attack_mineps)
    return found


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("run", nargs="?", default="trained_models/mnist-L2-MMA-4.0-sd0-fast")
    parser.add_argument("--data_root", default="data")
    parser.add_argument("--test_size", type=int, default=200)
    flags = SimpleNamespace(**parser.parse(argv))
    asked = EvaluationFlags(model=str(flags.run), data_root=flags.data_root, test_size=flags.test_size)
    subject = load_subject(asked, torch.device("cpu"))
    known, (x, y, _) = nearest_known(subject), subject.test.everything()
    x, y, known = x[known > 0], y[known > 0], known[known > 0]
    near, top = known < subject.training.check_maxeps, subject.training.search_maxeps
    print(f"{len(x)} images, nearest known at {known.mean():.3f} on average, eps_max {top:g}\n")
    print("| start | steps, length in eps / steps | " + " | ".join(f"visit {visit}" for visit in SHOWN) + " |")
    print("| --- " * (2 + len(SHOWN)) + "|")
    for warm, steps, scale in STARTS:
        found = visits(subject, x, y, warm, steps, scale)
        shown = [found[visit - 1] for visit in SHOWN]
        cells = [f"{(one.eps / known)[near].mean():.3f}, {int(one.beyond.sum())}" for one in shown]
        print(f"| {'warm' if warm else 'noise'} | {steps}, {scale:g} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
