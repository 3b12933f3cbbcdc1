"""What `benchmark.py` times: one training step, always the same, and repeated PGD on a robust network.

B batch, ... any image shape. Images in [0, 1]. A case's floor is the time of its forward and backward passes alone.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reference_style  # isort: skip  # first: it makes the next import work

from advertorch_examples.models import LeNet5Madry, get_cifar10_wrn28_widen_factor

from anpgd import AnPgd, Search
from config import PRESETS, Config
from evaluations.repeated_pgd import RESTARTS, repeated_pgd
from hardware.fast_pgd import FastPgd
from hardware.layout import lay_out, layout_for
from hardware.precision import BFloat16Twin, tf32
from loading.batches import Split
from loading.datasets import Dataset, load_dataset
from losses import cross_entropy, logit_margin, soft_logit_margin
from networks.build import build_model
from pgd import InnerPgd
from records.checkpoint import load_weights
from records.pretrained import load_pretrained
from trainer import Trainer
from utils import frozen, has_batchnorm

ROBUST = "mnist-Linf-MMA-0.45-sd0-fast"  # the committed run whose network is evaluated
PLAIN = "reference style"  # the contender of `reference_style.py`; the others are named by their precision
TRAINING = {
    "mnist-Linf": ("mnist", "Linf", 0.45),
    "cifar10-Linf": ("cifar10", "Linf", 32 / 255),
    "cifar10-L2": ("cifar10", "L2", 1.0),
}


class Case(NamedTuple):
    """Contenders by name: what is timed of each, and how many seconds its passes alone need."""

    title: str
    images: int  # that one call handles
    run: dict[str, Callable[[], object]]
    floor: dict[str, Callable[[], float]]
    remark: Callable[[], str] = str


def seconds(fn: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    fn()
    wait()
    return time.perf_counter() - start


def pass_seconds(model: nn.Module, x: Tensor, y: Tensor, kind: str, repeats: int = 3) -> float:
    """Median time of one pass of a batch: "forward", "input" (with the images' gradient) or "weights" (with theirs)."""

    def one() -> None:
        images = x.detach().requires_grad_(kind == "input")
        with torch.set_grad_enabled(kind != "forward"), frozen(model) if kind == "input" else nullcontext():
            logits = model(images)
            if kind == "input":
                torch.autograd.grad(soft_logit_margin(logits, y).sum(), images)
            elif kind == "weights":
                cross_entropy(logits, y).mean().backward()

    one()
    return statistics.median(seconds(one, x.device) for _ in range(repeats))


def training_case(name: str, share: str, precisions: list[str], batch_size: int, device: torch.device) -> Case:
    """One step on random images, of which "all" or "half" are right and attacked; at a rate of 0 the next is the same."""
    dataset, norm, hinge = TRAINING[name]
    same_work = {"lr": ((0, 0.0),), "augment": False, "weight_decay": 0.0}
    config = replace(PRESETS[dataset, norm], hinge_maxeps=hinge, batch_size=batch_size, **same_work)
    shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, *shape), generator=draws, dtype=torch.uint8).to(device)
    x, index = images.float() / 255, torch.arange(batch_size, device=device)
    torch.manual_seed(0)
    model = build_model(config.network, *shape, 10).to(device)
    with torch.no_grad():  # labels: what it says in train mode, its last layer sharpened until p_y > 1/2
        logits = copy.deepcopy(model).train()(x)
        top = logits.topk(2, dim=1).values
        for p in [module for module in model.modules() if isinstance(module, nn.Linear)][-1].parameters():
            p.mul_(4 / (top[:, 0] - top[:, 1]).min())
    y = logits.argmax(1)
    if share == "half":
        y[::2] = (y[::2] + 1) % 10
    right = batch_size if share == "all" else batch_size // 2
    assert (soft_logit_margin(copy.deepcopy(model).train()(x), y) < 0).sum() == right

    theirs = (LeNet5Madry() if dataset == "mnist" else get_cifar10_wrn28_widen_factor(4)).to(device)
    theirs.load_state_dict(model.state_dict())
    plain = reference_style.ReferenceStyle(theirs, config, torch.optim.SGD(theirs.parameters(), lr=0.0))
    run: dict[str, Callable[[], object]] = {PLAIN: lambda: plain.step(x, y, index)}
    floor = {PLAIN: lambda: _step_floor(theirs, x, y, right, config)}
    for precision in precisions:
        own = replace(config, precision=precision)
        laid_out = copy.deepcopy(model)
        lay_out(laid_out, True, layout_for(device, precision, False))
        run[precision] = Trainer(own, laid_out, Dataset(*[Split(images, y, index)] * 3, 10)).train_step
        floor[precision] = functools.partial(_step_floor, laid_out, x, y, right, own)
    return Case(f"{name}, {share} right, batch {batch_size}", batch_size, run, floor)


def _step_floor(model: nn.Module, x: Tensor, y: Tensor, right: int, config: Config) -> float:
    """Seconds of 2 passes with the weights' gradient, N with the images' and the search's forward passes."""
    model = copy.deepcopy(model)
    searches = config.num_search_steps + has_batchnorm(model)  # without BatchNorm the last one is not needed
    bfloat16 = torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16_all")
    with tf32(config.precision != "fp32"), bfloat16:
        weights = pass_seconds(model.train(), x, y, "weights")
        search = pass_seconds(model, x[:right], y[:right], "forward")
        attacked = BFloat16Twin(model) if config.precision.startswith("bf16") else model.eval()
        attack = pass_seconds(attacked, x[:right], y[:right], "input")
    return 2 * weights + config.nb_iter * attack + searches * search


def evaluation_case(precisions: list[str], device: torch.device, restarts: int = 10) -> Case:
    """Repeated PGD on MNIST's LeNet5 and digits drawn at 28x28, at a radius that about half of its margins exceed."""
    count, steps, batch_size = (1000, 100, 200) if device.type == "cuda" else (400, 3, 50)
    source = load_pretrained(ROBUST)
    model = build_model("lenet5", 1, 28, 28, 10).to(device).eval().requires_grad_(False)
    load_weights(model, source.weights, source.path)
    test = load_dataset("digits", val_size=100, seed=0, device=device).test.everything()
    rows = torch.arange(count, device=device) % len(test.y)
    x, y = F.interpolate(test.x, (28, 28), mode="bilinear").contiguous()[rows], test.y[rows]
    right, margins = logit_margin(model(x), y) < 0, torch.zeros(count, device=device)
    anpgd = AnPgd(InnerPgd("Linf", 20, soft_logit_margin), Search(logit_margin, 0.5))
    margins[right] = anpgd(model, x[right], y[right], 0.1).eps
    eps = float(margins.quantile(0.55))  # just below half stand there, so that the last batch is not nearly empty
    index, size = torch.arange(count, device=device), 2.5 * eps / steps
    theirs = LeNet5Madry().to(device).requires_grad_(False)
    theirs.load_state_dict(model.state_dict())
    robust: dict[str, float] = {}  # by contender
    batches = {PLAIN: restarts * math.ceil(count / batch_size)}  # that each attacks

    def plain() -> None:
        how = {"norm": "Linf", "eps": eps, "eps_iter": size, "steps": steps, "restarts": restarts}
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        standing = torch.cat([reference_style.evaluate(theirs, *part, **how) for part in parts])
        robust[PLAIN] = float(standing.float().mean())

    def ours(precision: str, attack: FastPgd) -> None:
        batches[precision] = 0

        def counted(*images: object, **how: object) -> Tensor:
            batches[precision] += 1
            return attack(*images, **how)

        protocol = RESTARTS["paper"](counted, restarts, norm="Linf", eps=eps, step_size=size, steps=steps)
        found = repeated_pgd(model, x, y, index, restarts=protocol, eps=eps, batch_size=batch_size)
        robust[precision] = float(found.robust.float().mean())

    def floor(precision: str) -> float:
        network = theirs if precision == PLAIN else model
        attacked = BFloat16Twin(network) if precision.startswith("bf16") else network
        part = x[:batch_size], y[:batch_size]
        with tf32(precision not in ("fp32", PLAIN)):
            one = pass_seconds(attacked, *part, "input", 10)
        return batches[precision] * (steps * one + pass_seconds(network, *part, "forward", 10))

    run: dict[str, Callable[[], object]] = {PLAIN: plain}
    for precision in precisions:
        attack = FastPgd(model, precision, rows=batch_size if device.type == "cuda" else None)
        run[precision] = functools.partial(ours, precision, attack)
    floors = {name: functools.partial(floor, name) for name in run}
    size_of_it = f"{count} images, batch {batch_size}, {restarts} restarts x {steps} steps, eps {eps:.3g}"

    def remark() -> str:
        return "robust accuracy: " + ", ".join(f"{name} {share:.1%}" for name, share in robust.items())

    return Case(f"evaluation, LeNet5, {size_of_it}", count, run, floors, remark)
