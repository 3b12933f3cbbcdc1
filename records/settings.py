"""Settings in a file, for `--config`: TOML, or the config.json of a run folder."""

from __future__ import annotations

import tomllib
import typing
from dataclasses import replace
from pathlib import Path

from config import PRESETS
from errors import UserError
from presets import USES, derived_lengths, recipe_values
from records.reading import parse_json

OF_ONE_RUN = ("savepath", "resume", "max_minutes", "quiet", "environment")  # in a config.json


def read_settings(name: str) -> dict[str, typing.Any]:
    """Names and values in a TOML file, or in a config.json less what belongs to that run alone.

    :raises UserError: if it is neither.
    """
    path = Path(name)
    try:
        path = path / "config.json" if path.is_dir() else path
        if path.suffix != ".json":
            return tomllib.loads(path.read_bytes().decode())
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"--config {name}: cannot be read ({error.strerror}): name a TOML file or a run folder"
        ) from None
    except ValueError as error:  # of both formats, and of the encoding
        raise UserError(f"--config {name}: damaged ({error}): mend it, or name another") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {name}: holds no settings but a {type(content).__name__}: name another")
    return {key: value for key, value in content.items() if value is not None and key not in OF_ONE_RUN}


def what_differs(file: dict[str, typing.Any], flags: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Of a file's settings those that say something: no preset's own, nothing derived from what the flags change."""
    names = {**file, **flags}
    preset = PRESETS.get((file.get("dataset", ""), file.get("norm", "")))
    kept = dict(file)
    if preset is not None:
        key = (file["dataset"], file["norm"])
        recipe: dict[str, typing.Any] = recipe_values(file.get("recipe"), key, file.get("method"), file.get("network"))
        usual = replace(preset, **recipe)
        kept = {n: v for n, v in file.items() if n in ("dataset", "norm") or v != getattr(usual, n)}
    method = names.get("method")
    foreign = {name for name, methods in USES.items() if "method" in flags and method not in methods}
    if "method" in flags or "clean_loss_coeff" in flags:
        foreign |= {"clean_loss_coeff", "method"}
    steps = file.get("max_steps", preset.max_steps if preset else 0)
    foreign |= {name for name, value in derived_lengths(steps).items() if file.get(name) == value}  # will be again
    return {name: value for name, value in kept.items() if name not in foreign}
