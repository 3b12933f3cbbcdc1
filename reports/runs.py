"""Run folders, read for tables, pictures and the page: settings, log, evaluations; all figures to quote as one frame.

Method, radius, norm and seed are what config.json says; a folder may have any name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import reports

reports.require("pandas", "jinja2")

import numpy as np
import pandas as pd

from config import PRESETS, Config
from errors import UserError
from evaluations.compare_attacks import NAMES, nearest, of_same_images
from evaluations.results import Row, accuracy_of, function_of, joined_checks, merged, quoted, read_file, same_eps, way
from flags import as_typed, parse_train
from presets import USES
from records.commands import ROOT
from records.reading import is_number, parse_json, read_margins
from validation import stored_config

# In words, in the order of a table's rows; so are the attacks.
METHODS = {"std": "standard training"} | {
    name: name.upper() for name in ("pgd", "pgdls", "trades", "ddn", "omma", "mma")
}
STRONGEST = "strongest of white-box and transferred PGD"
ATTACKS = NAMES | {"pgd": "white-box PGD", "transfer": STRONGEST, "cw": "Carlini-Wagner ℓ2"}
Rows: TypeAlias = pd.DataFrame  # what `frame` gives, or a part of it
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".th", ".tar", ".bin", ".safetensors")
NORMS = {"Linf": "ℓ∞", "L2": "ℓ2"}
TITLES = {
    "digits": "Digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar10jpeg": "CIFAR-10 (JPEG)",
    "imagefolder": "Image folder",
}
TEST_IMAGES = {"digits": 397, "mnist": 10_000, "cifar10": 10_000}
NAMED = ("dataset", "norm", "method", "hinge_maxeps", "train_eps")  # what a run's first words say


# --- settings in words ---------------------------------------------------------------------------------------------


def title(images: str) -> str:
    """What a data set is called in headings; a folder of pictures by its own name."""
    return TITLES.get(images, images)


def in_255ths(images: str, norm: str) -> bool:
    """Whether radii are said in 255ths: colour images under Linf."""
    return norm == "Linf" and images not in ("digits", "mnist")


def eps_text(eps: float, images: str, norm: str, digits: int = 4) -> str:
    """`8/255` or `0.3`."""
    return f"{255 * eps:.{digits}g}/255" if in_255ths(images, norm) else f"{eps:.{digits}g}"


def method_text(method: str, radius: float | None, images: str, norm: str) -> str:
    """`MMA, d_max 0.45`, `PGD, ε 8/255`, `standard training`."""
    if method == "std" or radius is None:
        return METHODS[method]
    symbol = "d_max" if method in ("mma", "omma") else "ε"
    return f"{METHODS[method]}, {symbol} {eps_text(radius, images, norm)}"


@functools.cache
def flags_of(config: Config) -> dict[str, str]:
    """Flag -> value: what train.py must be told for these settings. What data set, norm, recipe and method imply is
    left out; so is what does not matter to the result, and what has no meaning for the method."""
    method = ["method"] if config.method != "mma" else []
    first = ["dataset", "norm", *method, *(["hinge_maxeps"] if config.enlarges_margins else [])]
    if config.enlarges_margins and config.attack_mineps != PRESETS[config.dataset, config.norm].attack_mineps:
        first.append("attack_mineps")  # the usual one may lie above d_max
    rest = [field.name for field in dataclasses.fields(Config) if not field.metadata["of_run"]]
    # What others follow from comes first: the recipe's values depend on the network, lengths on max_steps.
    order = dict.fromkeys(["recipe", "network", "max_steps", "keep_directions", "search", "one_cycle", *rest])
    found = {name: _typed(getattr(config, name)) for name in first}
    implied = parse_train(_words(found))[0]
    for name in (name for name in order if config.method in USES.get(name, (config.method,))):
        value = getattr(config, name)
        if value is not None and value != getattr(implied, name):
            found[name] = _typed(value)
            implied = parse_train(_words(found))[0]
    # What was given, though it is the usual value: else it would follow from the number of images.
    given = (name for name in implied.by_images if name not in config.by_images)
    return found | {name: _typed(getattr(config, name)) for name in given}


def _words(flags: dict[str, str]) -> list[str]:
    """As the shell hands them over."""
    switches = {"True": "--{}", "False": "--no-{}"}
    pairs = ([switches[v].format(name)] if v in switches else [f"--{name}", v] for name, v in flags.items())
    return [word for pair in pairs for word in pair]


def _typed(value: object) -> str:
    """A value as it is typed: 255ths as fractions, schedules by step."""
    if isinstance(value, float) and value != round(value, 4) and abs(255 * value - round(255 * value)) < 1e-9:
        return f"{round(255 * value)}/255"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else as_typed(value)


def training_command(config: Config, savepath: str) -> str:
    """`python train.py …`, which trains such a network into `savepath`."""
    data = ["--data_root", config.data_root] if config.dataset == "imagefolder" else []
    return shlex.join(["python", "train.py", *_words(flags_of(config)), *data, "--savepath", savepath])


@dataclass(frozen=True, eq=False)
class Run:
    """A folder that train.py made, or one with evaluations of another program's network: then `config` is None."""

    folder: Path
    config: Config | None
    environment: dict[str, Any]  # machine, versions
    log: list[dict[str, Any]]  # rows of metrics.jsonl
    evaluations: dict[str, list[Row]]  # by file: every row, with attack, norm, dataset, model_sha256
    damaged: list[str]  # a line each
    hashes: dict[str, str]  # SHA-256 of every checkpoint in the folder -> its name
    checkpoint: str = ""  # the file that was evaluated, where several of another program lie in one folder

    @property
    def name(self) -> str:
        return self.folder.resolve().name + (f"/{self.checkpoint}" if self.checkpoint else "")

    @property
    def shown(self) -> Path:
        """Inside this repository by its path there, else as it was given."""
        whole = self.folder.resolve()
        return (whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else self.folder) / self.checkpoint

    @property
    def trained(self) -> Config:
        """The settings of its training.

        :raises UserError: if there are none.
        """
        if self.config is None:
            raise UserError(f"{self.folder / 'config.json'}: missing or damaged: name a folder that train.py made")
        return self.config

    @property
    def seed(self) -> int:
        return self.config.seed if self.config else 0

    @property
    def norm(self) -> str | None:
        """Of its training."""
        return self.config.norm if self.config else None

    @property
    def method(self) -> str | None:
        return self.config.method if self.config else None

    @property
    def radius(self) -> float | None:
        """d_max of MMA and OMMA, ε of PGD, PGDLS and TRADES."""
        if self.config is None or not self.config.attacks:
            return None
        return self.config.check_maxeps if self.config.enlarges_margins else self.config.eps_at(self.config.max_steps)

    @property
    def images(self) -> str:
        """The data set; a folder of pictures by its own name, but never as a data set that is published on."""
        if self.config is None or self.config.dataset != "imagefolder":
            return self.config.dataset if self.config else ""
        name = Path(self.config.data_root).name
        return "imagefolder" if name in ("", "data") else name + (" (image folder)" if name in TEST_IMAGES else "")

    @property
    def words(self) -> str:
        """`MMA, d_max 0.45`; the folder's name where there is no config."""
        if self.config is None:
            return self.name
        return method_text(self.config.method, self.radius, self.images, self.config.norm)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps done."""
        return max((int(row["step"]) for row in self.log), default=0)

    @cached_property
    def settings(self) -> dict[str, str]:
        """What the words do not say, by flag; and how far it got, where that is not to the end."""
        if self.config is None:
            return {}
        said = {name: value for name, value in flags_of(self.config).items() if name not in (*NAMED, "seed")}
        unfinished = 0 < self.steps < self.config.max_steps
        return said | ({"steps done": f"{self.steps} of {self.config.max_steps}"} if unfinished else {})

    def doubts(self, file: str, split: str = "test", of: tuple[str, str] | None = None) -> list[str]:
        """Why the figures of a file are not to be trusted: another checkpoint, a failed check, a warning of the attack's. of: of
        this function of the checkpoint alone (`function_of`)."""
        rows = [row for row in self.evaluations[file] if of is None or function_of(row) == of]
        best = quoted(rows, split)
        found = []
        if self.hashes and rows and rows[0]["model_sha256"] not in self.hashes:
            found.append("stale: made with another checkpoint than those in the folder; evaluate again")
        ways = [way(row) for row in best]
        same = [row for row in rows if row["split"] == split and way(row) in ways]
        for check, outcome in joined_checks([*best, *same]).items():
            if outcome.get("ok") is False:
                found.append(f"sanity check failed: {check} ({outcome.get('value', '')})")
        for row in best:
            found += merged(map(str, row.get("warnings", [])))
            if row.get("invalid"):
                found.append(f"{row['invalid']} images got a perturbation that is not valid, and count as robust")
        return found

    @cached_property
    def passes(self) -> float | None:
        """Of training, without the checks: how often an image went forward, or forward and backward, where it was counted."""
        return max((row["passes"] for row in self.log if is_number(row.get("passes"))), default=None)

    @property
    def passes_at_most(self) -> float | None:
        """Those counted, else what the settings ask for if every image is right in every step."""
        asked = self.steps * self.config.batch_size * self.config.passes_an_image if self.config else 0
        return self.passes or asked or None

    @cached_property
    def minutes(self) -> float | None:
        """Of optimizer steps."""
        rows = [row for row in self.log if row.get("kind") == "train" and is_number(row.get("steps_per_second"))]
        speeds = [(row["step"], row["steps_per_second"]) for row in rows if row["steps_per_second"] > 0]
        taken = (max(step - before, 0) / speed for (before, _), (step, speed) in pairwise([(0, 0), *speeds]))
        return sum(taken) / 60 or None

    def margins(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,) epochs done at each check, the last perhaps in part; (E, N) radii of N training images there, in input units,
        0 where an image was wrong when last seen, or not seen yet, infinite where the search ended without an adversarial one.

        :raises UserError: if the run has none, or the file is damaged.
        """
        path, recorded = self.folder / "margins.npy", self.trained.enlarges_margins
        try:
            eps = read_margins(path).astype(np.float32)
        except FileNotFoundError:
            why = "this copy of the run is without it" if recorded else "only MMA and OMMA training record margins"
            raise UserError(f"{path}: not there, {why}: name another run, or train it anew") from None
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}): leave this run out") from None
        if not eps.any():
            why = "every margin in it is 0, as no image was right when it was trained on"
            raise UserError(f"{path}: {why}: name another run, or train it longer")
        bracket = 0 if self.trained.search == "secant" else 2.0**-self.trained.num_search_steps
        eps[eps >= 0.999 * (1 - bracket) * self.trained.search_maxeps] = np.inf  # 0.999: they are in half precision
        checks = [row["step"] for row in self.log if row.get("kind") == "eval" and row.get("split") == "val"]
        if len(checks) != len(eps):
            return np.arange(1, len(eps) + 1), eps
        return np.array(checks) / -(-eps.shape[1] // self.trained.batch_size), eps


# --- reading -------------------------------------------------------------------------------------------------------


def read_run(folder: Path, checkpoint: str = "") -> Run:
    """Everything in the folder that can be read; what cannot is named in `damaged`. Results are those of model_best.pt, else
    of what was evaluated last; with `checkpoint`, a file's name, of that file alone.

    :raises UserError: if the folder is not there, or holds neither a config nor an evaluation.
    """
    config: Config | None = None
    environment: dict[str, Any] = {}
    evaluations: dict[str, list[Row]] = {}
    damaged: list[str] = []
    paths = [*folder.glob("config.json"), *sorted(folder.glob("eval_*.json"))] if folder.is_dir() else []
    if not paths:
        why = "holds no run" if folder.is_dir() else "not there"
        raise UserError(f"run folder {folder}: {why}: name folders that train.py made")
    hashes = checkpoints_in(folder)
    wanted = [sha256 for sha256, name in hashes.items() if name == (checkpoint or "model_best.pt")]
    for path in paths:
        try:
            if path.name == "config.json":
                content = parse_json(path.read_bytes())
                config, said = stored_config(content, path), content.get("environment")
                environment = said if isinstance(said, dict) else {}
            elif rows := _rows_of(path, wanted, config, alone=bool(checkpoint)):
                evaluations[path.name] = rows
        except (UserError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            damaged.append(f"`{path}` is left out: {why}")
    log = read_log(folder / "metrics.jsonl")
    return Run(folder, config, environment, log, evaluations, damaged, hashes, checkpoint)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Each folder once; files beside folders, as a * gives them, are left out.

    :raises UserError: if one is not there, or all are files.
    """
    different = {folder.resolve(): folder for folder in folders if not folder.is_file()}
    if not different:
        raise UserError(f"run folder {folders[0]}: is a file: name folders that train.py made")
    return [read_run(folder, file) for folder in different.values() for file in _evaluated(folder) or [""]]


def _evaluated(folder: Path) -> list[str]:
    """The checkpoint files of a folder that train.py did not make which have results there, if they are several."""
    if (folder / "config.json").exists():
        return []
    found = set()
    for path in folder.glob("eval_*.json"):
        with suppress(OSError, ValueError):  # said when it is read
            found |= {content.get("model_sha256") for content in read_file(path)}
    names = sorted(name for sha256, name in checkpoints_in(folder).items() if sha256 in found)
    return names if len(names) > 1 else []


def checkpoints_in(folder: Path) -> dict[str, str]:
    """SHA-256 of every checkpoint file -> its name."""
    files = [path for path in folder.glob("*") if path.suffix in CHECKPOINTS and not path.name.startswith("adv_")]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in files}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that have a step, in their order; the last line may be half written."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict) and is_number(row.get("step")) and row["step"] >= 0]


def _rows_of(path: Path, wanted: Sequence[str], config: Config | None, alone: bool) -> list[Row]:
    """Every row of one checkpoint on one data set in an `eval_*.json`: the wanted one (its sha256), or unless it is `alone`
    another; on the data set of its training, or another; the latest.

    :raises ValueError, KeyError, TypeError: if it is not what an evaluation writes.
    """
    contents = [one for one in read_file(path) if one["model_sha256"] in wanted or not alone]
    if not contents:
        return []
    dataset = config.dataset if config else None
    content = min(contents, key=lambda one: (one["model_sha256"] not in wanted, one["dataset"] != dataset))
    head = {name: content[name] for name in ("attack", "norm", "dataset", "model_sha256")}
    if path.name != (right := f"eval_{head['attack']}_{head['norm']}.json"):
        raise ValueError(f"its name is not {right}")
    if head["attack"] not in ATTACKS or head["norm"] not in NORMS:
        raise ValueError("of no attack or norm that is known here")
    return [{**row, **head, "file": path.name} for row in content["results"]]


# --- the frame -----------------------------------------------------------------------------------------------------


def labels(runs: Sequence[Run]) -> list[str]:
    """Of each run its method and radius, and the settings that not all runs of these words share. Runs that differ in
    their seed alone have one label; the same seed twice is told apart by its folder."""
    keys = []
    for run in runs:
        like = [one.settings for one in runs if (one.words, one.images, one.norm) == (run.words, run.images, run.norm)]
        own = [f"{name} {v}" for name, v in run.settings.items() if any(other.get(name) != v for other in like)]
        keys.append((", ".join([run.words, *own]), run.images, run.norm, run.seed))
    return [f"{key[0]} ({run.shown})" if keys.count(key) > 1 else key[0] for run, key in zip(runs, keys, strict=True)]


def frame(runs: Sequence[Run], split: str = "test") -> Rows:
    """A row for each figure to quote, in the order of tables. Columns: `run`, `label` (in words), `images`, `norm` and
    `attack`, `eps` (rounded; NaN of a search for the nearest image), `n`, `clean` and `robust` (per cent), `doubted`,
    and `row`, as it is stored; of transferred images less what PGD's own row breaks beyond it."""
    found = []
    for run, label in zip(runs, labels(runs), strict=True):
        ways = {(file, function_of(row)) for file, rows in run.evaluations.items() for row in rows}
        doubted = {(file, of) for file, of in ways if run.doubts(file, split, of)}
        codes = {function_of(row)[0] for rows in run.evaluations.values() for row in rows}
        for file, row in ((file, row) for file, rows in run.evaluations.items() for row in quoted(rows, split)):
            (network, standardised), norm, files = function_of(row), row["norm"], {file}
            images = run.images if run.images and row["dataset"] == "imagefolder" else row["dataset"]
            said = [
                label,
                network.partition(" instead")[0] if len(codes) > 1 else "",
                f"standardise {standardised}" if standardised else "",
                f"trained under {NORMS[str(run.norm)]}" if run.norm not in (None, norm) else "",
                f"trained on {title(run.images)}" if run.images not in ("", images) else "",
            ]
            if row["attack"] == "transfer":
                files.add(white_box := f"eval_pgd_{norm}.json")
                row = with_white_box(row, quoted(run.evaluations.get(white_box, []), split))
            eps, robust = round(row.get("eps", np.nan), 6), 100 * row.get("robust_acc", np.nan)
            figures = (
                eps,
                row["n"],
                100 * row["clean_acc"],
                robust,
                not doubted.isdisjoint((file, function_of(row)) for file in files),
                row,
            )
            found.append((run, ", ".join(filter(None, said)), images, norm, row["attack"], *figures))

    def order(one: tuple[Any, ...]) -> tuple[Any, ...]:
        run, label, images, norm, attack, eps, *_ = one
        method = [*METHODS, None].index(run.method), run.radius or 0
        return images, norm, *method, label, run.seed, list(ATTACKS).index(attack), np.nan_to_num(eps)

    columns = ("run", "label", "images", "norm", "attack", "eps", "n", "clean", "robust", "doubted", "row")
    return pd.DataFrame(sorted(found, key=order), columns=columns).astype({"eps": float, "robust": float})


def kind_of(rows: Rows) -> tuple[str, str]:
    """Data set and norm of rows that share them."""
    return rows["images"].iloc[0], rows["norm"].iloc[0]


def nearest_known(rows: Rows) -> list[float]:
    """Of a run's rows of one data set and norm: for each image of the search that saw most of them the distance of its
    nearest adversarial image, inf where there is none; attacks at one eps, and those that are not quoted, count too. Empty
    if no search is among them."""
    searches = [row for row in rows["row"] if "distances" in row]
    if not searches:
        return []
    like = max(searches, key=lambda row: row["n"])

    def of(row: Row) -> tuple[Any, ...]:
        return *(row[name] for name in ("model_sha256", "norm", "dataset", "split")), function_of(row)

    every = chain(*rows["run"].iloc[0].evaluations.values())
    return nearest((row for row in every if of(row) == of(like)), like, like["dataset"])


def with_white_box(row: Row, white_box: Iterable[Row]) -> Row:
    """A row of transferred images, less what PGD's own row at its radius breaks beyond it: of these images, or of more
    of which they are the first, and of the same checkpoint."""
    for own in (own for own in white_box if own["n"] >= row["n"] and of_same_images(own, row, row["dataset"])):
        alike = own["model_sha256"] == row["model_sha256"] and function_of(own) == function_of(row)
        if alike and same_eps(own["eps"], row["eps"]):
            both = zip(own["flags"], row["flags"], strict=False)
            return row | accuracy_of("".join("1" if a == b == "1" else "0" for a, b in both))
    return row


def spread(values: Sequence[float], decimals: int = 1, of: int = 0) -> str:
    """`mean`, or `mean ± standard deviation` of several; with how many they are where that is less than `of`."""
    deviation = f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
    few = f" ({len(values)} of {of} seeds)" if len(values) < of else ""
    return f"{np.mean(values):.{decimals}f}{deviation}{few}"
