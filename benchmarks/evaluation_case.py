"""What `benchmark.py` times of evaluation: repeated PGD on a network that is a little robust."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from advertorch_examples.models import LeNet5Madry
from torch import Tensor, nn

from anpgd import AnPgd, Search
from benchmarks import reference_style
from benchmarks.timing import Case, pass_seconds
from evaluations.advertorch_compat import advertorch  # noqa: F401  before advertorch_examples
from evaluations.repeated_pgd import repeated_pgd
from hardware.fast_pgd import FastPgd
from hardware.precision import BFloat16Twin, tf32
from loading.batches import Split
from loading.datasets import load_dataset
from losses import cross_entropy, cw_loss, logit_margin, soft_logit_margin
from networks.build import build_model
from pgd import InnerPgd

RESTARTS = 10


class Contest:
    """Repeated PGD in the reference style and ours, of one network on the same images at one radius."""

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.count, self.steps, self.batch_size = (1000, 100, 200) if on_cuda else (400, 3, 50)
        self.rows = self.batch_size if on_cuda else None
        self.model, self.x, self.y = _trained_on_digits(self.count, device)
        self.eps = _radius_of_half(self.model, self.x, self.y)
        self.step_size = 2.5 * self.eps / self.steps
        self.theirs = LeNet5Madry().to(device).requires_grad_(False)
        self.theirs.load_state_dict(self.model.state_dict())
        self.robust: dict[str, float] = {}  # by contender
        self.batches: dict[str, int] = {}  # that ours attacked

    def baseline(self) -> None:
        """The reference style, batch by batch."""
        how = {"norm": "Linf", "eps": self.eps, "eps_iter": self.step_size, "steps": self.steps, "restarts": RESTARTS}
        parts = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        flags = [reference_style.evaluate(self.theirs, *part, **how) for part in parts]
        self.robust["reference style"] = float(torch.cat(flags).float().mean())

    def ours(self, precision: str, attack: FastPgd) -> None:
        """Repeated PGD on what still stands."""
        self.batches[precision] = 0

        def counted(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
            self.batches[precision] += 1
            return attack(model, x, y, **settings)

        how = {"norm": "Linf", "eps": self.eps, "step_size": self.step_size, "steps": self.steps}
        losses = (cross_entropy,) * (RESTARTS // 2) + (cw_loss,) * (RESTARTS - RESTARTS // 2)
        index = torch.arange(self.count, device=self.x.device)
        restarts = [functools.partial(counted, loss_fn=loss, **how) for loss in losses]
        state = repeated_pgd(
            self.model, self.x, self.y, index, restarts=restarts, eps=self.eps, batch_size=self.batch_size
        )
        self.robust[precision] = float(state.robust.float().mean())

    def floor(self, network: nn.Module, precision: str) -> float:
        """Seconds of the passes alone: of every batch without, of the batches attacked with `ours`."""
        attacked = BFloat16Twin(network) if precision == "bf16" else network
        part = self.x[: self.batch_size], self.y[: self.batch_size]
        with tf32(precision != "fp32"):
            one = pass_seconds(attacked, *part, "input", 10)
        number = self.batches.get(precision, RESTARTS * math.ceil(self.count / self.batch_size))
        return number * (self.steps * one + pass_seconds(network, *part, "forward", 10))

    def remark(self) -> str:
        """What each contender found."""
        return "robust accuracy: " + ", ".join(f"{name} {value:.1%}" for name, value in self.robust.items())


def evaluation_case(precisions: list[str], device: torch.device) -> Case:
    """Repeated PGD on LeNet5 trained shortly on digits drawn at 28x28, at a radius that about half of its margins exceed."""
    contest = Contest(device)
    run: dict[str, Callable[[], object]] = {"reference style": contest.baseline}
    floors: dict[str, Callable[[], float]] = {
        "reference style": functools.partial(contest.floor, contest.theirs, "reference style")
    }
    for precision in precisions:
        attack = FastPgd(contest.model, precision, rows=contest.rows)
        run[precision] = functools.partial(contest.ours, precision, attack)
        floors[precision] = functools.partial(contest.floor, contest.model, precision)
    title = f"evaluation, LeNet5, {contest.count} images, batch {contest.batch_size}, {RESTARTS} restarts x "
    title += f"{contest.steps} steps, eps {contest.eps:.3g}"
    return Case(title, contest.count, run, floors, contest.remark)


def _radius_of_half(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Just below half stand there, so that the last batch is not nearly empty."""
    with torch.no_grad():
        right = logit_margin(model(x), y) < 0
    shortest = AnPgd(InnerPgd("Linf", 20, soft_logit_margin), Search(logit_margin, 0.5))
    found = shortest(model, x[right], y[right], 0.1)
    margins = torch.zeros(len(x), device=x.device)
    margins[right] = found.eps
    return float(margins.quantile(0.55))


def _trained_on_digits(count: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet5 after 100 steps of ordinary training, in eval mode, and `count` images with labels."""
    data = load_dataset("digits", val_size=100, seed=0, device=torch.device("cpu"))

    def large(split: Split) -> tuple[Tensor, Tensor]:
        batch = split.everything()
        return F.interpolate(batch.x, (28, 28), mode="bilinear").contiguous().to(device), batch.y.to(device)

    torch.manual_seed(0)
    model = build_model("lenet5", 1, 28, 28, 10).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = large(data.train)
    for step in range(100):
        rows = torch.arange(step * 50, step * 50 + 50, device=device) % len(x)
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).mean().backward()
        optimizer.step()
    test, labels = large(data.test)
    rows = torch.arange(count, device=device) % len(test)
    return model.eval().requires_grad_(False), test[rows], labels[rows]
