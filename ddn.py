"""Decoupled direction and norm (Rony et al. 2019): the nearest adversarial image under L2, as their training attacks.

B batch, ... any image shape. Images in [0, 1]; radii (B,) in the same unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losses import logit_margin
from pgd import GEOMETRY, LossFn, project_l2
from utils import eval_mode, frozen, per_row

START = 1.0  # radius of the first step, at most
GAMMA = 0.05  # by which the radius shrinks where the image is misclassified, and grows where it is not


@dataclass(frozen=True)
class Ddn:
    """Their algorithm 1, then into the ball: called as `pgd.InnerPgd` is, so that `objectives.Adversarial` trains on it."""

    steps: int  # passes of each image
    loss_fn: LossFn  # which the direction ascends
    odi_steps: int = 0  # there is no random start

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        eps: Tensor,
        noise: Tensor | None = None,
        odi_weights: Tensor | None = None,
    ) -> Tensor:
        """(B, ...), (B,), (B,) -> (B, ...): the nearest misclassified image met, else the last one, brought within eps of x.

        The step size falls from 1 to 0.01 by a cosine. noise, odi_weights: not used. The model runs in eval mode.
        """
        geometry, delta, radius = GEOMETRY["L2"], torch.zeros_like(x), eps.clamp(max=START)
        nearest, distance = delta, torch.full_like(eps, math.inf)
        with eval_mode(model), frozen(model), torch.enable_grad():
            for step in range(self.steps):
                x_adv = (x + delta).detach().requires_grad_()
                logits = model(x_adv)
                (gradient,) = torch.autograd.grad(self.loss_fn(logits, y).sum(), x_adv)
                wrong, length = logit_margin(logits.detach(), y) >= 0, geometry.length(delta)
                nearer = wrong & (length < distance)
                nearest = torch.where(per_row(nearer, x), delta, nearest)
                distance = torch.where(nearer, length, distance)
                radius = radius * torch.where(wrong, 1 - GAMMA, 1 + GAMMA)
                size = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
                delta = delta + size * geometry.ascent(gradient).nan_to_num(nan=0.0)
                shrink = radius / geometry.length(delta).clamp(min=torch.finfo(x.dtype).tiny)
                delta = (x + delta * per_row(shrink, x)).clamp(0, 1) - x
        delta = torch.where(per_row(distance.isfinite(), x), nearest, delta)
        return (x + project_l2(delta, eps)).detach()
