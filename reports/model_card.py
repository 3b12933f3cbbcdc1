"""Write a run folder's model card, its `README.md`, from the files in it: never by hand.

python reports/model_card.py RUN RUN ...

What the network is, the command that trained it, data, machine, passes, every evaluation with its interval, margins, licence
and sha256. What is not there is said to be missing. margins.png is drawn anew where margins.npy is at hand.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt

from config import BEST_BY, PRESETS, SPLITS, Config
from errors import UserError, exits_on_user_error
from flags import Parser
from records.checkpoint import load_model_file
from reports import plot_margins
from reports.figures import strongest
from reports.plotting import read_config
from reports.report_training import cost, rows_of
from reports.results import ATTACKS, NORMS, Run, eps_text, image_name, read_run, title
from utils import write_atomically
from validation import stored_config

DATA = {
    "digits": "scikit-learn's digits, 8×8 grey: 1 200 training, 200 validation, 397 test images",
    "mnist": "MNIST, 28×28 grey: 55 000 training, 5 000 validation, 10 000 test images",
    "cifar10": "CIFAR-10, 32×32 colour: 45 000 training, 5 000 validation, 10 000 test images",
}
METHODS = {
    "mma": "MMA training",
    "omma": "OMMA (MMA without the clean loss)",
    "std": "ordinary training",
    "pgd": "adversarial training with PGD at one ε",
    "pgdls": "adversarial training with PGD, ε growing from 0",
    "trades": "TRADES",
}
NOT_SAID = {
    "dataset",
    "norm",
    "device",
    "resume",
    "savepath",
    "data_root",
    "disp_interval",
    "save_interval",
    "tensorboard",
}
MADE = "*Made by `python reports/model_card.py "  # how a card's third line begins
OF_ROW = ("n", "split", "clean_acc", "clean_ci95", "settings", "seed")
EFFORTS = ("nb_iter", "nb_restart", "queries", "steps", "attacks")


def training_command(config: Config, savepath: str) -> str:
    """`python train.py …`: the flags that differ from the data set's preset."""
    words = ["python", "train.py", "--dataset", config.dataset, "--norm", config.norm]
    preset = PRESETS[config.dataset, config.norm]
    method = config.method
    if method != "mma":
        words += ["--method", method]
    derived = {"method", "clean_loss_coeff"} if method != "mma" else {"method"}
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.name in NOT_SAID | derived or value is None or value == getattr(preset, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else f"--no-{field.name}")
        else:
            words += [f"--{field.name}", flag_value(value)]
    return shlex.join([*words, "--savepath", savepath])


def flag_value(value: object) -> str:
    """As it is typed: 255ths as fractions, schedules by step."""
    if isinstance(value, tuple):
        return ",".join(f"{step}:{rate!r}" for step, rate in value)
    if isinstance(value, float) and value != round(value, 4) and abs(255 * value - round(255 * value)) < 1e-9:
        return f"{round(255 * value)}/255"
    return repr(value) if isinstance(value, float) else str(value)


def evaluation_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Each result with what it shares with the others of its file: images, split, settings."""
    top = {key: evaluation[key] for key in OF_ROW if key in evaluation}
    return [{**top, **row} for row in evaluation.get("results") or [evaluation]]


def accuracy(value: float, interval: Sequence[float] | None) -> str:
    """`98.9 [97.4, 99.6]`, in per cent."""
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def how(row: dict[str, Any]) -> str:
    """`100 steps, 10 restarts`, or whatever its settings say of the effort."""
    names = {"nb_iter": "steps", "nb_restart": "restarts"}
    settings = row.get("settings") or {}
    said = [f"{settings[name]} {names.get(name, name)}" for name in EFFORTS if isinstance(settings.get(name), int)]
    if settings.get("standard") is False:
        said.append("not standard AutoAttack")
    return ", ".join(said) or "see the JSON"


def evaluations_table(run: Run, sha256: str | None) -> list[str]:
    """A row for each attack and radius, of this very checkpoint; others are said to be stale."""
    lines = [
        "| attack | ε | clean [%] | robust [%], 95 % interval | images | effort |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    stale = []
    of = {evaluation["attack"]: evaluation for evaluation in run.evaluations}
    for evaluation in run.evaluations:
        attack, norm = evaluation["attack"], evaluation["norm"]
        if sha256 and evaluation.get("model_sha256") != sha256:
            stale.append(f"`{evaluation['file']}` is of another checkpoint and is left out.")
            continue
        counted = strongest(evaluation, of.get("pgd")) if attack == "transfer" else evaluation
        for row in evaluation_rows(counted):
            images = f"{row['n']} {row.get('split') or 'test'}"
            if "eps" in row:
                figure = accuracy(row["robust_acc"], row.get("ci95"))
                radius = eps_text(row["eps"], evaluation["dataset"], norm)
            else:
                quartiles = [row["quartiles"][0], row["quartiles"][1], row["quartiles"][2]]
                figure, radius = "distances: " + ", ".join("–" if q is None else f"{q:.3g}" for q in quartiles), "–"
            name = f"{ATTACKS.get(attack, attack)}, {NORMS[norm]}"
            clean = accuracy(row["clean_acc"], row.get("clean_ci95"))
            lines.append(f"| {name} | {radius} | {clean} | {figure} | {images} | {how(row)} |")
        lines += [f"| | | | {doubt} | | |" for doubt in run.doubts(evaluation)]
    if len(lines) == 2:
        lines = ["Not evaluated."]
    if not any(e["attack"] == "autoattack" and sha256 in (None, e.get("model_sha256")) for e in run.evaluations):
        lines += [
            "",
            f"AutoAttack: not evaluated; `python evaluate_on_autoattack.py --model {shlex.quote(str(run.shown))}` does.",
        ]
    return [*lines, "", *stale] if stale else lines


def passes_text(config: dict[str, Any], folder: Path) -> str:
    """How often an image went through the network in training and how long that took, if its rows say."""
    found = cost(config, rows_of(folder))
    if not found.recorded or found.passes is None:
        return "not recorded"
    minutes = f"; {found.minutes:.3g} minutes" if found.minutes else ""
    return f"{int(found.passes):,}".replace(",", " ") + f" (an image once through the network, in training){minutes}"


def margins_picture(folder: Path) -> list[str]:
    """margins.png, drawn anew if margins.npy is there."""
    picture = folder / "margins.png"
    if (folder / "margins.npy").exists():
        try:
            figure, _ = plot_margins.draw([folder])
        except UserError:
            return ["Margins: not recorded in training."]
        figure.savefig(picture, dpi=80)
        plt.close(figure)
    if not picture.exists():
        return ["Margins: not recorded in training, or margins.npy is not at hand."]
    return [f"![Margins of the training images, by epoch and at the end]({picture.name})"]


def card(folder: Path) -> str:
    """The page, in Markdown.

    :raises UserError: if the folder holds no run.
    """
    stored, run = read_config(folder), read_run(folder, SPLITS)
    config = stored_config(stored, folder / "config.json")
    name, environment = folder.resolve().name, stored.get("environment") or {}
    file = load_model_file(str(folder)) if (folder / "model_best.pt").exists() else None
    parameters = sum(tensor.numel() for tensor in file.weights.values()) if file else None
    images = title(image_name(config.dataset, name))
    what = f"{config.network}, trained on {images} by {METHODS[config.method]} under {NORMS[config.norm]}, seed {config.seed}"
    facts = {
        "trained by": f"`{training_command(config, str(run.shown))}`",
        "data": DATA.get(config.dataset, "a folder of pictures, given as `--data_root`")
        + (f"; the first {config.train_size} training images" if config.train_size else ""),
        "steps": f"{run.steps}" + (f" ({run.partial})" if run.partial else "") if run.steps else "not recorded",
        "passes": passes_text(stored, folder),
        "network kept": f"of the check with the largest {BEST_BY[config.best_by]} on validation images",
        "machine": ", ".join(str(environment[key]) for key in ("device", "gpu") if environment.get(key))
        or "not recorded",
        "versions": ", ".join(f"{k} {environment[k]}" for k in ("python", "torch", "git_commit") if k in environment),
        "values": f"{parameters:,}".replace(",", " ") if parameters else "the weights are not in this folder",
        "sha256": f"`{file.sha256}` of model_best.pt" if file else "the weights are not in this folder",
        "licence": "MIT, as the code; the data keep their own",
    }
    load = [
        "```python",
        f'model = torch.hub.load("path/of/the/clone", "mma", name="{name}", source="local")',
        "```",
        "",
    ]
    lines = [
        f"# {name}",
        "",
        f"{MADE}{shlex.quote(str(run.shown))}` from the files beside it; not to be edited.*",
        "",
        f"{what}. A network of this re-implementation, not of the paper's authors.",
        "",
        *(load if file else []),
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "## Evaluations",
        "",
        *evaluations_table(run, file.sha256 if file else None),
        *(["", *run.damaged] if run.damaged else []),
        "",
        "## Margins",
        "",
        *margins_picture(folder),
    ]
    return "\n".join(lines) + "\n"


def refuse_others(path: Path) -> None:
    """:raises UserError: if there is a README.md, and this program did not write it."""
    if path.exists() and MADE not in path.read_text(errors="replace"):
        raise UserError(f"{path}: not written by this program: move it away, or copy the run into another folder")


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the cards. Returns the exit status."""
    parser = Parser(description="Write the model cards of run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    for run in parser.parse(argv)["runs"]:
        path = Path(run) / "README.md"
        try:
            refuse_others(path)
            text = card(Path(run))
            write_atomically(path, text.encode())
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}): copy the run into a folder of yours"
            ) from None
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
