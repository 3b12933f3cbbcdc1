"""The JSON beside a checkpoint: every result of it side by side, whatever the order of commands.

`eval_<attack>_<norm>.json` holds a row for each radius, set of images and way of attacking; a search for the nearest
adversarial image has rows without a radius. Results of another checkpoint in the same folder stay under `others`.
docs/evaluation.md says what each key means. The keys of old files, which held one evaluation, are read too.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from errors import UserError
from records.reading import parse_json, refuse_odd
from utils import write_atomically

Row = dict[str, Any]
SAME_EPS = 1e-6  # relative: radii that differ by rounding only
# Of a row, and of the top of a file from the row that is quoted there. What is at the top of an old file is of each row.
SHARED = ("n", "split", "images", "clean_acc", "clean_ci95", "seed", "settings", "sources")
DISTANCES = ("mean", "quartiles", "not_found", "mean_of_found", "anpgd", "distances")
# Where and in what portions it was made; two results that differ in these alone are of the same kind.
PORTIONS = ("device", "processes", "batch_size", "batch_size_asked")
ORDER = ("eps", "n", "split", "images", "seed", "clean_acc", "clean_ci95", "robust_acc", "ci95", "flags", "settings")
EFFORTS = ("nb_restart", "nb_iter", "nb_sample", "queries", "steps", "searches", "targets")


@dataclass(frozen=True)
class Head:
    """What a file is about."""

    attack: str
    norm: str
    model_sha256: str  # of the checkpoint
    dataset: str


@dataclass(frozen=True)
class Kind:
    """What two results must share to be of the same kind: the images, the seed, and how they were attacked."""

    n: int
    split: str
    images: str  # a digest of them
    seed: int
    settings: Mapping[str, Any]  # less where and in what portions
    sources: Sequence[Mapping[str, Any]] | None = field(default=None)  # of transferred images

    def covers(self, row: Row, apart_from: Sequence[str] = ()) -> bool:
        """Whether the row is of this kind; `apart_from`: settings that may differ. Old rows do not say which images."""
        found = row["settings"]
        return (
            (row["n"], row["split"], row.get("seed")) == (self.n, self.split, self.seed)
            and row.get("images") in (None, self.images)
            and row.get("sources") == (None if self.sources is None else list(self.sources))
            and all(
                _agrees(found.get(f"{name}_asked", found.get(name)), value)
                for name, value in self.settings.items()
                if name not in apart_from
            )
        )


def _agrees(found: object, value: object) -> bool:
    if isinstance(value, Mapping):
        return isinstance(found, dict) and all(_agrees(found.get(name), part) for name, part in value.items())
    if isinstance(found, float) and isinstance(value, float):  # of a radius that differs by rounding only
        return math.isclose(found, value, rel_tol=SAME_EPS)
    return found == value


def same_eps(one: float | None, other: float | None) -> bool:
    """Whether two radii are one; None is no radius."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=SAME_EPS)


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


def is_standard(row: Row) -> bool:
    """Whether AutoAttack was run as its authors define it; true of every other attack."""
    return (row.get("settings") or {}).get("standard") is not False


def effort(row: Row) -> tuple[bool, float]:
    """How hard a row's attack tried: standard AutoAttack before others, then restarts x steps or what corresponds."""
    settings = row["settings"]
    numbers = [settings[name] for name in EFFORTS if isinstance(settings.get(name), int | float)]
    attacks = settings.get("attacks")
    several = len(attacks) if isinstance(attacks, list) else 1
    return is_standard(row), math.prod(numbers) * several


def _weight(row: Row) -> tuple[Any, ...]:
    """By which of several rows at one radius the one to quote is chosen. A robust accuracy is an upper bound, so that of
    the same images the lowest figure counts, and a weak attack never hides what a stronger one found."""
    return row["n"], is_standard(row), -row.get("robust_acc", 0.0), effort(row)


def quoted(rows: Sequence[Row], split: str = "test") -> list[Row]:
    """Of each radius the row to quote, ascending: most images, then standard AutoAttack, then the lowest robust accuracy,
    then most restarts x steps, then the latest listed."""
    best: list[Row] = []
    for row in (row for row in rows if row["split"] == split):
        rival = next((k for k, other in enumerate(best) if same_eps(row.get("eps"), other.get("eps"))), None)
        if rival is None:
            best.append(row)
        elif _weight(row) >= _weight(best[rival]):
            best[rival] = row
    return sorted(best, key=lambda row: row.get("eps") or 0.0)


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


def way(row: Row) -> dict[str, Any]:
    """How a row's images were attacked, less what goes with the radius and what changes nothing: `eps_iter` is over eps."""
    own = {name: value for name, value in row["settings"].items() if name not in PORTIONS}
    if row.get("eps") and isinstance(own.get("eps_iter"), float):
        own["eps_iter"] = float(f"{own['eps_iter'] / row['eps']:.4g}")
    return own


def average_accuracies(clean: float, robust: Sequence[float]) -> dict[str, float]:
    """AvgAcc, the mean over clean and every radius, and AvgRobAcc, the mean over every radius."""
    return {"avg_acc": fmean([clean, *robust]), "avg_rob_acc": fmean(robust)}


def joined_checks(rows: Sequence[Row]) -> dict[str, Any]:
    """The sanity checks of several rows by name: the first that failed, else the first."""
    joined: dict[str, Any] = {}
    for row in rows:
        for name, outcome in (row.get("sanity") or {}).items():
            if name not in joined or (_failed(outcome) and not _failed(joined[name])):
                joined[name] = outcome
    return joined


def _failed(outcome: object) -> bool:
    return isinstance(outcome, dict) and outcome.get("ok") is False


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
