"""Milliseconds of a training step and of an evaluation, ours in each precision and the reference style's, interleaved.

python benchmarks/benchmark.py [--device cuda] [--precision fp32 bf16] [--cases mnist-Linf evaluation]

Images are random or digits drawn large, and the learning rate is 0, so that every step does the same work. "all" right:
each example is attacked, the expensive case; "half": every second one. The floor is the time of the passes alone: their
number times the time of one, measured here (on CUDA launched one by one). Peak memory is what a step needs beyond what lay there before it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from advertorch_examples.models import LeNet5Madry, get_cifar10_wrn28_widen_factor

from anpgd import anpgd
from benchmarks import reference_style
from check import checker_of
from config import PRECISIONS, PRESETS, Config
from errors import UserError, exits_on_user_error
from evaluations.advertorch_compat import advertorch  # noqa: F401  before advertorch_examples
from evaluations.repeated_pgd import Images, Listener, Protocol, Running, clean_attacked, repeated_pgd
from hardware.fast_pgd import FastPgd
from hardware.optimizer import make_optimizer
from hardware.precision import BFloat16Twin, tf32
from loading.batches import Split
from loading.datasets import Dataset, load_dataset
from losses import cross_entropy, cw_loss, logit_margin, soft_logit_margin
from networks.models import build_model
from records.runlog import environment
from trainer import Trainer
from utils import frozen, use_device

TRAINING = {
    "mnist-Linf": ("mnist", "Linf", 0.45),
    "cifar10-Linf": ("cifar10", "Linf", 32 / 255),
    "cifar10-L2": ("cifar10", "L2", 1.0),
}
CASES = [f"{name}-{share}" for name in TRAINING for share in ("all", "half")]
CASES += ["evaluation", "mnist-Linf-check", "cifar10-Linf-check"]
RESTARTS = 10


class Case(NamedTuple):
    """What is timed: contenders by name, the passes each needs, and how many images one call handles."""

    title: str
    images: int
    run: dict[str, Callable[[], object]]
    floor: dict[str, Callable[[], float]]  # seconds that the passes alone need
    remark: Callable[[], str] = str


def seconds(fn: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    fn()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(fn: Callable[[], object], device: torch.device) -> float | None:
    """MiB that one call needs at most beyond what was allocated before it; on a CPU of resident memory, Linux only."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        fn()
        return (_status("VmHWM") - before) / 2**10
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def pass_seconds(model: nn.Module, x: Tensor, y: Tensor, kind: str, repeats: int) -> float:
    """Median time of one pass of a batch: "forward", "input" (forward and input gradient), or "both" (forward and the
    parameters' gradient)."""

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def input_gradient() -> None:
        images = x.detach().requires_grad_()
        torch.autograd.grad(soft_logit_margin(model(images), y).sum(), images)

    def parameter_gradient() -> None:
        cross_entropy(model(x), y).mean().backward()

    fn = {"forward": forward, "input": input_gradient, "both": parameter_gradient}[kind]
    fn()
    if kind == "input":
        with frozen(model):
            return statistics.median(seconds(fn, x.device) for _ in range(repeats))
    return statistics.median(seconds(fn, x.device) for _ in range(repeats))


def training_case(name: str, share: str, precisions: list[str], batch_size: int, device: torch.device) -> Case:
    """One training step on a batch whose examples are right as `share` says, always the same."""
    dataset, norm, hinge = TRAINING[name]
    config = replace(
        PRESETS[dataset, norm],
        hinge_maxeps=hinge,
        batch_size=batch_size,
        lr=((0, 0.0),),
        augment=False,
        weight_decay=0.0,
    )
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
    split = Split(images, y, torch.arange(batch_size, device=device))

    theirs = (LeNet5Madry() if dataset == "mnist" else get_cifar10_wrn28_widen_factor(4)).to(device)
    theirs.load_state_dict(model.state_dict())
    optimizer = make_optimizer(config.optimizer, theirs, lr=0.0, momentum=config.momentum)
    baseline = reference_style.ReferenceStyle(theirs, config, optimizer)
    run: dict[str, Callable[[], object]] = {"reference style": lambda: baseline.step(x, y, split.numbers)}
    floor = {"reference style": lambda: _step_floor(theirs, x, y, right, config, "fp32")}
    for precision in precisions:
        trainer = Trainer(replace(config, precision=precision), copy.deepcopy(model), Dataset(split, split, split, 10))
        run[precision] = trainer.train_step
        floor[precision] = lambda trainer=trainer, p=precision: _step_floor(trainer.model, x, y, right, config, p)
    return Case(f"{name}, {share} right, batch {batch_size}", batch_size, run, floor)


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


def _step_floor(
    model: nn.Module, x: Tensor, y: Tensor, right: int, config: Config, precision: str, repeats: int = 3
) -> float:
    """2 passes with the parameters' gradient, N with the input's, and the search's forward passes."""
    model = copy.deepcopy(model)
    batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    searches = config.num_search_steps + batchnorm  # without BatchNorm the last one is not needed
    with tf32(precision != "fp32"):
        both = pass_seconds(model.train(), x, y, "both", repeats)
        search = pass_seconds(model, x[:right], y[:right], "forward", repeats)
        attacked = BFloat16Twin(model) if precision == "bf16" else model.eval()
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
    data = load_dataset("digits", "", seed=0, train_size=None, val_size=100, test_size=None, device=torch.device("cpu"))

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


def measure(case: Case, repeats: int, device: torch.device) -> list[dict]:
    """One row a contender: times interleaved, in an order that turns."""
    if device.type != "cuda":  # there the first call records what later ones replay, and its memory counts
        for fn in case.run.values():
            fn()
    peaks = {name: peak_mib(fn, device) for name, fn in case.run.items()}
    times: dict[str, list[float]] = {name: [] for name in case.run}
    for turn in range(repeats):
        names = list(case.run)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(seconds(case.run[name], device))
    rows = []
    for name, measured in times.items():
        median = statistics.median(measured)
        rows.append(
            {
                "case": case.title,
                "contender": name,
                "ms_median": 1000 * median,
                "ms_min": 1000 * min(measured),
                "ms_max": 1000 * max(measured),
                "ratio": statistics.median(times[next(iter(times))]) / median,
                "images_per_second": case.images / median,
                "peak_mib": peaks[name],
                "floor_ms": 1000 * case.floor[name](),
            }
        )
        rows[-1]["time_over_floor"] = rows[-1]["ms_median"] / rows[-1]["floor_ms"]
    return rows


def print_rows(rows: list[dict], remark: str) -> None:
    print(f"\n{rows[0]['case']}" + (f"; {remark}" if remark else ""))
    print(
        f"{'':16}{'ms':>10}{'min':>10}{'max':>10}{'ratio':>8}{'images/s':>10}{'peak MiB':>10}{'floor ms':>10}{'of time':>9}{'x floor':>9}"
    )
    for row in rows:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        print(
            f"{row['contender']:16}{row['ms_median']:10.1f}{row['ms_min']:10.1f}{row['ms_max']:10.1f}{row['ratio']:8.2f}"
            f"{row['images_per_second']:10.1f}{peak:>10}{row['floor_ms']:10.1f}"
            f"{1 / row['time_over_floor']:9.0%}{row['time_over_floor']:9.2f}",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; auto takes cuda where there is one")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=None,
        help="ours in these (default: fp32 and bf16; on CUDA tf32 too)",
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--cifar_batch", type=int, help="CIFAR-10's batch size (default: 128 on CUDA, 6 on a CPU)")
    parser.add_argument(
        "--repeats", type=int, help="times each contender is timed in a case (default: 20 on CUDA, 3 on a CPU)"
    )
    parser.add_argument("--out", type=Path, help="the JSON (default: benchmarks/<device>.json)")
    flags = parser.parse_args()
    for name in ("cifar_batch", "repeats"):
        value = getattr(flags, name)
        if value is not None and value < (2 if name == "cifar_batch" else 1):
            raise UserError(f"--{name} {value}: too small")
    return flags


@exits_on_user_error
def main() -> int:
    """Measure, print, write the JSON."""
    started = time.monotonic()
    flags = parse()
    device = use_device(flags.device, deterministic=False)
    on_cuda = device.type == "cuda"
    precisions = flags.precision or (list(PRECISIONS) if on_cuda else ["fp32", "bf16"])
    machine = {**environment(device), "processor": processor(), "date": time.strftime("%Y-%m-%d")}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows = []
    for name in flags.cases:
        if name == "evaluation":
            case = evaluation_case(precisions, device)
        elif name.endswith("-check"):
            case = check_case(name.removesuffix("-check"), precisions, device)
        else:
            training, share = name.rsplit("-", 1)
            batch_size = 50 if training.startswith("mnist") else flags.cifar_batch or (128 if on_cuda else 6)
            case = training_case(training, share, precisions, batch_size, device)
        found = measure(case, flags.repeats or (20 if on_cuda else 3), device)
        print_rows(found, case.remark())
        rows += [{**row, "remark": case.remark()} for row in found]
        del case
    out = flags.out or Path(__file__).resolve().parent.parent / "benchmarks" / f"{device.type}.json"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): name another file") from None
    print(f"\nwritten: {out}; {time.monotonic() - started:.0f} s")
    return 0


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
