"""The attack that made a figure, run once more beside plain PGD: each way in which it can be broken has a check.

N images, ... any image shape. Images in [0, 1]; eps in the same unit. The attack under test is the very object of the
evaluation, with its graph and its precision; plain PGD is `pgd` in float32, from the same starts, with the same steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from evaluations.findings import Finding, Findings
from evaluations.repeated_pgd import Attacked, Images, Protocol, Running
from losses import logit_margin
from pgd import GEOMETRY, PgdFn, as_rows, pgd
from utils import SANITY, eval_mode, row_noise, row_norms

CHANCE = 0.005  # that two attacks of equal strength differ so much


class Ends(NamedTuple):
    """Where N perturbed images lie, and what the network says there."""

    x_adv: Tensor  # (N, ...)
    loss: Tensor  # (N,) what the attack maximises
    margin: Tensor  # (N,) logit margin; >= 0: broken. NaN is broken

    @property
    def broken(self) -> Tensor:
        return ~(self.margin < 0)


class Beside(NamedTuple):
    """The attack under test and plain PGD from the same starts."""

    x: Tensor  # (N, ...)
    start: Ends
    made: Ends  # by the attack under test
    plain: Ends
    rows: int  # of a batch


def attack_checks(model: nn.Module, images: Images, protocol: Protocol, run: Running, state: Attacked) -> Findings:
    """Each check by name, on these images; `state` is what the evaluation holds of the same ones."""
    if protocol.eps == 0:
        return {}
    seen = run_beside(model, images, protocol, run)
    return {
        "the attack moves the images": _as_many(seen, _far(seen, seen.x, 0.01, protocol), "moved"),
        "the attack leaves its start": _as_many(seen, _far(seen, seen.start.x_adv, 1e-4, protocol), "moved"),
        "the attack takes whole steps": _whole_steps(seen),
        "the attack raises its loss": _as_many(
            seen, (seen.made.loss > seen.start.loss, seen.plain.loss > seen.start.loss), "raised"
        ),
        "the attack answers for its own batch": _own_batch(seen),
        "the attack breaks what plain PGD breaks": no_more(seen.made.broken, seen.plain.broken, ("it", "plain PGD")),
        "judged on the perturbed images": _judged(model, images, run, state, seen.made),
    }


def run_beside(model: nn.Module, images: Images, protocol: Protocol, run: Running) -> Beside:
    """One start of each on all images, in two batches at least, so that an answer to another batch is seen."""
    x, y, index = images
    rows = max(1, min(run.batch_size, (len(x) + 1) // 2))
    starts: list[Tensor] = []
    made: list[Tensor] = []
    plain: list[Tensor] = []
    for part in torch.arange(len(x), device=x.device).split(rows):
        noise = row_noise(index[part], x.shape[1:], protocol.seed, SANITY).to(x)
        starts.append(GEOMETRY[protocol.norm].start(x[part], as_rows(protocol.eps, x[part]), noise))
        for attack, found in ((run.attack, made), (pgd, plain)):
            found.append(_once(attack, model, x[part], y[part], protocol, noise).clone())  # a graph's holds for a while
    start, ours, theirs = (_judge(model, torch.cat(found), y, protocol, rows) for found in (starts, made, plain))
    return Beside(x, start, ours, theirs, rows)


def no_more(broken: Tensor, other: Tensor, names: tuple[str, str]) -> Finding:
    """Whether `other` does not break more of the same images than `broken`, (N,) bool both, beyond chance.

    McNemar's exact test: if both were equally strong, images that only one of them breaks would be either's alike.
    """
    alone, differ = int((other & ~broken).sum()), int((other ^ broken).sum())
    chance = binomtest(alone, differ, 0.5, alternative="greater").pvalue if differ else 1.0
    first, second = (
        f"{name} leaves {float((~flags).float().mean()):.1%}"
        for name, flags in zip(names, (broken, other), strict=True)
    )
    return Finding(bool(chance > CHANCE), f"{first}, {second} of the same {len(broken)} images")


def _once(attack: PgdFn, model: nn.Module, x: Tensor, y: Tensor, protocol: Protocol, noise: Tensor) -> Tensor:
    return attack(
        model,
        x,
        y,
        loss_fn=protocol.losses[0],
        norm=protocol.norm,
        eps=protocol.eps,
        step_size=protocol.step_size,
        steps=protocol.steps,
        noise=noise,
    )


def _judge(model: nn.Module, x_adv: Tensor, y: Tensor, protocol: Protocol, rows: int) -> Ends:
    with eval_mode(model), torch.no_grad():
        logits = torch.cat([model(part) for part in x_adv.split(rows)])
    return Ends(x_adv, protocol.losses[0](logits, y), logit_margin(logits, y))


def _far(seen: Beside, origin: Tensor, share: float, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """(N,) bool of both attacks: further from `origin` than this share of eps."""

    def far(ends: Ends) -> Tensor:
        delta = (ends.x_adv - origin).flatten(1)
        length = delta.abs().amax(1) if protocol.norm == "Linf" else row_norms(delta)
        return length > share * protocol.eps

    return far(seen.made), far(seen.plain)


def _as_many(seen: Beside, which: tuple[Tensor, Tensor], verb: str) -> Finding:
    """At least half as many images as plain PGD."""
    made, plain = (int(flags.sum()) for flags in which)
    return Finding(made >= plain / 2, f"{made} of {len(seen.x)} images {verb}, by plain PGD {plain}")


def _whole_steps(seen: Beside) -> Finding:
    made, plain = (float(row_norms(ends.x_adv - seen.start.x_adv).double().mean()) for ends in (seen.made, seen.plain))
    return Finding(made >= plain / 2, f"{made:.3g} from its start in the mean, plain PGD {plain:.3g} (Euclidean)")


def _own_batch(seen: Beside) -> Finding:
    """The same answer to two batches that began elsewhere is an answer to neither."""
    first, *others = seen.made.x_adv.split(seen.rows)
    starts, *other_starts = seen.start.x_adv.split(seen.rows)
    if not others:
        return Finding(None, "one image only")
    same = sum(
        torch.equal(first[: len(other)], other) and not torch.equal(starts[: len(other)], start)
        for other, start in zip(others, other_starts, strict=True)
    )
    return Finding(not same, f"{same} later batches got the first one's answer")


def _judged(model: nn.Module, images: Images, run: Running, state: Attacked, made: Ends) -> Finding:
    """What the attack breaks, now or in the images that the evaluation kept, must not be called robust."""
    with eval_mode(model), torch.no_grad():
        logits = torch.cat([model(part) for part in state.x_adv.split(run.batch_size)])
    broken = ~(logit_margin(logits, images.y) < 0) | made.broken
    return no_more(~state.robust, broken, ("the evaluation", "its attack, judged again,"))
