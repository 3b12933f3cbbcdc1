"""Trained networks by name: committed runs, checked against `trained_models/SHA256SUMS`, or any run folder.

`cd trained_models && sha256sum */model_best.pt > SHA256SUMS` writes that record.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from config import Config
from errors import UserError
from records.checkpoint import load_model_file
from validation import stored_config

ROOT = Path(__file__).resolve().parent.parent
SUMS = ROOT / "trained_models" / "SHA256SUMS"
COMMITTED = ("trained_models/*", "benchmarks/digits/*")


class Pretrained(NamedTuple):
    """A trained network that is not built yet."""

    path: Path  # its checkpoint
    sha256: str  # of that file
    weights: dict[str, Tensor]
    config: Config  # of its training


def committed_runs() -> list[str]:
    """The run folders of this clone that hold a network, by name."""
    return sorted(path.parent.name for pattern in COMMITTED for path in ROOT.glob(f"{pattern}/model_best.pt"))


def load_pretrained(name: str) -> Pretrained:
    """Weights and config of a run folder or a checkpoint file by its path, or else of a committed run by its name.

    :raises UserError: if there is none, it is damaged, or not the file that was committed; an unknown name is answered
        with those there are.
    """
    path, known = Path(name), False
    with suppress(OSError, ValueError):  # a name that is too long, or holds a NUL
        known = bool(name) and path.exists()
    if not known:
        folders = [folder for pattern in COMMITTED for folder in ROOT.glob(pattern) if folder.name == name]
        if not folders:
            there = ", ".join(committed_runs()) or "none in this clone"
            raise UserError(
                f"network {name!r}: there is no such run: there are {there}, and any run folder by its path"
            )
        path = folders[0]
    file = load_model_file(str(path))
    committed = recorded_hashes().get(file.path.resolve(), file.sha256)
    if file.sha256 != committed:
        raise UserError(
            f"checkpoint {file.path}: its sha256 is {file.sha256}, {SUMS} says {committed}: restore it with git "
            "checkout, or move a network of your own to another folder"
        )
    if file.config is None:
        raise UserError(f"checkpoint {file.path}: does not say what network it is: name one that train.py wrote")
    return Pretrained(file.path, file.sha256, file.weights, stored_config(file.config, f"checkpoint {file.path}"))


def recorded_hashes() -> dict[Path, str]:
    """Checkpoint -> its sha256, of what is committed.

    :raises UserError: for a line that is none of `sha256sum`'s, so that no network goes unchecked.
    """
    lines = SUMS.read_text().splitlines() if SUMS.exists() else []
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    if None in found:
        raise UserError(f"{SUMS}: line {found.index(None) + 1} is damaged: restore it with git checkout")
    return {SUMS.parent.resolve() / line[2]: line[1] for line in found if line}
