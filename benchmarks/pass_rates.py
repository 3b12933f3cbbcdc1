"""How many passes a second a network makes, of each kind that training has, and what each costs in FLOP.

python benchmarks/pass_rates.py [--network small_resnet] [--batch 128] [--device cpu] [--threads 1]

Random images of 3x32x32; the median of several. A pass is one image once forward, or once forward and backward.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import pass_seconds
from hardware.precision import BFloat16Twin
from networks.build import build_model

KINDS = {  # as `pass_seconds` calls them
    "input": "forward and backward to the image, as in PGD",
    "forward": "forward, train mode",
    "weights": "forward and backward to the weights",
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
        attacked = BFloat16Twin(model) if precision == "bf16" else copy.deepcopy(model).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for kind, text in KINDS.items():
                each = pass_seconds(attacked if kind == "input" else model, x, y, kind, flags.repeats)
                print(f"{precision} {text}: {len(x) / each:.4g} passes a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
