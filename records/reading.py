"""Files that others may have changed, read with care: JSON, margins.npy and the settings of `--config`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from pathlib import Path

import numpy as np

from config import GONE, LARGEST, Config
from errors import UserError
from validation import refuse_gone


def parse_json(text: str | bytes) -> typing.Any:
    """What JSON says.

    :raises ValueError: if it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


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


NO_SETTING = {"environment", "max_minutes", *GONE}
NO_SETTING |= {f.name for f in dataclasses.fields(Config) if f.metadata["of_run"]}
# And part of a recipe that some of them name.
NEWER_THAN_SOME_RUNS = {"step_decay": False, "odi_steps": 0, "best_by": "mean_margin"}


def read_settings(name: str) -> dict[str, typing.Any]:
    """Names and values in a TOML file, or in a config.json less what does not matter to that run's result.

    :raises UserError: if it is neither.
    """
    path = Path(name)
    try:
        path = path / "config.json" if path.is_dir() else path
        if path.suffix != ".json":
            return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds no settings but a {type(content).__name__}")
        refuse_gone(content)
        if "environment" in content:  # of a run: a setting that is newer than it was as it is here
            content = NEWER_THAN_SOME_RUNS | content
    except OSError as error:
        raise UserError(
            f"--config {name}: cannot be read ({error.strerror}): name a TOML file or a run folder"
        ) from None
    except ValueError as error:  # of both formats, and of the encoding
        raise UserError(f"--config {name}: damaged ({error}): mend it, or name another") from None
    except UserError as error:
        raise UserError(f"--config {name}: {error}") from None
    return {key: value for key, value in content.items() if value is not None and key not in NO_SETTING}
