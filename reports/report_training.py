"""What a run recorded while it trained: curves, cost in passes and minutes, the margins after each epoch.

A pass is one image once forward, or once forward and backward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import UserError
from records.reading import is_number, parse_json
from reports.plot_margins import Margins, read_margins
from reports.results import Run

BINS = 40
MOST_POINTS = 120  # of a curve
MOST_CHECKS = 60  # of the margins by epoch
CURVES = {  # by kind of row
    "train": ("clean_loss", "mma_loss", "adv_loss", "mean_eps", "lr"),
    "eval": ("clean_acc", "robust_acc", "mean_margin"),
}


class Cost(NamedTuple):
    """Of training. `recorded`: whether passes were counted; else they are what the settings ask for at most."""

    passes: float | None
    recorded: bool
    minutes: float | None  # of optimizer steps; the checks after each epoch are not in it, unless recorded


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that can be read and have a step, in their order."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = parse_json(line)
        except ValueError:  # a half-written last line
            continue
        if isinstance(row, dict) and is_number(row.get("step")) and row["step"] >= 0:
            rows.append(row)
    return rows


def passes_an_image(config: dict[str, Any]) -> int | None:
    """Passes that one image of a batch costs at most, by the method: MMA attacks only those that are classified right."""
    steps, halvings = config.get("nb_iter"), config.get("num_search_steps")
    if not isinstance(steps, int) or not isinstance(halvings, int):
        return None
    method = config.get("method") or "mma"
    search = steps + halvings + 1
    return {
        "mma": search + 2,
        "omma": search + 2,
        "std": 1,
        "pgd": steps + 1,
        "pgdls": steps + 1,
        "trades": steps + 2,
    }.get(method)


def passes_a_step(config: dict[str, Any]) -> int | None:
    """What the settings ask for at most."""
    each, batch = passes_an_image(config), config.get("batch_size")
    return each * batch if each and isinstance(batch, int) else None


def cost(config: dict[str, Any], rows: list[dict[str, Any]]) -> Cost:
    """What training took, as far as the folder tells."""
    recorded = [row["passes"] for row in rows if is_number(row.get("passes"))]
    steps = max((row["step"] for row in rows), default=0)
    each = passes_a_step(config)
    at_most = steps * each if each and steps else None
    seconds, before = 0.0, 0
    for row in rows:
        if row.get("kind") == "train" and is_number(row.get("steps_per_second")) and row["steps_per_second"] > 0:
            seconds += max(row["step"] - before, 0) / row["steps_per_second"]
            before = row["step"]
    return Cost(max(recorded) if recorded else at_most, bool(recorded), seconds / 60 if seconds else None)


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Name -> {step, value}: what training logged, and the checks on validation and test images; with `passes` if counted."""
    found: dict[str, dict[str, list[Any]]] = {}
    passes = None
    for row in rows:
        kind = row.get("kind")
        if is_number(row.get("passes")):
            passes = row["passes"]
        for name in CURVES.get(kind, ()) if isinstance(kind, str) else ():
            if is_number(row.get(name)):
                key = f"{row.get('split', 'train') if kind == 'eval' else 'train'} {name}"
                curve = found.setdefault(key, {"step": [], "passes": [], "value": []})
                curve["step"].append(row["step"])
                curve["passes"].append(passes)
                curve["value"].append(float(f"{row[name]:.4g}"))
    counted = {key: all(value is not None for value in curve["passes"]) for key, curve in found.items()}
    return {
        key: thinned({name: values for name, values in curve.items() if name != "passes" or counted[key]})
        for key, curve in found.items()
    }


def thinned(curve: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """At most MOST_POINTS points, spread evenly, the first and the last among them."""
    keep = evenly(len(curve["step"]), MOST_POINTS)
    return {name: [values[i] for i in keep] for name, values in curve.items()}


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def margins(run: Run) -> tuple[Margins | None, str | None]:
    """The run's margins.npy, and what is wrong with it, where it is there and cannot be used."""
    if not (run.folder / "margins.npy").exists():
        return None, None
    try:
        return read_margins(run.folder, run.config), None
    except UserError as error:
        return None, str(error)


def distribution(found: Margins, top: float) -> dict[str, Any]:
    """Shares of the training images in BINS bins up to `top`, after each of at most MOST_CHECKS epochs.

    Images that were wrong when last seen have margin 0; their share is apart, not in the first bin.
    """
    edges = np.linspace(0, top, BINS + 1)
    keep = evenly(len(found.eps), MOST_CHECKS)
    shares = []
    for check in keep:
        right = found.eps[check][found.eps[check] > 0]
        counts, _ = np.histogram(right.clip(max=top), edges)
        shares.append([round(100 * float(share), 2) for share in counts / found.eps.shape[1]])
    kept = found.eps[keep]
    return {
        "epochs": [round(float(epoch), 2) for epoch in found.epochs[keep]],
        "top": float(top),
        "shares": shares,
        "wrong": [round(100 * float(share), 2) for share in (kept == 0).mean(axis=1)],
        "median": [float(f"{value:.4g}") for value in np.median(kept, axis=1)],
        "d_max": float(found.d_max) if np.isfinite(found.d_max) else None,
        "n": found.eps.shape[1],
    }
