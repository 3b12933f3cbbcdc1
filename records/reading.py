"""Files that may have been damaged or changed by others, read with care: JSON and margins.npy. A wrong one is a ValueError."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import numpy as np

from config import LARGEST

DEEPEST = 20  # lists and objects within each other, in JSON


def parse_json(text: str | bytes) -> typing.Any:
    """What JSON says.

    :raises ValueError: if it is none, or nested more deeply than anything of ours.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, list | dict)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError("nested too deeply")
    return content


def refuse_odd(result: dict[str, typing.Any]) -> None:
    """:raises ValueError: naming what in an `eval_*.json` is of a type that no evaluation writes."""
    kinds = {"n": int, "seed": int, "settings": dict, "results": list, "distances": list}
    for key, kind in kinds.items():
        if key in result and type(result[key]) is not kind:
            raise ValueError(f"{key} is not {kind.__name__}")
    if "n" not in result or result["n"] < 1:
        raise ValueError("n is not a number of images")
    for row in result.get("results", ()):
        if not isinstance(row, dict) or not is_number(row.get("eps")) or not is_number(row.get("seconds", 0)):
            raise ValueError("a row of results is not one")
    if not all(value is None or is_number(value) for value in result.get("distances", ())):
        raise ValueError("a distance is not a number")


def is_number(value: object) -> bool:
    """Whether it is a finite number that arithmetic can be done with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def read_margins(path: Path) -> np.ndarray:
    """(checks, training examples): a margins.npy.

    :raises FileNotFoundError: if there is none.
    :raises ValueError: if it is something else, saying what.
    """
    try:
        margins = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged head may ask for anything, also for more memory than there is
        raise ValueError(str(error)) from None
    if not isinstance(margins, np.ndarray) or margins.ndim != 2 or margins.dtype.kind != "f":
        raise ValueError(f"of shape {getattr(margins, 'shape', '?')}, not numbers by (checks, training images)")
    if not (margins >= 0).all() or np.isinf(margins).any():
        raise ValueError("a margin in it is negative or not finite")
    return margins
