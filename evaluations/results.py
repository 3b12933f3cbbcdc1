"""The JSON beside a checkpoint: every result of it side by side, whatever the order of commands.

`eval_<attack>_<norm>.json` holds a row for each radius, set of images and way of attacking; a search for the nearest
adversarial image has rows without a radius. Results of another checkpoint in the same folder stay under `others`.
docs/evaluation.md says what each key means. The keys of old files, which held one evaluation, are read too.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from errors import UserError
from evaluations.rows import PORTIONS, Kind, Row, average_accuracies, effort, joined_checks, quoted, same_eps, way
from records.reading import parse_json, refuse_odd
from utils import write_atomically

# Of a row, and of the top of a file from the row that is quoted there. What is at the top of an old file is of each row.
SHARED = ("n", "split", "images", "clean_acc", "clean_ci95", "seed", "settings", "sources")
DISTANCES = ("mean", "quartiles", "not_found", "mean_of_found", "anpgd", "distances")
ORDER = ("eps", "n", "split", "images", "seed", "clean_acc", "clean_ci95", "robust_acc", "ci95", "flags", "settings")


@dataclass(frozen=True)
class Head:
    """What a file is about."""

    attack: str
    norm: str
    model_sha256: str  # of the checkpoint
    dataset: str


# --- reading -------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> list[dict[str, Any]]:
    """What the file says of each checkpoint, the latest first; nothing if there is no file.

    :raises ValueError: if it is damaged.
    :raises OSError: if it cannot be read.
    """
    try:
        content = parse_json(path.read_text())
    except FileNotFoundError:
        return []
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if "attack" not in content:
        raise ValueError("no evaluation of ours: it names no attack")
    others = content.pop("others", [])
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise ValueError("others is not a list of results")
    return [content, *others]


def all_rows(content: dict[str, Any]) -> list[Row]:
    """Every row of one checkpoint, each whole: also in an old file, whose top says what all its rows share.

    :raises ValueError: if it holds what no evaluation writes.
    """
    refuse_odd(content)
    top = {key: content[key] for key in SHARED if key in content}
    if "format" not in content and content.get("sanity"):
        top["sanity"] = content["sanity"]
    top = {"split": "test", "seed": None, **top, "settings": dict(content.get("settings") or {})}
    if content.get("attack") == "pgd":
        top["settings"].setdefault("precision", "fp32")  # before there was another
    if "results" not in content:  # an old search for the nearest image
        found = {key: content[key] for key in (*DISTANCES, "seconds") if key in content}
        return [{**top, **found}] if "quartiles" in content else []
    steps = top["settings"].get("eps_iter")
    rows = []
    for number, own in enumerate(content["results"]):
        row = {**top, **own, "settings": dict(own.get("settings", top["settings"]))}
        if "settings" not in own and isinstance(steps, list) and number < len(steps):  # of an old file: one a radius
            row["settings"]["eps_iter"] = steps[number]
        rows.append(row)
    return rows


def checkpoint_rows(path: Path, head: Head) -> list[Row]:
    """All rows of this checkpoint on this data set, each whole.

    :raises UserError: if the file is damaged, or says of this checkpoint what no evaluation writes.
    """
    try:
        for content in read_file(path):
            if _is_of(content, head):
                return all_rows(content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}): move it away first") from None
    return []


def _is_of(content: dict[str, Any], head: Head) -> bool:
    return (content.get("model_sha256"), content.get("dataset")) == (head.model_sha256, head.dataset)


# --- what the top of a file says -----------------------------------------------------------------------------------


def content_of(head: Head, rows: Sequence[Row]) -> dict[str, Any]:
    """A file's content for `rows`, at least one. The top repeats what the quoted rows of most images share."""
    split = "test" if any(row["split"] == "test" for row in rows) else rows[0]["split"]
    best = quoted(rows, split)
    first = max(best, key=lambda row: (row["n"], effort(row)))
    same = [row for row in best if row["n"] == first["n"]]
    top = {
        "format": 2,
        "attack": head.attack,
        "model_sha256": head.model_sha256,
        "dataset": head.dataset,
        "norm": head.norm,
        **{key: first[key] for key in (*SHARED, *DISTANCES) if key in first},
        "seconds": round(sum(row.get("seconds", 0) for row in same), 1),
    }
    top["settings"] = {key: value for key, value in first["settings"].items() if key != "eps_iter"}
    if "robust_acc" in first:
        top |= average_accuracies(first["clean_acc"], [row["robust_acc"] for row in same])
    ways = [way(row) for row in best]
    if checks := joined_checks([*best, *(row for row in rows if row["split"] == split and way(row) in ways)]):
        top["sanity"] = checks
    return {**top, "results": [{key: row[key] for key in (*ORDER, *row) if key in row} for row in rows]}


# --- writing -------------------------------------------------------------------------------------------------------


def require_writable(folder: Path) -> None:
    """:raises UserError: if results cannot be put into the folder, which is better known before an attack than after."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: results cannot be written beside the model: copy it into a folder of yours")


def add_rows(
    path: Path, head: Head, rows: Sequence[Row], settle: Callable[[list[Row]], list[Row]] = lambda rows: rows
) -> None:
    """Put rows beside what the file holds; a row of the same kind at the same radius is replaced.

    settle: makes the rows of one checkpoint agree with each other.

    :raises UserError: if the file is damaged or the folder cannot be written.
    """
    try:
        with _alone_in(path.parent):
            contents = _read_or_refuse(path)
            own = next((content for content in contents if _is_of(content, head)), None)
            others = [c for c in contents if c is not own and ("results" in c or "quartiles" in c)]
            kept = [row for row in checkpoint_rows(path, head) if not any(_replaces(new, row) for new in rows)]
            content = content_of(head, sorted(settle([*kept, *rows]), key=_order))
            if others:
                content["others"] = others
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}): copy the model into a folder of yours"
        ) from None


def _read_or_refuse(path: Path) -> list[dict[str, Any]]:
    try:
        return read_file(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}): move it away first") from None


def _replaces(new: Row, row: Row) -> bool:
    settings = {name: value for name, value in new["settings"].items() if name not in PORTIONS}
    kind = Kind(new["n"], new["split"], new["images"], new["seed"], settings, new.get("sources"))
    return same_eps(new.get("eps"), row.get("eps")) and kind.covers(row)


def _order(row: Row) -> tuple[Any, ...]:
    return row["split"] != "test", row.get("eps") or 0.0, -row["n"], effort(row), row["seed"] or 0, str(row["settings"])


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other evaluation of ours changes a file of this folder meanwhile, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Storable(Protocol):
    """An evaluation that knows where its row would be stored."""

    @property
    def stored_row(self) -> Row | None:
        """What is stored of it."""


def is_done(work: Storable, overwrite: bool) -> bool:
    """Whether its row is stored and stays."""
    return not overwrite and work.stored_row is not None
