"""Losses and margins, one value an example: (B, C) logits, (B,) labels -> (B,).

B batch, C classes. A *margin* here is a signed difference of logits; a distance in input space is called eps.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CW_OFFSET = 50.0


def _wrong_logits(logits: Tensor, y: Tensor) -> Tensor:
    """(B, C), (B,) -> (B, C): the true class's logit replaced by minus infinity."""
    return logits.scatter(1, y[:, None], float("-inf"))


def _true_logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """LM: (B, C), (B,) -> (B,). Largest wrong logit minus the true one; < 0 iff classified right."""
    return _wrong_logits(logits, y).amax(dim=1) - _true_logit(logits, y)


def soft_logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """SLM: (B, C), (B,) -> (B,). Log-sum-exp of the wrong logits minus the true one; < 0 iff p_y > 1/2; >= LM."""
    return _wrong_logits(logits, y).logsumexp(dim=1) - _true_logit(logits, y)


def cw_loss(logits: Tensor, y: Tensor) -> Tensor:
    """CW: (B, C), (B,) -> (B,). max(LM + 50, 0) (Carlini & Wagner 2017, as the paper uses it)."""
    return (logit_margin(logits, y) + CW_OFFSET).clamp(min=0)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """xent: (B, C), (B,) -> (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


LOSSES = {"xent": cross_entropy, "cw": cw_loss, "lm": logit_margin, "slm": soft_logit_margin}
