"""Milliseconds of a training step and of an evaluation: ours in each precision and the plain version's, interleaved.

python benchmarks/benchmark.py [--device cuda] [--precision fp32 bf16] [--cases mnist-Linf-all evaluation]

Images are random or digits drawn large, and the learning rate is 0, so that every step does the same work. "all" right: each
example is attacked, the expensive case; "half": every second one. The floor is the time of the passes alone: their number times
the time of one, measured here (on CUDA launched one by one). Peak memory, on CUDA alone, is what a call needs beyond what lay there before.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import TRAINING, Case, evaluation_case, seconds, training_case
from config import PRECISIONS
from errors import UserError, exits_on_user_error
from flags import Parser, whole
from records.run_folder import environment
from utils import use_device, write_atomically
from validation import require_positive

CASES = [*(f"{name}-{share}" for name in TRAINING for share in ("all", "half")), "evaluation"]
COLUMNS = {  # of a row in the JSON -> its heading and how many decimals are printed
    "ms_median": ("ms", 1),
    "ms_min": ("min", 1),
    "ms_max": ("max", 1),
    "ratio": ("ratio", 2),
    "images_per_second": ("images/s", 1),
    "peak_mib": ("peak MiB", 1),
    "floor_ms": ("floor ms", 1),
    "time_over_floor": ("x floor", 2),
}


def peak_mib(fn: Callable[[], object], device: torch.device) -> float | None:
    """MiB of the GPU's memory that one call needs at most beyond what was allocated before it; None on a CPU."""
    if device.type != "cuda":
        fn()
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measure(case: Case, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a contender: times interleaved, in an order that turns."""
    # On a GPU the first call records what later ones replay, and its memory counts.
    peaks = {name: peak_mib(fn, device) for name, fn in case.run.items()}
    times: dict[str, list[float]] = {name: [] for name in case.run}
    for turn in range(repeats):
        names = list(case.run)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(1000 * seconds(case.run[name], device))
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        median, floor = statistics.median(found), 1000 * case.floor[name]()
        row = {"case": case.title, "contender": name, "ms_median": median, "ms_min": min(found), "ms_max": max(found)}
        row |= {"ratio": (rows[0]["ms_median"] if rows else median) / median}
        row |= {"images_per_second": 1000 * case.images / median, "peak_mib": peaks[name], "floor_ms": floor}
        rows.append({**row, "time_over_floor": median / floor, "remark": case.remark()})
    return rows


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON. Returns the exit status."""
    started = time.monotonic()
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; auto takes cuda where there is one")
    help_text = "ours in these (default: fp32 and bf16; on CUDA every one)"
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help=help_text)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--cifar_batch", type=whole, help="CIFAR-10's batch size (default: 128 on CUDA, 6 on a CPU)")
    parser.add_argument("--repeats", type=whole, help="times each is timed in a case (default: 20 on CUDA, 3 on a CPU)")
    parser.add_argument("--out", help="the JSON (default: benchmarks/<device>.json)")
    flags = argparse.Namespace(**parser.parse(argv))
    require_positive(flags, ("cifar_batch", "repeats"))
    if flags.cifar_batch == 1:
        raise UserError("--cifar_batch 1: give at least 2, of which half are attacked")
    device = use_device(flags.device, deterministic=False)
    on_cuda = device.type == "cuda"
    precisions = flags.precision or (list(PRECISIONS) if on_cuda else ["fp32", "bf16"])
    about = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    processor = next(iter(re.findall(r"model name\s*: (.+)", about)), "unknown")
    machine = {**environment(device), "processor": processor, "date": time.strftime("%Y-%m-%d")}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows = []
    for name in flags.cases:
        training, _, share = name.rpartition("-")
        batch = 50 if name.startswith("mnist") else flags.cifar_batch or (128 if on_cuda else 6)
        if name == "evaluation":
            case = evaluation_case(precisions, device)
        else:
            case = training_case(training, share, precisions, batch, device)
        found = measure(case, flags.repeats or (20 if on_cuda else 3), device)
        rows += found
        del case
        print(f"\n{found[0]['case']}" + (f"; {found[0]['remark']}" if found[0]["remark"] else ""))
        print(f"{'':20}" + "".join(f"{heading:>10}" for heading, _ in COLUMNS.values()))
        for row in found:
            shown = ((row[key], decimals) for key, (_, decimals) in COLUMNS.items())
            cells = [f"{'-':>10}" if value is None else f"{value:10.{decimals}f}" for value, decimals in shown]
            print(f"{row['contender']:20}" + "".join(cells), flush=True)
    out = Path(flags.out or Path(__file__).resolve().parent / f"{device.type}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n").encode())
    print(f"\nwritten: {out}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
