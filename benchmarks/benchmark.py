"""Milliseconds of a training step and of an evaluation, ours in each precision and the reference style's, interleaved.

python benchmarks/benchmark.py [--device cuda] [--precision fp32 bf16] [--cases mnist-Linf evaluation]

Images are random or digits drawn large, and the learning rate is 0, so that every step does the same work. "all" right:
each example is attacked, the expensive case; "half": every second one. The floor is the time of the passes alone: their
number times the time of one, measured here (on CUDA launched one by one). Peak memory is what a step needs beyond what lay there before it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.evaluation_case import evaluation_case
from benchmarks.timing import Case, measure
from benchmarks.training_cases import TRAINING, against_the_rule, check_case, layout_case, training_case
from config import PRECISIONS
from errors import UserError, exits_on_user_error
from records.run_folder import environment
from utils import use_device

LAYOUTS = ["layout-mnist-Linf", "layout-cifar10-Linf"]
CASES = [f"{name}-{share}" for name in TRAINING for share in ("all", "half")]
CASES += ["evaluation", "mnist-Linf-check", "cifar10-Linf-check", *LAYOUTS]


def print_rows(rows: list[dict[str, Any]], remark: str) -> None:
    print(f"\n{rows[0]['case']}" + (f"; {remark}" if remark else ""))
    print(
        f"{'':20}{'ms':>10}{'min':>10}{'max':>10}{'ratio':>8}{'images/s':>10}{'peak MiB':>10}{'floor ms':>10}{'of time':>9}{'x floor':>9}"
    )
    for row in rows:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        print(
            f"{row['contender']:20}{row['ms_median']:10.1f}{row['ms_min']:10.1f}{row['ms_max']:10.1f}{row['ratio']:8.2f}"
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
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=[*CASES, "layout"],
        default=CASES,
        metavar="CASE",
        help=", ".join([*CASES, "layout: both"]),
    )
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


def case_of(name: str, precisions: list[str], cifar_batch: int | None, device: torch.device) -> Case:
    """The case that a name of `CASES` means."""

    def batch(training: str) -> int:
        return 50 if training.startswith("mnist") else cifar_batch or (128 if device.type == "cuda" else 6)

    if name == "evaluation":
        return evaluation_case(precisions, device)
    if name.endswith("-check"):
        return check_case(name.removesuffix("-check"), precisions, device)
    if name in LAYOUTS:
        training = name.removeprefix("layout-")
        return layout_case(training, precisions, batch(training), device)
    training, share = name.rsplit("-", 1)
    return training_case(training, share, precisions, batch(training), device)


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
    for name in [part for asked in flags.cases for part in (LAYOUTS if asked == "layout" else [asked])]:
        case = case_of(name, precisions, flags.cifar_batch, device)
        found = measure(case, flags.repeats or (20 if on_cuda else 3), device)
        print_rows(found, case.remark())
        rows += [{**row, "remark": case.remark()} for row in found]
        for line in against_the_rule(found, precisions, device) if name in LAYOUTS else ():
            print(line)
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
