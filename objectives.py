"""What each training method minimises: one function a method, which leaves its gradient in the parameters.

All are called alike: (model, x, y, eps, noise, config, ...) with x (B, ...), y (B,), eps (B,) radii, noise (B, ...)
uniform on [0, 1) for the attack's random start. The model's mode is the caller's, train mode in training; attacks run in
eval mode. `attack` is `pgd`, or what runs it faster. With several processes x is this one's slice, which may be empty, of
a global batch of `replica.total` images; every loss is then this slice's share of the mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anpgd import anpgd
from config import Config
from losses import LOSSES
from pgd import PgdFn, pgd
from processes.replica import Replica
from utils import eval_mode, per_row


class StepResult(NamedTuple):
    """What one step saw; tensors on the device. The gradient lies in the parameters."""

    clean_loss: Tensor  # () mean over the global batch; in adversarial training 0, as no clean image is seen
    correct: Tensor  # () examples right by argmax, on clean images; in adversarial training on the attacked ones
    adv_loss: Tensor  # () the loss away from the images: L_mma, the attacked images' loss, TRADES' divergence; 0: none
    eps: Tensor  # (B,) MMA: the radius of each example to store, 0 where it is wrong; else the attack's radius
    finite: Tensor  # (B,) bool: whether the example's losses are finite


def mma_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    noise: Tensor | None,
    config: Config,
    *,
    search_single_row: bool = True,
    every_row: bool = False,
    attack: PgdFn = pgd,
    replica: Replica | None = None,
    total: int | None = None,
) -> StepResult:
    """MMA (paper, eq. 8 and algorithm 2): (1 - alpha) L_mma + alpha L_clean; OMMA is alpha = 0.

    eps: where AN-PGD starts in each row. search_single_row False: with one right example the search runs in eval mode,
    for networks whose BatchNorm cannot work on one row. every_row: attack the wrong rows too and drop what is found for
    them: the same result, unless rows influence each other as in BatchNorm, and no shape depends on data.
    """
    replica, total = replica or Replica(model), total or len(x)
    alpha = config.clean_loss_coeff
    clean_loss_fn, margin_loss_fn = LOSSES[config.clean_loss_fn], LOSSES[config.margin_loss_fn]
    search_loss_fn = LOSSES[config.search_loss_fn]

    with torch.enable_grad() if alpha > 0 else torch.no_grad(), replica.unsent():
        logits = replica(x)
        clean_losses = clean_loss_fn(logits, y)
        clean_loss = clean_losses.sum() / total
        if alpha > 0:
            replica.backward(alpha * clean_loss)
    logits = logits.detach()
    correct = _right(logits, y)

    confident = search_loss_fn(logits, y) < 0  # with SLM: p_y > 1/2
    x_mixed, margins = x, torch.zeros_like(eps)
    rows = torch.arange(len(x), device=x.device) if every_row else confident.nonzero().squeeze(1)
    if count := replica.taking_part(len(rows)):
        with nullcontext() if search_single_row or count > 1 else eval_mode(model):
            shortest = anpgd(
                model,
                x[rows],
                y[rows],
                norm=config.norm,
                start_eps=eps[rows],
                max_eps=config.search_maxeps,
                steps=config.nb_iter,
                step_scale=config.eps_iter_scale,
                search_steps=config.num_search_steps,
                attack_loss_fn=LOSSES[config.attack_loss_fn],
                search_loss_fn=search_loss_fn,
                noise=None if noise is None else noise[rows],
                attack=attack,
            )
        x_mixed = torch.where(per_row(confident, x), x.index_copy(0, rows, shortest.x_adv), x)
        margins = torch.where(confident, margins.index_copy(0, rows, shortest.eps), margins)

    logits = replica(x_mixed)
    losses = torch.where(confident, margin_loss_fn(logits, y), clean_loss_fn(logits, y))
    keep = ~confident | (margins < config.check_maxeps)  # the hinge: beyond d_max an example has no loss
    mma_loss = torch.where(keep, losses, 0).sum() / total
    replica.backward((1 - alpha) * mma_loss)
    return StepResult(clean_loss.detach(), correct, mma_loss.detach(), margins, _finite(clean_losses, losses))


def std_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    noise: Tensor | None,
    config: Config,
    *,
    replica: Replica | None = None,
    total: int | None = None,
    **_: object,
) -> StepResult:
    """Ordinary training: the mean clean loss. No attack is run."""
    replica, total = replica or Replica(model), total or len(x)
    logits = replica(x)
    losses = LOSSES[config.clean_loss_fn](logits, y)
    loss = losses.sum() / total
    replica.backward(loss)
    return StepResult(loss.detach(), _right(logits, y), torch.zeros_like(loss), torch.zeros_like(eps), _finite(losses))


def pgd_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    noise: Tensor | None,
    config: Config,
    *,
    attack: PgdFn = pgd,
    replica: Replica | None = None,
    total: int | None = None,
    **_: object,
) -> StepResult:
    """Adversarial training (Madry et al. 2018): the mean loss at the point within eps where PGD finds it largest."""
    replica, total = replica or Replica(model), total or len(x)
    loss_fn = LOSSES[config.clean_loss_fn]
    x_adv = attack(
        model,
        x,
        y,
        loss_fn=loss_fn,
        norm=config.norm,
        eps=eps,
        step_size=config.eps_iter_scale * eps / config.nb_iter,
        steps=config.nb_iter,
        noise=noise,
    )
    logits = replica(x_adv)
    losses = loss_fn(logits, y)
    loss = losses.sum() / total
    replica.backward(loss)
    return StepResult(torch.zeros_like(loss), _right(logits, y), loss.detach(), eps, _finite(losses))


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """(B, C) logits, (B, C) log-probabilities -> (B,): KL(reference || softmax(logits))."""
    return F.kl_div(F.log_softmax(logits, dim=1), reference, reduction="none", log_target=True).sum(dim=1)


def trades_step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    noise: Tensor | None,
    config: Config,
    *,
    attack: PgdFn = pgd,
    replica: Replica | None = None,
    total: int | None = None,
    **_: object,
) -> StepResult:
    """TRADES (Zhang et al. 2019): clean loss + beta KL(p(x) || p(x')), x' where PGD finds the divergence largest.

    PGD starts at random in the whole ball, as for the other methods; TRADES' authors start within 0.001 of the image.
    """
    replica, total = replica or Replica(model), total or len(x)
    with eval_mode(model), torch.no_grad():
        reference = F.log_softmax(model(x), dim=1)
    x_adv = attack(
        model,
        x,
        reference,
        loss_fn=divergence,
        norm=config.norm,
        eps=eps,
        step_size=config.eps_iter_scale * eps / config.nb_iter,
        steps=config.nb_iter,
        noise=noise,
    )
    logits = replica(x)
    clean_losses = LOSSES[config.clean_loss_fn](logits, y)
    adv_losses = divergence(replica(x_adv), F.log_softmax(logits, dim=1))
    clean_loss, adv_loss = clean_losses.sum() / total, adv_losses.sum() / total
    replica.backward(clean_loss + config.trades_beta * adv_loss)
    return StepResult(clean_loss.detach(), _right(logits, y), adv_loss.detach(), eps, _finite(clean_losses, adv_losses))


def _right(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == y).sum()


def _finite(*losses: Tensor) -> Tensor:
    return torch.stack([loss.detach().isfinite() for loss in losses]).all(dim=0)


OBJECTIVES: dict[str, Callable[..., StepResult]] = {
    "mma": mma_step,
    "omma": mma_step,
    "std": std_step,
    "pgd": pgd_step,
    "pgdls": pgd_step,
    "trades": trades_step,
}
