"""How far AN-PGD's margins are from the exact ones, of ReLU networks small enough to know them.

python benchmarks/exact_margins.py RUN... --network benchmarks/small_networks.py:dense_24 [--test_size 40] [--seconds 9]

The exact Linf margin is the optimum of a mixed-integer linear program, solved by HiGHS (`scipy.optimize.milp`). An image that
is stopped by `--seconds`, or has too many unstable units, gets a bracket of its margin. Each image is kept in the JSON of
`--out` when it is done; the same command goes on from there. Prints Markdown tables of all that the JSON holds: by how much
each attack's distance exceeds the exact one. LeNet5 is out of reach, and of larger networks the images that are solved are the
easier ones. B batch, ... any image shape. Images in [0, 1]; distances in the same unit.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from anpgd import AnPgd, Search
from errors import UserError, exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.in_memory import just_beyond
from evaluations.minimum_norm import confirmed, searched_apgd, shortest_distances
from evaluations.repeated_pgd import clean_logits
from evaluations.subject import Subject, load_subject
from flags import Parser, number, whole
from losses import logit_margin, soft_logit_margin
from pgd import InnerPgd
from records.reading import parse_json
from utils import generator, untouched, write_atomically
from validation import require_positive

Array = NDArray[np.float64]

# --- the exact margin ----------------------------------------------------------------------------------------------

AFFINE = (nn.Flatten, nn.Identity, nn.Dropout, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d)


class Affine(NamedTuple):
    """All that a network does between two ReLUs, to flattened images."""

    weight: Array  # (out, in)
    bias: Array  # (out,)

    def bounds(self, low: Array, high: Array) -> tuple[Array, Array]:
        """(in,) the least and the largest inputs -> (out,) outputs, by interval arithmetic."""
        up, down = self.weight.clip(min=0), self.weight.clip(max=0)
        return up @ low + down @ high + self.bias, up @ high + down @ low + self.bias


class Bracket(NamedTuple):
    """What is known of a margin. Solved: both ends are one."""

    lower: float  # no adversarial image is nearer
    upper: float  # one is at most so far; infinite: none is known up to the end of the search
    units: int  # unstable ReLUs: those that may be on or off within the upper end
    seconds: float


def affine_layers(model: nn.Module, shape: Sequence[int]) -> list[Affine]:
    """A network of images of this shape as affine layers with ReLUs between; in eval mode, in float64.

    :raises UserError: for a layer that is neither.
    """
    layers, shape = [], tuple(shape)
    weight, bias = np.eye(math.prod(shape)), np.zeros(math.prod(shape))
    every = copy.deepcopy(model).double().eval().named_modules(remove_duplicate=False)  # in their order
    for module in (module for _, module in every if not isinstance(module, nn.Sequential)):
        if isinstance(module, nn.ReLU):
            layers.append(Affine(weight, bias))
            weight, bias = np.eye(len(bias)), np.zeros(len(bias))
        elif isinstance(module, AFFINE):
            basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
            with torch.no_grad():
                zero = module(torch.zeros_like(basis[:1]))
                matrix = (module(basis) - zero).flatten(1).T.numpy()
            weight, bias, shape = matrix @ weight, matrix @ bias + zero.flatten().numpy(), zero.shape[1:]
        else:
            known = ", ".join(kind.__name__ for kind in (nn.Sequential, nn.ReLU, *AFFINE))
            raise UserError(f"layer {type(module).__name__}: the exact solver knows {known}: measure another network")
    return [*layers, Affine(weight, bias)]


def exact_margin(
    layers: Sequence[Affine], x: Array, y: int, known: float, max_eps: float, seconds: float, most_units: int = 100
) -> Bracket:
    """(pixels,) an image that is right -> `Bracket` of its Linf margin.

    known: the distance of an adversarial image, infinite if none is known. Each program looks for a nearer one of one class,
    those of the largest logits first. seconds: for all of them together. most_units: that a program may have.
    """
    started, z = time.monotonic(), x
    for layer in layers[:-1]:
        z = (layer.weight @ z + layer.bias).clip(min=0)
    logits = layers[-1].weight @ z + layers[-1].bias
    upper, most, floors = known, 0, dict[int, float]()
    waiting = [int(target) for target in np.argsort(-logits) if target != y]
    while waiting:  # each gets its share of the time left, and those that it was too short for get what then is left
        target, radius = waiting.pop(0), min(upper, max_eps)
        left = max(started + seconds - time.monotonic(), 0)
        distance, floor, units = _nearest_of_class(layers, x, y, target, radius, left / (len(waiting) + 1), most_units)
        upper, most = min(upper, distance), max(most, units)
        floors[target] = max(floor, floors.get(target, 0))
        if floor < min(distance, radius) and left > 0 and units <= most_units:
            waiting.append(target)
    lower = min([upper, max_eps, *floors.values()])
    return Bracket(lower, upper, most, round(time.monotonic() - started, 2))


def _nearest_of_class(
    layers: Sequence[Affine], x: Array, y: int, target: int, radius: float, seconds: float, most_units: int
) -> tuple[float, float, int]:
    """The least distance up to radius at which the target's logit reaches y's, infinite if none is found; a distance below
    which there is none; and the unstable units.

    Columns: the pixels x', their distance t, and of each hidden layer the units z and whether they are on, a in {0, 1}. With
    l <= W z + b <= u: z >= 0, z >= W z + b, z <= W z + b - min(l, 0) (1 - a), z <= max(u, 0) a.
    """
    ends, low, high = [], (x - radius).clip(min=0), (x + radius).clip(max=1)
    for layer in layers[:-1]:
        ends.append(layer.bounds(low, high))
        low, high = (end.clip(min=0) for end in ends[-1])
    difference = Affine(*(part[[target]] - part[[y]] for part in layers[-1]))
    units = sum(int(((low < 0) & (high > 0)).sum()) for low, high in ends)
    if difference.bounds(low, high)[1][0] < 0:
        return math.inf, radius, units
    if seconds <= 0 or units > most_units:
        return math.inf, 0.0, units

    pixels, columns = len(x), len(x) + 1 + 2 * sum(len(layer.bias) for layer in layers[:-1])
    first, last = np.zeros(columns), np.full(columns, radius)
    first[:pixels], last[:pixels] = (x - radius).clip(min=0), (x + radius).clip(max=1)
    whole, limits, before, t, free = np.zeros(columns), [], slice(0, pixels), slice(pixels, pixels + 1), pixels + 1

    def require(low: Array | float, high: Array | float, *parts: tuple[slice, Array]) -> None:
        matrix = np.zeros((len(parts[0][1]), columns))
        for place, part in parts:
            matrix[:, place] = part
        limits.append(LinearConstraint(matrix, low, high))

    for sign in (1, -1):
        require(-np.inf, sign * x, (before, sign * np.eye(pixels)), (t, -np.ones((pixels, 1))))
    for (weight, bias), (low, high) in zip(layers, ends, strict=False):
        size, low, high = len(bias), low.clip(max=0), high.clip(min=0)
        z, a, free = slice(free, free + size), slice(free + size, free + 2 * size), free + 2 * size
        last[z], first[a], last[a], whole[a] = high, (low == 0) & (high > 0), high > 0, 1
        require(bias, np.inf, (z, np.eye(size)), (before, -weight))
        require(-np.inf, bias - low, (z, np.eye(size)), (before, -weight), (a, np.diag(-low)))
        require(-np.inf, 0.0, (z, np.eye(size)), (a, np.diag(-high)))
        before = z
    require(-difference.bias, np.inf, (before, difference.weight))
    how = {"integrality": whole, "bounds": Bounds(first, last)}
    options = {"time_limit": seconds, "mip_rel_gap": 1e-6}
    found = milp(np.eye(columns)[pixels], constraints=limits, options=options, **how)
    distance = math.inf if found.x is None else float(found.fun)
    if found.status in (0, 2):  # solved, or there is none
        return distance, min(distance, radius), units
    return distance, max(float(found.mip_dual_bound or 0), 0.0), units


# --- what attacks find -----------------------------------------------------------------------------------------------

STEPS, HALVINGS, FMN_STEPS, APGD_STEPS = 10, 14, 1000, 100
VISITS = (1, 2, 6)  # of AN-PGD, the shortest of all counts


def distances(subject: Subject, x: Tensor, y: Tensor, rows: Tensor, max_eps: float) -> dict[str, Tensor]:
    """(B, ...), (B,), all right, (B,) their numbers -> (B,) by attack: confirmed distances, infinite where it found none."""
    model, start, found = subject.model, subject.training.test_eps, {}
    for projections, targets in itertools.product((0, 1), (0, "all")):
        search = Search(logit_margin, max_eps, HALVINGS)
        anpgd = AnPgd(InnerPgd("Linf", STEPS, soft_logit_margin), search, projections, targets)
        best, eps, passes = torch.full(y.shape, math.inf, dtype=torch.float64), start, 0
        for visit in range(1, VISITS[-1] + 1):  # the first from the image, others from noise at the radius found
            noise = torch.rand(x.shape, generator=generator(visit)).to(x) if visit > 1 else None
            shortest = anpgd(model, x, y, eps, noise)
            x_adv, _ = just_beyond(model, x, y, shortest, max_eps)
            best, passes = best.minimum(confirmed(subject, x, y, x_adv)), passes + shortest.passes
            eps = shortest.eps.minimum(best.to(shortest.eps)).clamp(min=subject.training.attack_mineps)
            if visit in VISITS:
                found[f"AN-PGD, projections {projections}, targets {targets}, visits {visit}, {passes} passes"] = best
    logits = clean_logits(model, subject.test.everything().x, 200)
    fmn = {"steps": FMN_STEPS}
    found[f"FMN, {FMN_STEPS} steps, twice"], _ = shortest_distances(subject, "fmn", fmn, rows, logits, seed=0)
    x_adv = searched_apgd(subject, x, y, max_eps, steps=APGD_STEPS, tries=1 + STEPS, start=max_eps)
    found[f"APGD, {APGD_STEPS} steps, {STEPS} halvings"] = confirmed(subject, x, y, x_adv)
    return found


# --- the table -------------------------------------------------------------------------------------------------------


def table(networks: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: networks of one kind, all of their images together. By how much each attack exceeds the exact margin."""
    images = [image for network in networks for image in network["images"].values()]
    solved = [image for image in images if image["lower"] == image["upper"]]
    seeds = sorted({network["seed"] for network in networks})
    lines = [
        f"{networks[0]['kind']}, seeds {', '.join(map(str, seeds))}: {len(solved)} of {len(images)} images solved, "
        f"in {np.mean([image['seconds'] for image in images]):.1f} s each; exact mean margin "
        f"{np.mean([image['upper'] for image in solved] or [math.nan]):.4f}",
        "",
        "| over the exact margin, % | mean [95 % of resamplings] | median | 95 % | within 1 % | not found |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for place, name in enumerate(networks[0]["attacks"]):
        found = [(image["found"][place], image["upper"]) for image in solved]
        over = np.array([100 * (distance / exact - 1) for distance, exact in found if distance is not None])
        figures = ["–"] * 4
        if len(over):
            low, high = np.quantile(np.random.default_rng(0).choice(over, (2000, len(over))).mean(1), [0.025, 0.975])
            middle, most = np.quantile(over, [0.5, 0.95])
            figures = [f"{over.mean():.2f} [{low:.2f}, {high:.2f}]", f"{middle:.2f}", f"{most:.2f}"]
            figures.append(f"{(over <= 1).mean():.0%}")
        lines.append(f"| {' | '.join([name, *figures])} | {len(found) - len(over)} |")
    return [*lines, ""]


def measure(subject: Subject, network: dict[str, Any], flags: SimpleNamespace, keep: Callable[[], None]) -> None:
    """Every right image of the subject that `network`, which is written into, does not hold yet; keep: after each."""
    model, (x, y, _) = subject.model, subject.test.everything()
    layers = affine_layers(model, x.shape[1:])
    right = (logit_margin(clean_logits(model, x, 200), y) < 0).nonzero().squeeze(1)
    rows = torch.tensor([row for row in right.tolist() if str(row) not in network["images"]], dtype=torch.int64)
    if not len(rows):
        return
    with untouched(model, x.device):
        by_attack = distances(subject, x[rows], y[rows], rows, flags.max_eps)
    if network["attacks"] not in ([], list(by_attack)):
        raise UserError(f"--out {flags.out}: holds {subject.path.parent.name} by other attacks: give another --out")
    network["attacks"] = list(by_attack)
    for row, found in zip(rows.tolist(), torch.stack(list(by_attack.values()), 1).tolist(), strict=True):
        pixels, known = x[row].double().flatten().numpy(), min(found)
        bracket = exact_margin(layers, pixels, int(y[row]), known, flags.max_eps, flags.seconds, flags.most_units)
        kept = {**bracket._asdict(), "found": found}
        network["images"][str(row)] = json.loads(json.dumps(kept).replace("Infinity", "null"))
        keep()
        print(f"{subject.path.parent.name}, image {row}: {bracket}", file=sys.stderr)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the tables. Returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    runs = "run folders of networks of dense and convolutional layers"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=runs)
    parser.add_argument("--network", help="their network, if it is code of yours: path/to/file.py:callable")
    parser.add_argument("--test_size", type=whole, default=100, help="the first test images; wrong ones are left out")
    parser.add_argument("--max_eps", type=number, default=0.5, help="end of every search")
    parser.add_argument("--seconds", type=number, default=60.0, help="of the solver for an image")
    parser.add_argument("--most_units", type=whole, default=100, help="unstable units that a program may have")
    parser.add_argument("--data_root")
    parser.add_argument("--out", default="benchmarks/exact_margins.json", help="where images are kept")
    flags = SimpleNamespace(**parser.parse(argv))
    require_positive(flags, ["test_size", "max_eps", "seconds", "most_units"])
    out = Path(flags.out)
    try:
        networks = parse_json(out.read_bytes()) if out.exists() else {}  # by run
        if not all("images" in network for network in networks.values()):
            raise ValueError("no margins in it")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{out}: is damaged ({error}): move it away, or give another --out") from None

    out.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        """As JSON, a line an image."""
        text = re.sub(r"\n {4,}| *\n {3}(?=[}\]])", " ", json.dumps(networks, indent=1))
        write_atomically(out, text.encode() + b"\n")

    for run in flags.runs:
        images = {"data_root": flags.data_root, "test_size": flags.test_size}
        subject = load_subject(EvaluationFlags(model=run, network=flags.network, **images), torch.device("cpu"))
        if subject.norm != "Linf":
            raise UserError(f"{run}: was trained under {subject.norm}: exact margins are those under Linf")
        training, settings = subject.training, [flags.max_eps, flags.seconds, flags.most_units]
        kind = f"{subject.dataset}, {training.network.rpartition(':')[2]}, {training.method}"
        fresh = {"kind": kind, "seed": training.seed, "sha256": subject.sha256, "settings": settings}
        network = networks.setdefault(subject.path.parent.name, {**fresh, "attacks": [], "images": {}})
        if {**network, **fresh} != network:
            raise UserError(f"{out}: holds {subject.path.parent.name} of other weights or settings: give another --out")
        measure(subject, network, flags, keep)
    for kind in dict.fromkeys(network["kind"] for network in networks.values()):
        alike = [network for network in networks.values() if network["kind"] == kind and network["images"]]
        print("\n".join(table(alike) if alike else []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
