"""State dicts of other programs, under our keys: RobustBench's WideResNet, and the fast-AT code's PreAct ResNet-18.

The layers are the same, their names are not. What such a program does to images before the first layer is in no state
dict: ours standardises each image, and the logits are theirs for images that are standardised like that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")

# Both start with `conv1`; ours stand behind the standardisation, the first of two modules, and so start with `1.`.
RENAMED = (
    (r"^model\.", ""),
    (r"^(conv1|bn1|bn|fc|linear|(sub_)?block\d|layer\d)\.", r"1.\1."),
    (r"^1\.block(\d)\.", r"1.convgroup\1."),
    (r"\.convShortcut\.", ".conv_shortcut."),
)

UNUSED = "1.sub_block1."  # in the files of TRADES' WideResNet and of those after it, in no path from image to logits
INPUT = "each image standardised, as ours does: the weights are another program's, which may do something else"


def our_keys(weights: Mapping[str, Value], own: Iterable[str]) -> dict[str, Value]:
    """`weights` with our names if a network whose keys are `own` then finds all of them, otherwise as they are."""
    renamed = {ours: value for key, value in weights.items() if not (ours := _renamed(key)).startswith(UNUSED)}
    wanted = set(own)
    return renamed if set(renamed) >= wanted and not set(weights) >= wanted else dict(weights)


def _renamed(key: str) -> str:
    for pattern, ours in RENAMED:
        key = re.sub(pattern, ours, key)
    return key
