"""Wall time, peak memory and the time of the passes alone, of contenders that take turns."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losses import cross_entropy, soft_logit_margin
from utils import frozen


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


def measure(case: Case, repeats: int, device: torch.device) -> list[dict[str, Any]]:
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
