"""The JSON beside a checkpoint: every result of it side by side, a row each, and which row to quote.

`eval_<attack>_<norm>.json` holds a row for each radius, set of images and way of attacking; a search for the nearest
adversarial image has rows without a radius. Results of another checkpoint in the same folder stay under `others`.
docs/evaluation.md says what each key means.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import binomtest
from torch import Tensor

from errors import UserError
from records.reading import is_number, parse_json
from utils import radius_text, write_atomically

Row = dict[str, Any]
FORMAT = 2
SAME_EPS = 1e-6  # relative: radii that differ by rounding only
# Where and in what portions a row was made; two rows that differ in these alone are of the same kind.
PORTIONS = ("device", "processes", "batch_size")
EFFORTS = ("nb_restart", "nb_iter", "nb_sample", "queries", "steps", "searches", "targets")
ORDER = (
    "eps",
    "n",
    "split",
    "images",
    "folder",
    "seed",
    "clean_acc",
    "clean_ci95",
    "robust_acc",
    "ci95",
    "flags",
    "settings",
)
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


# --- one row -------------------------------------------------------------------------------------------------------


def wilson(successes: int, count: int) -> list[float]:
    """The 95 % Wilson interval of a proportion, [low, high]."""
    ends = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return [ends.low, ends.high]


def interval(ci: Sequence[float]) -> str:
    """An interval of fractions, for people."""
    return f"95 % interval [{ci[0]:.2%}, {ci[1]:.2%}]"


def as_flags(robust: Tensor) -> str:
    """(N,) bool -> one character an image, "1": robust."""
    return "".join("1" if flag else "0" for flag in robust.tolist())


def accuracy_of(flags: str) -> Row:
    """The part of a row that follows from one character an image."""
    standing = flags.count("1")
    return {"robust_acc": standing / len(flags), "ci95": wilson(standing, len(flags)), "flags": flags}


def accuracy_curve(distances: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """(N,) distances of the nearest adversarial images -> robust accuracy at each eps where it falls, from 0 on, with its
    interval: (eps, accuracy, low, high). An image stands at every eps below its distance."""
    ordered, points = sorted(distances), []
    for eps in dict.fromkeys((0.0, *(d for d in ordered if d < math.inf))):
        standing = len(ordered) - bisect_right(ordered, eps)
        low, high = wilson(standing, len(ordered))
        points.append((eps, standing / len(ordered), low, high))
    return points


def clean_accuracy(right: Tensor) -> Row:
    """(N,) bool, classified right without a perturbation -> the part of a row that says so."""
    standing, count = int(right.sum()), len(right)
    return {"clean_acc": standing / count, "clean_ci95": wilson(standing, count)}


def finished(row: Row, right: Tensor, robust: Tensor, seconds: float, **where: object) -> Row:
    """A row with what was found; right, robust (N,) bool: of the images without and under the attack. where: and how it
    ran, for its settings."""
    return {
        **row,
        **clean_accuracy(right),
        **accuracy_of(as_flags(robust)),
        "settings": {**row["settings"], **where},
        "seconds": round(seconds, 1),
    }


def accuracy_lines(rows: Sequence[Row]) -> list[str]:
    """What to say of rows at several radii of the same images."""
    return [
        f"clean accuracy            {rows[-1]['clean_acc']:8.2%}   {interval(rows[-1]['clean_ci95'])}",
        *(
            f"robust accuracy at {radius_text(row['eps']):<7}{row['robust_acc']:8.2%}   {interval(row['ci95'])}"
            for row in rows
        ),
    ]


def same_eps(one: float | None, other: float | None) -> bool:
    """Whether two radii are one; None is no radius."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=SAME_EPS)


def same_kind(row: Row, like: Row, apart_from: Sequence[str] = ()) -> bool:
    """Whether two rows are of the same images, seed and way of attacking, the radius apart.

    apart_from: settings that may differ; those of a radius may by rounding. A row may lack the digest of its images.
    """
    found, wanted = row["settings"], like["settings"]
    return (
        all(row.get(key) == like.get(key) for key in ("n", "split", "seed", "sources"))
        and row.get("images") in (None, like.get("images"))
        and all(
            same_eps(found.get(name), value) if isinstance(value, float) else found.get(name) == value
            for name, value in wanted.items()
            if name not in (*PORTIONS, *apart_from)
        )
    )


def stored_row(rows: Iterable[Row], like: Row) -> Row | None:
    """The first of `rows` that is of the same kind as `like` at the same radius."""
    return next((row for row in rows if same_eps(row.get("eps"), like.get("eps")) and same_kind(row, like)), None)


def settled(rows: list[Row], like: Row) -> list[Row]:
    """The rows, changed in place: of the way of attacking of `like` what fell at a smaller radius is fallen at larger ones."""
    alike = [row for row in rows if same_kind(row, like, apart_from=["eps_iter"])]
    for row in alike:
        smaller = [one for one in alike if one["eps"] < row["eps"] and not same_eps(one["eps"], row["eps"])]
        flags = "".join(map(min, row["flags"], *(one["flags"] for one in smaller)))
        if flags != row["flags"]:
            row |= accuracy_of(flags)
    return rows


def merged(warnings: Iterable[str]) -> list[str]:
    """Warnings that differ in their numbers only as one: each number from the least to the largest, and how many they were."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for warning in warnings:
        parts = NUMBER.split(warning)  # words and numbers in turn
        alike.setdefault(tuple(parts[::2]), []).append(parts[1::2])
    said = []
    for words, found in alike.items():
        ranges = [dict.fromkeys((min(each, key=float), max(each, key=float))) for each in zip(*found, strict=True)]
        text = words[0] + "".join(" to ".join(ends) + more for ends, more in zip(ranges, words[1:], strict=True))
        said.append(text + (f" ({len(found)} such warnings)" if len(found) > 1 else ""))
    return said


# --- which row to quote --------------------------------------------------------------------------------------------


def is_standard(row: Row) -> bool:
    """Whether AutoAttack was run as its authors define it; true of every other attack."""
    return row["settings"].get("standard") is not False


def effort(row: Row) -> tuple[bool, float]:
    """How hard a row's attack tried: standard AutoAttack before others, then restarts x steps or what corresponds."""
    settings = row["settings"]
    numbers = [settings[name] for name in EFFORTS if isinstance(settings.get(name), int | float)]
    attacks = settings.get("attacks")
    several = len(attacks) if isinstance(attacks, list) else 1
    return is_standard(row), math.prod(numbers) * several


def quoted(rows: Iterable[Row], split: str = "test") -> list[Row]:
    """Of each radius the row to quote, ascending.

    One of each function of the checkpoint, if it was evaluated as several. It is the one of most images, then standard
    AutoAttack, then the lowest robust accuracy, then most restarts x steps, then the latest listed. A robust accuracy is
    an upper bound: of the same images the lowest figure counts, and a weak attack never hides what a stronger one found.
    """

    def weight(row: Row) -> tuple[Any, ...]:
        return row["n"], is_standard(row), -row.get("robust_acc", 0.0), effort(row)

    best: list[Row] = []
    for row in sorted(reversed([row for row in rows if row["split"] == split]), key=weight, reverse=True):
        rivals = (other for other in best if same_eps(row.get("eps"), other.get("eps")))
        if function_of(row) not in map(function_of, rivals):
            best.append(row)
    return sorted(best, key=lambda row: row.get("eps") or 0.0)


def function_of(row: Row) -> tuple[str, str]:
    """What makes of one checkpoint file different functions: code of somebody's own, and what is done to images before it."""
    overrides = row["settings"].get("overrides") or {}
    return overrides.get("network", ""), overrides.get("standardise", "")


def way(row: Row) -> dict[str, Any]:
    """How a row's images were attacked, less what goes with the radius and what changes nothing: `eps_iter` is over eps."""
    own = {name: value for name, value in row["settings"].items() if name not in PORTIONS}
    if row.get("eps") and isinstance(own.get("eps_iter"), float):
        own["eps_iter"] = float(f"{own['eps_iter'] / row['eps']:.4g}")
    return own


def average_accuracies(clean: float, robust: Sequence[float]) -> dict[str, float]:
    """AvgAcc, the mean over clean and every radius, and AvgRobAcc, the mean over every radius."""
    return {"avg_acc": fmean([clean, *robust]), "avg_rob_acc": fmean(robust)}


def joined_checks(rows: Iterable[Row]) -> dict[str, Any]:
    """The sanity checks of several rows by name: the first that failed, else the first."""
    joined: dict[str, Any] = {}
    for row in rows:
        for name, outcome in (row.get("sanity") or {}).items():
            if name not in joined or (outcome["ok"] is False and joined[name]["ok"] is not False):
                joined[name] = outcome
    return joined


# --- the file ------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> list[dict[str, Any]]:
    """What the file says of each checkpoint, the latest first; nothing if there is no file.

    :raises ValueError: if it is damaged, or not what an evaluation writes.
    :raises OSError: if it cannot be read.
    """
    try:
        content = parse_json(path.read_bytes())
        contents = [content, *content.pop("others", [])]
        for part in contents:
            head = (part[name] for name in ("attack", "norm", "dataset", "model_sha256"))
            if part["format"] != FORMAT or not all(isinstance(value, str) for value in head):
                raise ValueError(f"not a result of ours in format {FORMAT}")
            if not all(map(_is_sound, part["results"])):
                raise ValueError("a row of results is not what an evaluation writes")
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a result of ours, {error!r}") from None
    return contents


def _is_sound(row: Row) -> bool:
    """Whether figures can be made of a row; where a part of it is missing or of another kind it may raise instead."""
    search, settings, checks = "distances" in row, row["settings"], row.get("sanity", {}).values()
    images = row["distances" if search else "flags"]
    shares = [row["clean_acc"], *row["clean_ci95"], *(() if search else (row["robust_acc"], *row["ci95"]))]
    lengths = [row["mean"], *row["quartiles"], *images] if search else [row["eps"]]
    kinds = [(row["n"], int), (row["split"], str), (row["seed"], int | None), (row.get("warnings", []), list)]
    kinds += [(settings.get("overrides") or {}, dict), *((check["ok"], bool | None) for check in checks)]
    return (
        all(isinstance(value, kind) for value, kind in kinds)
        and all(is_number(share) and 0 <= share <= 1 for share in shares)
        and all(is_number(length) or (search and length is None) for length in lengths)
        and len(images) == row["n"] > 0
        and (len(shares), len(lengths)) == ((3, 4 + row["n"]) if search else (6, 1))
        and (search or ({*images} <= {"0", "1"} and abs(row["robust_acc"] - images.count("1") / row["n"]) < 1e-6))
    )


def checkpoint_rows(path: Path, head: Mapping[str, str]) -> list[Row]:
    """All rows of the checkpoint and data set in `head`: attack, model_sha256, dataset, norm.

    :raises UserError: if the file is damaged or cannot be read.
    """
    return next((content["results"] for content in _read(path) if head.items() <= content.items()), [])


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return read_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): mend it, or move it away first") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): move it away first") from None


def add_rows(
    path: Path, head: Mapping[str, str], new: Sequence[Row], settle: Callable[[list[Row]], list[Row]] = list
) -> list[Row]:
    """Put rows beside what the file holds, and give all rows of this checkpoint as they stand there now.

    A row of the same kind at the same radius is replaced, unless more images fell in it. settle: makes the rows of one
    checkpoint agree with each other.

    :raises UserError: if the file is damaged.
    :raises OSError: if the folder cannot be written.
    """
    with alone_in(path.parent):
        contents = _read(path)
        stored = checkpoint_rows(path, head)
        remaining = [row for row in stored if not any(stored_row([row], one) for one in new)]
        rows = []
        for row in settle([*remaining, *new]):
            before = stored_row(stored, row)
            row = row if before is None or _left(row) <= _left(before) else before
            rows.append({key: row[key] for key in (*ORDER, *row) if key in row})
        rows.sort(key=_order)
        content = {"format": FORMAT, **head, "results": rows}
        if of_other_checkpoints := [part for part in contents if not head.items() <= part.items()]:
            content["others"] = of_other_checkpoints
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return rows


def _left(row: Row) -> tuple[float, ...]:
    """How little an attack found: images that stand; of a search also how far the others are."""
    return row.get("flags", "").count("1") + row.get("distances", []).count(None), row.get("mean_of_found") or 0.0


def _order(row: Row) -> tuple[Any, ...]:
    return row["split"] != "test", row.get("eps") or 0.0, -row["n"], effort(row), row["seed"] or 0, str(row["settings"])


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other evaluation of ours writes into this folder meanwhile, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """:raises UserError: if results cannot be put into the folder, which is better known before an attack than after."""
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: results cannot be written beside the model: copy it into a folder of yours")
