"""What each training method minimises: one class a method, which leaves its gradient in the parameters.

All are called alike: network, images x (B, ...), labels y (B,), where the attack starts, and `total`. The network's mode is
the caller's, train mode in training; attacks run in eval mode. With several processes a batch is this one's slice, which may
be empty, of a global batch of `total` images; every loss is then this slice's share of the mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anpgd import AnPgd, Search, Shortest
from config import Config
from ddn import Ddn
from losses import LOSSES
from pgd import InnerPgd, LossFn, PgdFn, pgd
from processes.replica import Replica
from utils import eval_mode, per_row


class AttackStart(NamedTuple):
    """Where a step's attack starts."""

    eps: Tensor  # (B,) radius of each image's ball
    noise: Tensor | None = None  # (B, ...) where in the ball, see `pgd`; None: at the image
    skipped: Tensor | None = None  # (B,) bool: not attacked in this step if right; None: all are
    odi_weights: Tensor | None = None  # (B, C) see `pgd.odi_start`; rows of zeros start where noise says


class StepResult(NamedTuple):
    """What one step saw; tensors on the device. The gradient lies in the parameters."""

    clean_loss: Tensor  # () mean over the global batch; in adversarial training 0, as no clean image is seen
    correct: Tensor  # () examples right by argmax, on clean images; in adversarial training on the attacked ones
    adv_loss: Tensor  # () the loss away from the images: L_mma, the attacked images' loss, TRADES' divergence; 0: none
    passes: Tensor  # () float64: how often an image went through the network once, forward or forward and backward
    eps: Tensor  # (B,) MMA: the radius of each example to store, 0 where it is wrong; else the attack's radius
    finite: Tensor  # (B,) bool: whether the example's losses are finite
    direction: Tensor | None = None  # (B, ...) MMA, if wanted: perturbation over radius; 0 where none was searched


Objective = Callable[[Replica, Tensor, Tensor, AttackStart, int], StepResult]


@dataclass(frozen=True)
class Mma:
    """MMA (paper, eq. 8 and algorithm 2): (1 - alpha) L_mma + alpha L_clean; OMMA is alpha = 0."""

    alpha: float
    d_max: float  # the hinge threshold
    clean_loss_fn: LossFn
    margin_loss_fn: LossFn
    shortest: AnPgd
    search_single_row: bool = True  # False: the search of one right example runs in eval mode (BatchNorm on vectors)
    # Attack the wrong rows too and drop what is found for them: the same result, unless rows influence each other as in
    # BatchNorm, and no shape depends on data.
    every_row: bool = False
    wants_directions: bool = False  # `StepResult.direction` is wanted
    search_mode: str = "train"  # BatchNorm in the search: "train", as in the paper, or "eval"

    def __call__(self, network: Replica, x: Tensor, y: Tensor, start: AttackStart, total: int) -> StepResult:
        """`start.eps` is the radius that AN-PGD starts from in each row."""
        with torch.enable_grad() if self.alpha > 0 else torch.no_grad(), network.unsent():
            logits = network(x)
            clean_losses = self.clean_loss_fn(logits, y)
            clean_loss = clean_losses.sum() / total
            if self.alpha > 0:
                network.backward(self.alpha * clean_loss)
        correct = _right(logits, y)

        search_losses = self.shortest.search.loss_fn(logits.detach(), y)
        confident = search_losses < 0  # with SLM: p_y > 1/2
        attacked = confident if start.skipped is None else confident & ~start.skipped
        found = self._shortest(network, x, y, start, attacked, search_losses)
        x_mixed = torch.where(per_row(attacked, x), found.x_adv, x)
        margins = torch.where(attacked, found.eps, torch.where(confident, start.eps, 0))  # skipped: as it is stored

        logits = network(x_mixed)
        losses = torch.where(confident, self.margin_loss_fn(logits, y), self.clean_loss_fn(logits, y))
        in_hinge = ~confident | (margins < self.d_max)  # beyond d_max an example has no loss
        mma_loss = torch.where(in_hinge, losses, 0).sum() / total
        network.backward((1 - self.alpha) * mma_loss)

        passes = 2 * len(x) + attacked.sum(dtype=torch.float64) * found.passes
        passes = passes + _odi_passes(start, self.shortest.attack, attacked)
        direction = torch.where(per_row(attacked, x), found.direction, 0) if self.wants_directions else None
        finite = _finite(clean_losses, losses)
        return StepResult(clean_loss.detach(), correct, mma_loss.detach(), passes, margins, finite, direction)

    def _shortest(
        self, network: Replica, x: Tensor, y: Tensor, start: AttackStart, attacked: Tensor, search_losses: Tensor
    ) -> Shortest:
        """AN-PGD on the attacked rows; the other rows of what it gives mean nothing."""
        rows = torch.arange(len(x), device=x.device) if self.every_row else attacked.nonzero().squeeze(1)
        nothing = Shortest(x, torch.zeros_like(start.eps), torch.zeros_like(x), torch.zeros_like(attacked), 0)
        count = network.taking_part(len(rows))
        if not count:
            return nothing
        noise, odi_weights = (None if part is None else part[rows] for part in (start.noise, start.odi_weights))
        # PGD always runs in eval mode; BatchNorm on vectors cannot search a single row in train mode.
        in_eval = self.search_mode == "eval" or (count == 1 and not self.search_single_row)
        with eval_mode(network.model) if in_eval else nullcontext():
            found = self.shortest(
                network.model, x[rows], y[rows], start.eps[rows], noise, search_losses[rows], odi_weights
            )
        by_row = zip(nothing[:4], found[:4], strict=True)
        x_adv, eps, direction, beyond = (none.index_copy(0, rows, part) for none, part in by_row)
        return Shortest(x_adv, eps, direction, beyond, found.passes)


@dataclass(frozen=True)
class Standard:
    """Standard training: the mean clean loss. No attack is run."""

    loss_fn: LossFn

    def __call__(self, network: Replica, x: Tensor, y: Tensor, start: AttackStart, total: int) -> StepResult:
        """One pass."""
        logits = network(x)
        losses = self.loss_fn(logits, y)
        loss = losses.sum() / total
        network.backward(loss)
        zero = torch.zeros_like(loss)
        no_radius = torch.zeros_like(start.eps)
        return StepResult(loss.detach(), _right(logits, y), zero, _passes(x, 1), no_radius, _finite(losses))


@dataclass(frozen=True)
class Adversarial:
    """Adversarial training (Madry et al. 2018): the mean loss at the point within eps where PGD finds it largest; with DDN at
    the nearest adversarial image (Rony et al. 2019)."""

    loss_fn: LossFn
    attack: InnerPgd | Ddn

    def __call__(self, network: Replica, x: Tensor, y: Tensor, start: AttackStart, total: int) -> StepResult:
        """`start.eps` is the radius of each row's ball."""
        x_adv = self.attack(network.model, x, y, start.eps, start.noise, start.odi_weights)
        logits = network(x_adv)
        losses = self.loss_fn(logits, y)
        loss = losses.sum() / total
        network.backward(loss)
        zero, passes = torch.zeros_like(loss), _passes(x, self.attack.steps + 1) + _odi_passes(start, self.attack)
        return StepResult(zero, _right(logits, y), loss.detach(), passes, start.eps, _finite(losses))


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """(B, C) logits, (B, C) log-probabilities -> (B,): KL(reference || softmax(logits))."""
    return F.kl_div(F.log_softmax(logits, dim=1), reference, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class Trades:
    """TRADES (Zhang et al. 2019): clean loss + beta KL(p(x) || p(x')), x' where PGD finds the divergence largest.

    PGD starts at random in the whole ball, as for the other methods; TRADES' authors start within 0.001 of the image.
    """

    loss_fn: LossFn
    beta: float
    attack: InnerPgd  # on `divergence`

    def __call__(self, network: Replica, x: Tensor, y: Tensor, start: AttackStart, total: int) -> StepResult:
        """`start.eps` is the radius of each row's ball."""
        model = network.model
        with eval_mode(model), torch.no_grad():
            reference = F.log_softmax(model(x), dim=1)
        x_adv = self.attack(model, x, reference, start.eps, start.noise, start.odi_weights)
        logits = network(x)
        clean_losses = self.loss_fn(logits, y)
        adv_losses = divergence(network(x_adv), F.log_softmax(logits, dim=1))
        clean_loss, adv_loss = clean_losses.sum() / total, adv_losses.sum() / total
        network.backward(clean_loss + self.beta * adv_loss)
        finite = _finite(clean_losses, adv_losses)
        passes = _passes(x, self.attack.steps + 3) + _odi_passes(start, self.attack)
        return StepResult(clean_loss.detach(), _right(logits, y), adv_loss.detach(), passes, start.eps, finite)


def objective_of(
    config: Config, attack: PgdFn = pgd, *, search_single_row: bool = True, every_row: bool = False
) -> Objective:
    """What the config's method minimises. attack: `pgd`, or what runs it faster; for the others see `Mma`."""
    clean_loss_fn = LOSSES[config.clean_loss_fn]
    inner_loss_fn: LossFn = clean_loss_fn
    if config.enlarges_margins:
        inner_loss_fn = LOSSES[config.attack_loss_fn]
    elif config.method == "trades":
        inner_loss_fn = divergence
    inner = InnerPgd(
        config.norm,
        config.nb_iter,
        inner_loss_fn,
        config.eps_iter_scale,
        attack,
        config.step_decay,
        config.odi_steps,
        every_row,
    )
    if config.enlarges_margins:
        search = Search(LOSSES[config.search_loss_fn], config.search_maxeps, config.num_search_steps, config.search)
        return Mma(
            config.clean_loss_coeff,
            config.check_maxeps,
            clean_loss_fn,
            LOSSES[config.margin_loss_fn],
            AnPgd(inner, search),
            search_single_row,
            every_row,
            wants_directions=config.keep_directions,
            search_mode=config.search_mode,
        )
    if config.method == "ddn":
        return Adversarial(clean_loss_fn, Ddn(config.nb_iter, clean_loss_fn))
    if config.method == "trades":
        return Trades(clean_loss_fn, config.trades_beta, inner)
    return Standard(clean_loss_fn) if config.method == "std" else Adversarial(clean_loss_fn, inner)


def _right(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == y).sum()


def _finite(*losses: Tensor) -> Tensor:
    return torch.stack([loss.detach().isfinite() for loss in losses]).all(dim=0)


def _odi_passes(start: AttackStart, attack: InnerPgd | Ddn, attacked: Tensor | bool = True) -> Tensor:
    if start.odi_weights is None:
        return torch.zeros((), dtype=torch.float64, device=start.eps.device)
    return (start.odi_weights.any(dim=1) & attacked).sum(dtype=torch.float64) * attack.odi_steps


def _passes(x: Tensor, each: int) -> Tensor:
    return torch.full((), each * len(x), dtype=torch.float64, device=x.device)
