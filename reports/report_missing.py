"""What a run has not been evaluated on, and the command that would do it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from config import PRESETS
from reports.results import ROOT, Run


class Missing(NamedTuple):
    """`what` is absent; `command` would make it."""

    key: str  # "pgd", "autoattack", "distances", "margins", "training": the column that is empty
    what: str
    command: str


def program(name: str) -> str:
    """`python NAME` with the interpreter in use, as one types it from here."""
    shortest = min((sys.executable, os.path.relpath(sys.executable)), key=len)
    return shlex.join([shortest, os.path.relpath(ROOT / name)])


def evaluation_command(run: Run, name: str, norm: str, *flags: str) -> str:
    """An evaluator's command line for this run."""
    own = [] if norm == run.norm else ["--norm", norm]
    code = run.config.get("network")
    trusted = ["--network", code] if isinstance(code, str) and ":" in code else []
    return f"{program(name)} {shlex.join(['--model', str(run.folder), *own, *flags, *trusted])}"


def radii_flags(radii: Sequence[float]) -> list[str]:
    """`--eps` with the radii of the table, else the grid of the data set."""
    return ["--eps", *(f"{eps:.6g}" for eps in radii)] if radii else ["--eps", "grid"]


def training_command(run: Run) -> str:
    """What would train on, or again, into this folder: by the settings that differ from the preset's."""
    config = run.config
    flags = [str(config.get("dataset") or "DATASET"), "--norm", str(config.get("norm") or "NORM")]
    preset = PRESETS.get((str(config.get("dataset")), str(config.get("norm"))))
    for name in ("recipe", "method", "hinge_maxeps", "train_eps", "seed", "max_steps"):
        value = config.get(name)
        if value is not None and preset is not None and value != getattr(preset, name):
            flags += [f"--{name}", f"{value:.6g}" if isinstance(value, float) else str(value)]
    return f"{program('train.py')} --dataset {shlex.join([*flags, '--savepath', str(run.folder), '--resume'])}"


def missing(
    run: Run, norm: str, evaluations: Sequence[dict[str, Any]], radii: Sequence[float], has_margins: bool
) -> list[Missing]:
    """Of the evaluations under `norm`, those that the page would show and this run lacks.

    radii: those of the table, which the run should have under PGD.
    """
    there = {evaluation["attack"] for evaluation in evaluations}
    found = []
    has = {round(row["eps"], 6) for e in evaluations if e["attack"] == "pgd" for row in e["results"]}
    if "pgd" not in there or not set(radii) <= has:
        command = evaluation_command(run, "evaluate_on_pgd_attacks.py", norm, *radii_flags(radii))
        found.append(Missing("pgd", "accuracy under repeated PGD" + (" at every ε" if has else ""), command))
    if "autoattack" not in there:
        found.append(Missing("autoattack", "AutoAttack", evaluation_command(run, "evaluate_on_autoattack.py", norm)))
    if not any("quartiles" in evaluation for evaluation in evaluations):
        command = evaluation_command(run, "evaluate_on_minimum_norm.py", norm)
        found.append(Missing("distances", "shortest distances of test images", command))
    if norm == run.norm and run.steps is None:
        found.append(Missing("training", "curves and cost (metrics.jsonl)", training_command(run)))
    elif norm == run.norm and not has_margins and run.config.get("method") in ("mma", "omma"):
        found.append(Missing("margins", "margins by epoch (margins.npy)", training_command(run)))
    if "pgd" in there and not any(evaluation.get("sanity") for evaluation in evaluations):
        command = evaluation_command(run, "evaluate_on_pgd_attacks.py", norm, *radii_flags(radii))
        found.append(Missing("sanity", "the sanity battery", command))
    return found
