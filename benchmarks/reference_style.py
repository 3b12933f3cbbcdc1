"""The MMA step and the evaluation in the plain way, as the yardstick of `benchmark.py` and of a test.

Written from the paper with advertorch's attack classes: eager, float32, NCHW, per-example eps in a Python dict read and
written with `.item()`, two backward passes with the first one's gradients parked in a copy of the network, the search
under autograd, every restart on every image.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluations.advertorch_compat import advertorch  # isort: skip

from advertorch.loss import CWLoss, logit_margin_loss, soft_logit_margin_loss

from config import Config

warnings.filterwarnings("ignore", message="indexing with dtype torch.uint8")


class SummedSlm(nn.Module):
    """Sum of soft logit margins, as a loss for advertorch's attacks."""

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return soft_logit_margin_loss(logits, y, reduction="sum")


ATTACKS = {"Linf": advertorch.attacks.LinfPGDAttack, "L2": advertorch.attacks.L2PGDAttack}


class ReferenceStyle:
    """One network in training."""

    def __init__(
        self, model: nn.Module, config: Config, optimizer: torch.optim.Optimizer, random_start: bool = True
    ) -> None:
        self.model, self.config, self.optimizer, self.random_start = model, config, optimizer, random_start
        self.eps: dict[int, float] = {}

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        """One optimizer step on (B, ...), (B,), (B,)."""
        model, config, alpha = self.model, self.config, self.config.clean_loss_coeff
        model.train()
        logits = model(x)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(logits, y).backward()
        parked = copy.deepcopy(model)
        for own, copied in zip(model.parameters(), parked.parameters(), strict=True):
            copied.grad = own.grad.clone()

        right = soft_logit_margin_loss(logits.detach(), y, reduction="none") < 0
        x_mixed, hinge = x.clone(), torch.ones(len(x), dtype=x.dtype, device=x.device)
        found = [0.0] * len(x)
        if right.any():
            start = torch.tensor(
                [max(config.attack_mineps, self.eps.get(i.item(), 0.0)) for i in index[right]], dtype=x.dtype
            )
            x_adv, eps = self.shortest(x[right], y[right], start.to(x.device))
            x_mixed[right] = x_adv
            hinge[right] = (eps < config.hinge_maxeps).to(x.dtype)
            for place, value in zip(right.nonzero().squeeze(1), eps, strict=True):
                found[place.item()] = value.item()

        self.optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model(x_mixed), y, reduction="none")
        ((losses * hinge).sum() / len(x)).backward()
        for own, copied in zip(model.parameters(), parked.parameters(), strict=True):
            own.grad = (1 - alpha) * own.grad + alpha * copied.grad
        self.optimizer.step()
        for i, value in zip(index, found, strict=True):
            self.eps[i.item()] = value

    def shortest(self, x: Tensor, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """AN-PGD on the right rows: the point on the boundary and its radius."""
        model, config = self.model, self.config
        model.eval()
        for p in model.parameters():
            p.requires_grad_(False)
        attack = ATTACKS[config.norm](
            model,
            loss_fn=SummedSlm(),
            eps=start,
            nb_iter=config.nb_iter,
            eps_iter=config.eps_iter_scale * start / config.nb_iter,
            rand_init=self.random_start,
        )
        x_adv = attack.perturb(x, y)
        for p in model.parameters():
            p.requires_grad_(True)
        model.train()

        shape = (-1, *[1] * (x.dim() - 1))
        direction = (x_adv - x) / (start + 1e-12).view(shape)
        low, high, eps = torch.zeros_like(start), torch.full_like(start, config.search_maxeps), start.clone()
        for _ in range(config.num_search_steps):
            loss = soft_logit_margin_loss(model((x + eps.view(shape) * direction).clamp(0, 1)), y, reduction="none")
            low[loss < 0] = eps[loss < 0]
            high[loss >= 0] = eps[loss >= 0]
            eps = (low + high) / 2
        model((x + eps.view(shape) * direction).clamp(0, 1))
        return x + eps.view(shape) * direction, eps


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, eps_iter: float, steps: int, restarts: int
) -> Tensor:
    """(N,) bool: right, and broken by none of the restarts; every restart attacks every image."""
    model.eval()
    with torch.no_grad():
        robust = logit_margin_loss(model(x), y, reduction="none") < 0
    for restart in range(restarts):
        loss = nn.CrossEntropyLoss(reduction="sum") if restart < restarts // 2 else CWLoss(reduction="sum")
        attack = ATTACKS[norm](model, loss_fn=loss, eps=eps, nb_iter=steps, eps_iter=eps_iter, rand_init=True)
        x_adv = attack.perturb(x, y)
        with torch.no_grad():
            robust &= logit_margin_loss(model(x_adv), y, reduction="none") < 0
    return robust
