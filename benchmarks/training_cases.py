"""What `benchmark.py` times of training: a step, the check, and a step in each memory layout."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from advertorch_examples.models import LeNet5Madry, get_cifar10_wrn28_widen_factor
from torch import Tensor, nn

from benchmarks import reference_style
from benchmarks.timing import Case, pass_seconds
from check import checker_of
from config import PRESETS, Config
from evaluations.advertorch_compat import advertorch  # noqa: F401  before advertorch_examples
from hardware.cuda_graph import Captured
from hardware.fast_pgd import FastPgd
from hardware.layout import Layout, lay_out, layout_for
from hardware.optimizer import make_optimizer
from hardware.precision import BFloat16Twin, tf32
from loading.batches import Split
from loading.datasets import Dataset
from losses import soft_logit_margin
from networks.build import build_model
from trainer import Trainer

TRAINING = {
    "mnist-Linf": ("mnist", "Linf", 0.45),
    "cifar10-Linf": ("cifar10", "Linf", 32 / 255),
    "cifar10-L2": ("cifar10", "L2", 1.0),
}


class Problem(NamedTuple):
    """A step that always does the same work: the learning rate is 0."""

    config: Config
    model: nn.Module
    split: Split  # one batch
    right: int  # examples that are right, and attacked

    @property
    def x(self) -> Tensor:
        return self.split.everything().x


def _problem(name: str, share: str, batch_size: int, device: torch.device) -> Problem:
    """A batch whose examples are right as `share` says."""
    dataset, norm, hinge = TRAINING[name]
    frozen_rate = {"lr": ((0, 0.0),), "augment": False, "weight_decay": 0.0}
    config = replace(PRESETS[dataset, norm], hinge_maxeps=hinge, batch_size=batch_size, **frozen_rate)
    shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, *shape), generator=draws, dtype=torch.uint8).to(device)
    x = images.float() / 255
    torch.manual_seed(0)
    model = build_model(config.network, *shape, 10).to(device)
    y = _sure_of(model, x)
    if share == "half":
        y[::2] = (y[::2] + 1) % 10
    right = int((soft_logit_margin(copy.deepcopy(model).train()(x), y) < 0).sum())
    assert right == (batch_size if share == "all" else batch_size // 2), f"{right} right examples"
    return Problem(config, model, Split(images, y, torch.arange(batch_size, device=device)), right)


def training_case(name: str, share: str, precisions: list[str], batch_size: int, device: torch.device) -> Case:
    """One training step, always the same."""
    problem = _problem(name, share, batch_size, device)
    config, x, split = problem.config, problem.x, problem.split
    theirs = (LeNet5Madry() if config.dataset == "mnist" else get_cifar10_wrn28_widen_factor(4)).to(device)
    theirs.load_state_dict(problem.model.state_dict())
    optimizer = make_optimizer(config.optimizer, theirs, lr=0.0, momentum=config.momentum)
    baseline = reference_style.ReferenceStyle(theirs, config, optimizer)
    run: dict[str, Callable[[], object]] = {"reference style": lambda: baseline.step(x, split.labels, split.numbers)}
    floor = {"reference style": lambda: _step_floor(theirs, problem, "fp32")}
    for precision in precisions:
        trainer = _trainer(problem, precision, layout_for(device, precision, False))
        run[precision] = trainer.train_step
        floor[precision] = lambda trainer=trainer, p=precision: _step_floor(trainer.model, problem, p)
    return Case(f"{name}, {share} right, batch {batch_size}", batch_size, run, floor)


def _trainer(problem: Problem, precision: str, layout: Layout) -> Trainer:
    model = copy.deepcopy(problem.model)
    lay_out(model, True, layout)
    trainer = Trainer(replace(problem.config, precision=precision), model, Dataset(*[problem.split] * 3, 10))
    trainer.attack.tune = layout.tune
    if isinstance(trainer.gradient, Captured):
        trainer.gradient.tune = layout.tune
    return trainer


def _sure_of(model: nn.Module, x: Tensor) -> Tensor:
    """Labels the network agrees with in train mode on this batch; its last layer is sharpened until each p_y > 1/2."""
    probe = copy.deepcopy(model).train()
    with torch.no_grad():
        logits = probe(x)
        top = logits.topk(2, dim=1).values
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        for p in last.parameters():
            p.mul_(4 / (top[:, 0] - top[:, 1]).min())
    return logits.argmax(1)


def _step_floor(model: nn.Module, problem: Problem, precision: str, repeats: int = 3) -> float:
    """2 passes with the parameters' gradient, N with the input's, and the search's forward passes."""
    model, config, right = copy.deepcopy(model), problem.config, problem.right
    x, y = problem.x, problem.split.labels
    batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    searches = config.num_search_steps + batchnorm  # without BatchNorm the last one is not needed
    with tf32(precision != "fp32"):
        both = pass_seconds(model.train(), x, y, "both", repeats)
        search = pass_seconds(model, x[:right], y[:right], "forward", repeats)
        attacked = BFloat16Twin(model) if precision.startswith("bf16") else model.eval()
        attack = pass_seconds(attacked, x[:right], y[:right], "input", repeats)
    return 2 * both + config.nb_iter * attack + searches * search


def check_case(name: str, precisions: list[str], device: torch.device) -> Case:
    """The per-epoch check on right images; against the first of `precisions`, the reference style has none of its own."""
    dataset, norm, hinge = TRAINING[name]
    config = replace(PRESETS[dataset, norm], hinge_maxeps=hinge)
    shape, count = ((1, 28, 28), 100) if dataset == "mnist" else ((3, 32, 32), 8)
    count = 1000 if device.type == "cuda" else count
    images = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(0)
    model = build_model(config.network, *shape, 10).to(device).eval()
    with torch.no_grad():
        y = model(images.to(device).float() / 255).argmax(1)
    split = Split(images.to(device), y, torch.arange(count, device=device))
    rows = config.eval_batch_size if device.type == "cuda" else None
    run, floor = {}, {}
    for precision in precisions:
        attack = FastPgd(model, precision, rows=rows)
        run[precision] = lambda attack=attack: checker_of(config, attack)(model, split)
        floor[precision] = lambda p=precision: _check_floor(model, split, config, p)
    return Case(f"{name}, per-epoch check, {count} images (15 000 in a run)", count, run, floor)


def _check_floor(model: nn.Module, split: Split, config: Config, precision: str) -> float:
    """N passes with the input's gradient, K + 2 without, for each batch."""
    x, y, _ = split.batch(torch.arange(min(len(split), config.eval_batch_size)))
    attacked = BFloat16Twin(model) if precision == "bf16" else model
    with tf32(precision != "fp32"):
        one = pass_seconds(attacked, x, y, "input", 3)
        return (
            len(split)
            / len(x)
            * (config.nb_iter * one + (config.num_search_steps + 2) * pass_seconds(model, x, y, "forward", 3))
        )


def layout_name(precision: str, layout: Layout) -> str:
    """Of a contender."""
    return f"{precision} {'NHWC' if layout.channels_last else 'NCHW'}{' timed' if layout.tune else ''}"


def layout_case(name: str, precisions: list[str], batch_size: int, device: torch.device) -> Case:
    """A step with every example right, in each layout; kernels timed by cuDNN or not, where there is cuDNN."""
    problem = _problem(name, "all", batch_size, device)
    run: dict[str, Callable[[], object]] = {}
    floor: dict[str, Callable[[], float]] = {}
    timed = (False, True) if device.type == "cuda" else (False,)
    for precision, last, tune in itertools.product(precisions, (False, True), timed):
        trainer = _trainer(problem, precision, Layout(last, tune))
        contender = layout_name(precision, Layout(last, tune))
        run[contender] = trainer.train_step
        floor[contender] = lambda model=trainer.model, p=precision: _step_floor(model, problem, p)
    said = ", ".join(layout_name(p, layout_for(device, p, False)) for p in precisions)
    return Case(f"{name}, memory layouts, batch {batch_size}", batch_size, run, floor, lambda: f"the rule says {said}")


def against_the_rule(rows: list[dict[str, Any]], precisions: list[str], device: torch.device) -> list[str]:
    """One line for each precision in which another layout than the rule's was faster, medians of the rows of one case."""
    lines = []
    for precision in precisions:
        times = {
            str(row["contender"]): row["ms_median"] for row in rows if str(row["contender"]).split()[0] == precision
        }
        ours, fastest = layout_name(precision, layout_for(device, precision, False)), min(times, key=times.__getitem__)
        if fastest != ours:
            lines.append(
                f"the rule is wrong here: {fastest} takes {times[fastest]:.1f} ms, {ours} {times[ours]:.1f} ms"
            )
    return lines
