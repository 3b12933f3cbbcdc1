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
    (r"^(conv1|bn1|bn|fc|linear|(block|layer)\d)\.", r"1.\1."),
    (r"^1\.block(\d)\.", r"1.convgroup\1."),
    (r"\.convShortcut\.", ".conv_shortcut."),
)


def our_keys(weights: Mapping[str, Value], own: Iterable[str]) -> dict[str, Value]:
    """`weights` with our names if that makes them fit a network whose keys are `own`, otherwise as they are."""
    renamed = {_renamed(key): value for key, value in weights.items()}
    wanted = set(own)
    return renamed if set(renamed) == wanted != set(weights) else dict(weights)


def _renamed(key: str) -> str:
    for pattern, ours in RENAMED:
        key = re.sub(pattern, ours, key)
    return key
