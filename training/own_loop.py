"""MMA in a training loop of one's own: any network, any optimizer, any loader that yields (x, y, index).

From outside this repository: `torch.hub.load(FOLDER, "mma_objective", source="local", count=…, norm=…, d_max=…, eps_min=…)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anpgd import AnPgd, Search
from losses import cross_entropy, soft_logit_margin
from networks.probes import probe
from objectives import AttackStart, Mma, StepResult
from pgd import GEOMETRY, InnerPgd
from processes.replica import Replica
from utils import START, generator

SEARCH_END = 1.05  # of the search, in units of d_max


class MmaObjective:
    """Leaves MMA's gradient in the network's parameters, and keeps the radius of each example from step to step.

    `eps` (count,) holds the radii, in the unit of images in [0, 1]; 0: wrong when last seen, or not seen yet.
    """

    def __init__(
        self, count: int, norm: str, d_max: float, eps_min: float, steps: int = 10, alpha: float = 1 / 3, seed: int = 0
    ) -> None:
        """count: training examples. d_max, eps_min: radii. steps: of PGD. alpha: weight of the clean loss.

        :raises ValueError: for a setting that means nothing.
        """
        if norm not in GEOMETRY:
            raise ValueError(f"norm {norm!r}: choose one of {', '.join(GEOMETRY)}")
        if not 0 < d_max < math.inf or (norm == "Linf" and d_max > 1):
            raise ValueError(f"d_max {d_max:g}: must be above 0 and finite, under Linf at most 1: images lie in [0, 1]")
        if not 0 < eps_min <= SEARCH_END * d_max:
            raise ValueError(
                f"eps_min {eps_min:g}: must be above 0 and at most {SEARCH_END} d_max = {SEARCH_END * d_max:g}"
            )
        if not isinstance(count, int) or not isinstance(steps, int) or count < 1 or steps < 1 or not 0 <= alpha <= 1:
            raise ValueError(f"count {count}, steps {steps}: whole numbers from 1; alpha {alpha:g}: between 0 and 1")
        search = Search(soft_logit_margin, SEARCH_END * d_max)
        shortest = AnPgd(InnerPgd(norm, steps, soft_logit_margin), search)
        self.loss = Mma(alpha, d_max, cross_entropy, cross_entropy, shortest)
        self.eps_min, self.seed = eps_min, seed
        self.eps = torch.zeros(count)
        self.step = 0  # calls so far; PGD's random start is a function of the seed and it
        self.probed = False  # whether the network was tried on one row

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> StepResult:
        """x (B, ...) images in [0, 1], y (B,) labels, index (B,) which examples they are.

        The network is in train mode; what its parameters' `grad` holds is added to, so clear it before.

        :raises ValueError: if of the first call images are not in [0, 1], labels negative or an example beyond `count`; later
            ones are not looked at, as on a GPU that waits.
        """
        if not self.probed:
            self._examine(x, y, index)
            # BatchNorm on vectors refuses the search of one row in train mode.
            try:
                one_row = probe(model, x[:1]).one_row
            except RuntimeError:  # it keeps a tensor with history, which cannot be copied
                one_row = False
            self.loss, self.probed = replace(self.loss, search_single_row=one_row), True
        self.eps, y, index = self.eps.to(x.device), y.long(), index.to(x.device).long()
        start = self.eps[index].clamp(min=self.eps_min).to(x)
        noise = torch.rand(x.shape, generator=generator(self.seed, START, self.step)).to(x)
        result = self.loss(Replica(model), x, y, AttackStart(start, noise), len(x))
        self.eps[index] = result.eps.to(self.eps)
        self.step += 1
        return result

    def _examine(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        if not ((x >= 0) & (x <= 1)).all():
            seen = f"from {x.min():.4g} to {x.max():.4g}"
            raise ValueError(
                f"images: {seen}, must lie in [0, 1]: scale them, and put any normalisation into the network"
            )
        for name, values in (("labels", y), ("index", index)):
            if values.shape != x.shape[:1] or values.is_floating_point() or bool((values < 0).any()):
                raise ValueError(
                    f"{name}: of shape {tuple(values.shape)}, {values.dtype}: must be {len(x)} integers from 0 up"
                )
        if len(index) and int(index.max()) >= len(self.eps):
            raise ValueError(f"index: {int(index.max())} of {len(self.eps)} training examples: count from 0")

    def state_dict(self) -> dict[str, Any]:
        """What a loop that goes on later needs beside network and optimizer; `torch.load(weights_only=True)` reads it."""
        return {"eps": self.eps.detach().cpu().clone(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of an objective with the same settings.

        :raises ValueError: if it is of another number of training examples.
        """
        if state["eps"].shape != self.eps.shape:
            raise ValueError(f"state: of {len(state['eps'])} training examples, here are {len(self.eps)}")
        self.eps, self.step = state["eps"].to(self.eps, copy=True), int(state["step"])
