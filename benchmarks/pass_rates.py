"""How many passes a second a network makes, of each kind that training has, and what each costs in FLOP.

python benchmarks/pass_rates.py [--network small_resnet] [--batch 128] [--device cpu] [--threads 1]

Random images of 3x32x32; the median of several. A pass is one image once forward, or once forward and backward.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import seconds
from hardware.fast_pgd import FastPgd
from losses import cross_entropy, soft_logit_margin
from networks.build import build_model

STEPS = 3  # of PGD, whose start and end are in its time


def passes(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name of a kind -> passes an image, and what makes them; in float32 or with bfloat16 in all of them."""
    attack = FastPgd(model, precision, rows=len(x) if x.is_cuda else None)
    how = {"loss_fn": soft_logit_margin, "norm": "Linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": STEPS}

    def forward() -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(x).float()

    def gradient() -> None:
        cross_entropy(forward(), y).mean().backward()
        model.zero_grad(set_to_none=True)

    return {
        "a step of PGD": (STEPS, lambda: attack(model, x, y, **how)),
        "forward, train mode": (1, torch.no_grad()(forward)),
        "forward and backward to the weights": (1, gradient),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="small_resnet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    torch.manual_seed(0)
    model = build_model(flags.network, 3, 32, 32, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.rand(1, 3, 32, 32))
    print(f"{flags.network}: {counter.get_total_flops() / 2e6:.4g} million multiply-adds forward")
    model = model.to(device, memory_format=torch.channels_last).train()
    x, y = torch.rand(flags.batch, 3, 32, 32, device=device), torch.randint(0, 10, (flags.batch,), device=device)
    for precision in ("fp32", "bf16"):
        for name, (each, run) in passes(model, x, y, precision).items():
            times = [seconds(run, device) for _ in range(flags.repeats + 2)][2:]  # the first two do not count
            print(f"{precision} {name}: {len(x) * each / statistics.median(times):.4g} passes a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
