"""Run folders and the evaluations beside their models, read for the tables."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import METHODS as TRAINED_BY
from config import PRESETS, SPLITS
from errors import UserError
from evaluations.results import average_accuracies, effort, joined_checks, merged, quoted, read_file, way
from presets import recipe_values
from records.reading import is_number, parse_json
from reports import published

RUN_NAME = re.compile(r"(?P<dataset>.+?)-(?P<norm>Linf|L2)-(?P<method>.+?)-sd(?P<seed>\d+)(?P<rest>-.+)?")
METHODS = ("STD", "PGD", "PGDLS", "TRADES", "OMMA", "MMA")  # the order of rows
TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar10jpeg": "CIFAR-10 (JPEG)",
    "imagefolder": "Image folder",
}
NORMS = {"Linf": "ℓ∞", "L2": "ℓ2"}
TEST_IMAGES = {"digits": 397, "mnist": 10_000, "cifar10": 10_000}
ATTACKS = {
    "pgd": "white-box PGD",
    "autoattack": "AutoAttack",
    "square": "Square",
    "spsa": "SPSA",
    "transfer": published.STRONGEST,
    "cw": "Carlini-Wagner ℓ2",
    "ddn": "DDN",
    "fmn": "FMN",
}
# What may differ between seeds without a word: it names the seed, or where and how often something is written.
UNIMPORTANT = {
    "seed",
    "savepath",
    "data_root",
    "device",
    "environment",
    "resume",
    "disp_interval",
    "save_interval",
    "tensorboard",
    "batch_size",
    "batch_size_asked",
    "eval_batch_size",
    "test_size",
    "name",
    "overrides",
}
NONE, WARNING = "–", "⚠"


SHARED = ("n", "split", "images", "clean_acc", "clean_ci95", "seed", "settings", "sources")
DISTANCES = ("mean", "quartiles", "not_found", "mean_of_found", "anpgd", "distances")


def content_of(content: dict[str, Any], rows: list[dict[str, Any]], best: list[dict[str, Any]]) -> dict[str, Any]:
    """A file's content with what the quoted rows of most images share repeated at its top."""
    first = max(best, key=lambda row: (row["n"], effort(row)))
    same = [row for row in best if row["n"] == first["n"]]
    top = {key: content[key] for key in ("format", "attack", "model_sha256", "dataset", "norm")}
    top |= {key: first[key] for key in (*SHARED, *DISTANCES) if key in first}
    top["seconds"] = round(sum(row.get("seconds", 0) for row in same), 1)
    top["settings"] = {key: value for key, value in first["settings"].items() if key != "eps_iter"}
    if "robust_acc" in first:
        top |= average_accuracies(first["clean_acc"], [row["robust_acc"] for row in same])
    ways = [way(row) for row in best]
    if checks := joined_checks([*best, *(row for row in rows if row["split"] == first["split"] and way(row) in ways)]):
        top["sanity"] = checks
    return {**top, "results": best}


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of an `eval_*.json`: of each eps the row to quote in `results`, or `distances` with `mean` and
    `quartiles`; of the test images, unless it holds validation images only.

    :raises ValueError: saying what is wrong with it.
    """
    contents = read_file(path)
    if not contents:
        raise FileNotFoundError(path)
    content = contents[0]
    if path.name != (right := f"eval_{content['attack']}_{content.get('norm')}.json"):
        raise ValueError(f"its name is not {right}")
    rows = content["results"]
    for part in rows:
        refuse_odd_figures(part)
    best = next((best for split in SPLITS if (best := quoted(rows, split))), [])
    if not best:
        raise ValueError("it has no rows of a split that is known")
    shown = content_of(content, rows, best)
    return {key: value for key, value in shown.items() if key != "results" or "eps" in best[0]}


def refuse_odd_figures(part: dict[str, Any]) -> None:
    """:raises ValueError: if what the tables show of a row, or of the top of a file, is not what an evaluation writes."""
    anpgd = part.get("anpgd")
    if not isinstance(anpgd, dict | None):
        raise ValueError("anpgd is not a JSON object")
    if anpgd is not None:
        values = [anpgd["mean"], *anpgd["quartiles"]]
        if len(values) != 4 or not all(value is None or is_number(value) for value in values):
            raise ValueError("mean or quartiles are not numbers")
    for interval in (part.get("clean_ci95") or [0, 0], part.get("ci95") or [0, 0]):
        if not isinstance(interval, list) or len(interval) != 2 or not all(map(is_number, interval)):
            raise ValueError("an interval is not two numbers")
    if not isinstance(part.get("warnings"), list | None):
        raise ValueError("warnings are no list")


def shown(path: Path) -> Path:
    """A path as a page names it: inside this repository by its path there, else as it was given."""
    whole = path.resolve()
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else path


def checked_config(path: Path) -> dict[str, Any]:
    """A run's config.json.

    :raises OSError, ValueError: if it cannot be read, or what the tables and pictures need of it is of another type.
    """
    config = parse_json(path.read_text())
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    if not all(isinstance(config.get(key), str | None) for key in ("dataset", "norm")):
        raise ValueError("dataset or norm is not text")
    size, d_max = config.get("batch_size") or 1, config.get("hinge_maxeps") or 1
    if type(size) is not int or size < 1 or not is_number(d_max):
        raise ValueError("batch_size or hinge_maxeps is not a number")
    return config


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder: what its name says, and its evaluations."""

    folder: Path
    config: dict[str, Any]
    evaluations: list[dict[str, Any]]
    damaged: list[str]  # one line each

    @cached_property
    def name(self) -> re.Match[str] | None:
        return RUN_NAME.fullmatch(self.folder.resolve().name)

    @property
    def shown(self) -> Path:
        return shown(self.folder)

    @property
    def seed(self) -> str:
        return f"sd{self.name['seed']}" if self.name else self.folder.name

    @property
    def norm(self) -> str | None:
        """Of the training."""
        return self.config.get("norm") or (self.name and self.name["norm"])

    @property
    def name_without_seed(self) -> str:
        whole = self.folder.resolve().name
        return re.sub(r"-sd\d+(?=-|$)", "", whole) if self.name else whole

    @cached_property
    def steps(self) -> int | None:
        """Steps done, if metrics.jsonl says."""
        path = self.folder / "metrics.jsonl"
        for line in reversed(path.read_text(errors="replace").splitlines() if path.exists() else []):
            try:
                return int(parse_json(line)["step"])
            except (ValueError, TypeError, KeyError, OverflowError):  # a half-written last line
                continue
        return None

    @property
    def partial(self) -> str | None:
        """`500 of the preset's 100000 steps`, where these are fewer than its data set's preset, or its recipe, has."""
        key = (str(self.config.get("dataset")), str(self.norm))
        if key not in PRESETS or self.steps is None:
            return None
        method = self.config.get("method") if self.config.get("method") in TRAINED_BY else None
        recipe = recipe_values(self.config.get("recipe"), key, method, self.config.get("network"))
        whole = recipe.get("max_steps", PRESETS[key].max_steps)
        if not isinstance(whole, int) or self.steps >= whole:
            return None
        return f"{self.steps} of the {'recipe' if recipe else 'preset'}'s {whole} steps"

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every checkpoint in the folder -> its name; empty where none is at hand."""
        files = [path for path in self.folder.glob("*.pt") if not path.name.startswith("adv_")]
        return {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in files}

    def doubts(self, evaluation: dict[str, Any]) -> list[str]:
        """Why a figure is not to be trusted: another checkpoint, a failed sanity check, a warning of the attack's."""
        found = []
        if self.hashes and evaluation.get("model_sha256") not in self.hashes:
            found.append("stale: made with another checkpoint than those in the folder; evaluate again")
        for check, outcome in (evaluation.get("sanity") or {}).items():
            if isinstance(outcome, dict) and outcome.get("ok") is False:
                said = ", ".join(str(value) for key, value in outcome.items() if key != "ok")
                found.append(f"sanity check failed: {check}" + (f" ({said})" if said else ""))
        for row in evaluation.get("results", ()):
            found += merged(map(str, row.get("warnings") or []))
            if row.get("invalid"):
                found.append(f"{row['invalid']} images got a perturbation that is not valid, and count as robust")
        return found


def read_run(folder: Path, splits: Collection[str] = ("test",)) -> Run:
    """splits: whose images its evaluations may be of; tables are of test images.

    :raises UserError: if there is nothing of that name.
    """
    if not folder.exists():
        raise UserError(f"run folder {folder}: not there: name folders that train.py made")
    config, evaluations, damaged = {}, [], []
    for path in [*folder.glob("config.json"), *sorted(folder.glob("eval_*.json"))]:
        try:
            if path.name == "config.json":
                config = checked_config(path)
            else:
                evaluation = read_evaluation(path)
                if evaluation.get("split", "test") in splits:
                    evaluations.append({**evaluation, "file": path.name})
        except KeyError as error:
            damaged.append(f"`{shown(path)}` is left out: it has no {error}")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            damaged.append(f"`{shown(path)}` is left out: {' '.join(str(error).split())}")
    return Run(folder, config, evaluations, damaged)


def table_key(run: Run, evaluation: dict[str, Any]) -> tuple[str, str]:
    """The table this evaluation belongs to: what the images are called, and the norm of the attack."""
    return image_name(evaluation["dataset"], run.folder.resolve().name), evaluation["norm"]


def image_name(dataset: str, run_name: str) -> str:
    """What the images are called: an image folder by its run's name, but never as a data set that is published on."""
    name = RUN_NAME.fullmatch(run_name)
    if dataset != "imagefolder" or not name:
        return dataset
    return name["dataset"] + (" (image folder)" if name["dataset"] in TEST_IMAGES else "")


def title(dataset: str) -> str:
    return TITLES.get(dataset, dataset)


def in_255ths(dataset: str, norm: str) -> bool:
    """Whether radii are said in 255ths: colour images under Linf."""
    return norm == "Linf" and dataset not in ("digits", "mnist")


def eps_text(eps: float, dataset: str, norm: str, digits: int = 4) -> str:
    """`8/255` or `0.3`."""
    return f"{255 * eps:.{digits}g}/255" if in_255ths(dataset, norm) else f"{eps:.{digits}g}"
