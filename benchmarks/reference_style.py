"""MMA training in a hundred lines: the paper's two algorithms and its evaluation, written as plainly as they go.

python benchmarks/reference_style.py     trains on scikit-learn's digits and attacks what it trained; a minute

PGD is advertorch's; everything else is here, eager and in float32. `objectives.py`, `anpgd.py` and `trainer.py` do the same
faster and resume: tests/hardware/test_fast_paths.py shows that the gradient of a step is the same, benchmark.py times both.
B batch, ... any image shape, C classes. Images in [0, 1]; a radius (eps) and a margin are distances in the same unit.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, Config
from evaluations.advertorch_compat import advertorch

ATTACKS = {"Linf": advertorch.attacks.LinfPGDAttack, "L2": advertorch.attacks.L2PGDAttack}


def slm(logits: Tensor, y: Tensor) -> Tensor:
    """(B, C), (B,) -> (B,): soft logit margin, logsumexp of the wrong logits minus the true one; < 0 where p_y > 1/2."""
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


class ReferenceStyle:
    """MMA training of one network (paper, algorithm 2)."""

    def __init__(
        self, model: nn.Module, config: Config, optimizer: torch.optim.Optimizer, random_start: bool = True
    ) -> None:
        self.model, self.config, self.optimizer, self.random_start = model, config, optimizer, random_start
        self.eps: dict[int, float] = {}  # number of an example -> its margin when it was last seen, 0 if it was wrong

    def step(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        """One optimizer step on (B, ...) images, their (B,) labels and their (B,) numbers in the training set."""
        model, config, alpha = self.model.train(), self.config, self.config.clean_loss_coeff
        self.optimizer.zero_grad()
        logits = model(x)
        (alpha * cross_entropy(logits, y)).backward()

        # Only an example that is right has a margin to enlarge: it moves to where its loss crosses the boundary.
        right = slm(logits.detach(), y) < 0
        x_mixed, margins = x.clone(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if right.any():
            last_seen = [self.eps.get(number, 0.0) for number in index[right].tolist()]
            start = torch.tensor(last_seen, dtype=x.dtype, device=x.device).clamp(min=config.attack_mineps)
            x_mixed[right], margins[right] = self.anpgd(x[right], y[right], start)

        # The loss there, unless the margin exceeds d_max already; of an example that is wrong, where it is.
        counts = ~right | (margins < config.hinge_maxeps)
        loss = (counts * cross_entropy(model(x_mixed), y, reduction="none")).sum() / len(x)
        ((1 - alpha) * loss).backward()  # adds to the clean loss's gradient
        self.optimizer.step()
        self.eps.update(zip(index.tolist(), margins.tolist(), strict=True))

    def anpgd(self, x: Tensor, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """AN-PGD (algorithm 1) from (B,) radii: the (B, ...) points found on the boundary, and their (B,) distances."""
        model, config, shape = self.model, self.config, (-1, *[1] * (x.dim() - 1))
        model.eval().requires_grad_(False)
        steps = {"eps": start, "eps_iter": config.eps_iter_scale * start / config.nb_iter, "nb_iter": config.nb_iter}
        summed = lambda logits, y: slm(logits, y).sum()  # noqa: E731
        attack = ATTACKS[config.norm](model, loss_fn=summed, rand_init=self.random_start, **steps)
        direction = (attack.perturb(x, y) - x) / (start + 1e-12).view(shape)
        model.train().requires_grad_(True)  # the search uses this batch's own BatchNorm statistics

        low, high, eps = torch.zeros_like(start), torch.full_like(start, config.search_maxeps), start
        with torch.no_grad():
            for _ in range(config.num_search_steps):
                inside = slm(model((x + eps.view(shape) * direction).clamp(0, 1)), y) < 0  # the boundary is farther out
                low, high = torch.where(inside, eps, low), torch.where(inside, high, eps)
                eps = (low + high) / 2
            model((x + eps.view(shape) * direction).clamp(0, 1))  # as the reference: it moves BatchNorm's statistics
        return x + eps.view(shape) * direction, eps


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, eps_iter: float, steps: int, restarts: int
) -> Tensor:
    """(N,) bool: right, and broken by no restart of PGD, half of them with cross-entropy, half with the CW loss."""
    losses = (nn.CrossEntropyLoss(reduction="sum"), advertorch.loss.CWLoss(reduction="sum"))
    robust = model.eval()(x).argmax(1) == y
    for restart in range(restarts):
        loss_fn = losses[2 * restart // restarts]
        attack = ATTACKS[norm](model, loss_fn=loss_fn, eps=eps, eps_iter=eps_iter, nb_iter=steps, rand_init=True)
        robust &= model(attack.perturb(x, y)).argmax(1) == y
    return robust


def main() -> None:
    """Train a dense network on the digits with d_max 0.3 under Linf, and attack it."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    config = replace(PRESETS["digits", "Linf"], hinge_maxeps=0.3)
    mma = ReferenceStyle(model, config, torch.optim.Adam(model.parameters(), lr=1e-3))
    for epoch in range(20):
        for index in torch.randperm(1400).split(config.batch_size):
            mma.step(x[index], y[index], index)
        print(f"epoch {epoch}: mean margin {sum(mma.eps.values()) / len(mma.eps):.3f}")
    for eps in (0.0, 0.1, 0.2):
        robust = evaluate(model, x[1400:], y[1400:], norm="Linf", eps=eps, eps_iter=eps / 4, steps=20, restarts=2)
        print(f"eps {eps}: {robust.float().mean():.1%} of {len(robust)} test images stand")


if __name__ == "__main__":
    main()
