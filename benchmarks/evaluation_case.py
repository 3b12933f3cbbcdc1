"""What `benchmark.py` times of evaluation: repeated PGD on a network that is a little robust."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from advertorch_examples.models import LeNet5Madry
from torch import Tensor, nn

from anpgd import anpgd
from benchmarks import reference_style
from benchmarks.timing import Case, pass_seconds
from evaluations.advertorch_compat import advertorch  # noqa: F401  before advertorch_examples
from evaluations.repeated_pgd import Images, Listener, Protocol, Running, clean_attacked, repeated_pgd
from hardware.fast_pgd import FastPgd
from hardware.precision import BFloat16Twin, tf32
from loading.batches import Split
from loading.datasets import Sizes, Source, load_dataset
from losses import cross_entropy, cw_loss, logit_margin, soft_logit_margin
from networks.build import build_model

RESTARTS = 10


def evaluation_case(precisions: list[str], device: torch.device) -> Case:
    """Repeated PGD on LeNet5 trained shortly on digits drawn at 28x28, at a radius that about half of its margins exceed."""
    count, steps, batch_size = (1000, 100, 200) if device.type == "cuda" else (400, 3, 50)
    model, x, y = _trained_on_digits(count, device)
    with torch.no_grad():
        right = logit_margin(model(x), y) < 0
    found = anpgd(
        model,
        x[right],
        y[right],
        norm="Linf",
        start_eps=0.1,
        max_eps=0.5,
        steps=20,
        step_scale=2.5,
        search_steps=10,
        attack_loss_fn=soft_logit_margin,
        search_loss_fn=logit_margin,
        noise=None,
    )
    margins = torch.zeros(count, device=device)
    margins[right] = found.eps
    eps = float(margins.quantile(0.55))  # just below half stand, so that the last batch is not nearly empty
    theirs = LeNet5Madry().to(device).requires_grad_(False)
    theirs.load_state_dict(model.state_dict())
    robust: dict[str, float] = {}
    batches: dict[str, int] = {}

    def baseline() -> None:
        flags = [
            reference_style.evaluate(
                theirs, *part, norm="Linf", eps=eps, eps_iter=2.5 * eps / steps, steps=steps, restarts=RESTARTS
            )
            for part in zip(x.split(batch_size), y.split(batch_size), strict=True)
        ]
        robust["reference style"] = float(torch.cat(flags).float().mean())

    def ours(precision: str, attack: FastPgd) -> None:
        batches[precision] = 0

        def count_batch(*_: int) -> None:
            batches[precision] += 1

        losses = (cross_entropy,) * (RESTARTS // 2) + (cw_loss,) * (RESTARTS - RESTARTS // 2)
        protocol = Protocol(losses, "Linf", eps, 2.5 * eps / steps, steps, seed=0)
        images, portions = Images(x, y, torch.arange(count, device=device)), Running(batch_size, attack)
        clean = clean_attacked(model, images, portions)
        state = repeated_pgd(model, images, protocol, clean, portions, Listener(count_batch))
        robust[precision] = float(state.robust.float().mean())

    def floor(network: nn.Module, precision: str) -> float:
        attacked = BFloat16Twin(network) if precision == "bf16" else network
        part = x[:batch_size], y[:batch_size]
        with tf32(precision != "fp32"):
            one = pass_seconds(attacked, *part, "input", 10)
        number = batches.get(precision, RESTARTS * math.ceil(count / batch_size))
        return number * (steps * one + pass_seconds(network, *part, "forward", 10))

    run: dict[str, Callable[[], object]] = {"reference style": baseline}
    floors = {"reference style": lambda: floor(theirs, "reference style")}
    for precision in precisions:
        attack = FastPgd(model, precision, rows=batch_size if device.type == "cuda" else None)
        run[precision] = lambda precision=precision, attack=attack: ours(precision, attack)
        floors[precision] = lambda precision=precision: floor(model, precision)
    title = (
        f"evaluation, LeNet5, {count} images, batch {batch_size}, {RESTARTS} restarts x {steps} steps, eps {eps:.3g}"
    )
    return Case(
        title, count, run, floors, lambda: "robust accuracy: " + ", ".join(f"{k} {v:.1%}" for k, v in robust.items())
    )


def _trained_on_digits(count: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet5 after 100 steps of ordinary training, in eval mode, and `count` images with labels."""
    data = load_dataset(Source("digits"), Sizes(val=100), seed=0, device=torch.device("cpu"))

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
