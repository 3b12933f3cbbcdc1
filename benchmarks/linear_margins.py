"""AN-PGD's largest error against the closed-form margin of linear classifiers, both norms.

python benchmarks/linear_margins.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anpgd import anpgd
from errors import exits_on_user_error
from flags import Parser
from losses import soft_logit_margin
from utils import generator

MAX_EPS, SEARCH_STEPS, STEPS, COUNT, PIXELS = 0.2, 10, 40, 2000, 784


class TwoClasses(nn.Module):
    """Logits -+ w (x - 1/2) / 2: the margin is |w (x - 1/2)| over the dual norm of w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.randn(PIXELS, dtype=torch.float64, generator=generator(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = (x - 0.5) @ self.w / 2
        return torch.stack([-half, half], dim=1)


def largest_errors(norm: str, random_start: bool) -> tuple[float, float, float]:
    """Largest amount below and above the closed form, the latter also as a share of the margin; `COUNT` points with
    margins in (0.005, 0.15)."""
    model = TwoClasses()
    dual, unit = (model.w.abs().sum(), model.w.sign()) if norm == "Linf" else (model.w.norm(), model.w / model.w.norm())
    draws = generator(1)
    margin = 0.005 + 0.145 * torch.rand(COUNT, generator=draws, dtype=torch.float64)
    y = (torch.rand(COUNT, generator=draws) < 0.5).long()
    x = 0.5 + 0.02 * torch.randn(COUNT, PIXELS, generator=draws, dtype=torch.float64)
    distance = (x - 0.5) @ model.w / dual
    x = x + ((2 * y - 1) * margin - distance)[:, None] * unit
    start = 0.005 + 0.19 * torch.rand(COUNT, generator=draws, dtype=torch.float64)
    noise = torch.rand(COUNT, PIXELS, generator=draws, dtype=torch.float64) if random_start else None
    found = anpgd(
        model,
        x,
        y,
        norm=norm,
        start_eps=start,
        max_eps=MAX_EPS,
        steps=STEPS,
        step_scale=2.5,
        search_steps=SEARCH_STEPS,
        attack_loss_fn=soft_logit_margin,
        search_loss_fn=soft_logit_margin,
        noise=noise,
    )
    error = found.eps - margin
    return float(-error.min()), float(error.max()), float((error / margin).max())


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Run and print. Returns the exit status."""
    Parser(description="AN-PGD against the closed form on linear classifiers.", allow_abbrev=False).parse(argv)
    print(
        f"{COUNT} points, {PIXELS} pixels, N = {STEPS}, K = {SEARCH_STEPS}, eps_max = {MAX_EPS}: "
        f"the bisection's bracket is eps_max / 2^K = {MAX_EPS / 2**SEARCH_STEPS:.2e}"
    )
    for norm in ("Linf", "L2"):
        for random_start in (False, True):
            below, above, share = largest_errors(norm, random_start)
            start = "random start" if random_start else "zero start"
            print(f"{norm:5}{start:14} at most {below:.2e} below, {above:.2e} above ({share:.2%} of the margin)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
