"""Losses against closed forms and advertorch.loss."""

import importlib
import math

import pytest
import torch

from config import LOSS_NAMES
from evaluations.advertorch_compat import advertorch
from losses import LOSSES, cross_entropy, cw_loss, logit_margin, soft_logit_margin

LOGITS = 5 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(50) % 7


def test_closed_forms():
    """CW is 0 where the true class leads by more than 50."""
    logits, y = torch.tensor([[1.0, 3, 2], [0, 0, 0], [0, 0, 60]], dtype=torch.float64), torch.tensor([1, 2, 2])
    expected = {
        "lm": [2 - 3, 0.0, -60.0],
        "slm": [math.log(math.e + math.e**2) - 3, math.log(2), math.log(2) - 60],
        "cw": [49.0, 50.0, 0.0],
        "xent": [math.log(math.e + math.e**2 + math.e**3) - 3, math.log(3), 2 * math.exp(-60)],
    }
    assert set(expected) == set(LOSSES) == set(LOSS_NAMES)
    for name, values in expected.items():
        torch.testing.assert_close(LOSSES[name](logits, y), torch.tensor(values, dtype=torch.float64))


def test_soft_margin_bounds_the_margin_and_means_probability_above_a_half():
    slm, lm = soft_logit_margin(LOGITS, LABELS), logit_margin(LOGITS, LABELS)
    assert (slm >= lm).all()
    probability = LOGITS.softmax(1).gather(1, LABELS[:, None]).squeeze(1)
    assert torch.equal(slm < 0, probability > 0.5)
    assert torch.equal(lm < 0, LOGITS.argmax(1) == LABELS)
    torch.testing.assert_close(slm, (1 / probability - 1).log())


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")  # advertorch's
def test_equal_to_advertorch():
    theirs = importlib.import_module("advertorch.loss")
    for ours, loss in (
        (logit_margin, "LogitMarginLoss"),
        (soft_logit_margin, "SoftLogitMarginLoss"),
        (cw_loss, "CWLoss"),
    ):
        torch.testing.assert_close(ours(LOGITS, LABELS), getattr(theirs, loss)(reduction="none")(LOGITS, LABELS))
    assert advertorch.__version__ == "0.2.3"


@pytest.mark.parametrize("loss", [logit_margin, soft_logit_margin, cw_loss, cross_entropy])
def test_gradients(loss):
    logits = LOGITS[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS[:5]), logits)
