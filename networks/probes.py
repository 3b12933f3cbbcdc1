"""What a network, perhaps somebody's own, needs of a batch: found by three passes on a copy, before the first step."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Needs(NamedTuple):
    """What batches a network works on."""

    one_row: bool  # it works on one image in train mode; BatchNorm on vectors does not
    no_row: bool  # it works on an empty batch in eval mode; built-in networks do
    uses_all: bool  # its logits depend on every parameter that is trained


def probe(model: nn.Module, x: Tensor) -> Needs:
    """x (1, ...), one image. The network itself, with its modes and statistics, is left as it is."""
    copied = copy.deepcopy(model).eval()
    with torch.enable_grad():
        total = copied(x).sum()
    if total.requires_grad:
        total.backward()
    uses_all = all(p.grad is not None for p in copied.parameters() if p.requires_grad)
    with torch.no_grad():
        try:
            copied(x[:0])
            no_row = True
        except Exception:  # people's own networks may raise anything on no image at all
            no_row = False
        try:
            copied.train()(x)
            one_row = True
        except ValueError:
            one_row = False
    return Needs(one_row, no_row, uses_all)
