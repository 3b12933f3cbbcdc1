"""Write a run folder's model card, its `README.md`, from the files in it: never by hand.

python reports/model_card.py RUN RUN ...

What the network is, the command that trained it, data, machine, passes, every evaluation with its interval, margins, licence
and sha256. What is not there is said to be missing. margins.png is drawn anew where margins.npy is at hand.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt

from config import BEST_BY, SPLITS
from errors import UserError, exits_on_user_error
from evaluations.results import Row, is_standard
from flags import Parser
from records.checkpoint import load_model_file
from reports import plots
from reports.runs import ATTACKS, METHODS, NORMS, Run, eps_text, frame, read_run, title, training_command
from reports.tables import Table
from utils import write_atomically

DATA = {
    "digits": "scikit-learn's digits, 8×8 grey: 1 200 training, 200 validation, 397 test images",
    "mnist": "MNIST, 28×28 grey: 55 000 training, 5 000 validation, 10 000 test images",
    "cifar10": "CIFAR-10, 32×32 colour: 45 000 training, 5 000 validation, 10 000 test images",
}
EXPLAINED = {
    "omma": "OMMA (MMA without the clean loss)",
    "pgd": "adversarial training with PGD at one ε",
    "pgdls": "adversarial training with PGD, ε growing from 0",
    "mma": "MMA training",
}
MADE = "*Made by `python reports/model_card.py "  # how a card's third line begins
EFFORTS = {"nb_iter": "steps", "nb_restart": "restarts", "queries": "queries", "steps": "steps", "sources": "sources"}


def accuracy(value: float, interval: Sequence[float] | None) -> str:
    """`98.9 [97.4, 99.6]`, in per cent."""
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def effort_text(row: Row) -> str:
    """`100 steps, 10 restarts`, or whatever its settings say of the effort."""
    if row["attack"] == "autoattack":
        return "standard" if is_standard(row) else "not standard"
    return ", ".join(f"{row['settings'][name]} {word}" for name, word in EFFORTS.items() if name in row["settings"])


def evaluations_table(run: Run, sha256: str | None) -> list[str]:
    """A line for each attack and radius, of this very checkpoint; others are said to be stale."""
    lines, stale, attacks = [], [], set()
    for split in SPLITS:
        for row in frame([run], split)["row"]:
            attack, norm = row["attack"], row["norm"]
            if sha256 and row["model_sha256"] != sha256:
                stale.append(f"`{row['file']}` is of another checkpoint and is left out.")
                continue
            attacks.add(attack)
            if "eps" in row:
                figure, radius = accuracy(row["robust_acc"], row["ci95"]), eps_text(row["eps"], run.images, norm)
            else:
                quartiles = ("–" if q is None else f"{q:.3g}" for q in row["quartiles"])
                figure, radius = "distances: " + ", ".join(quartiles), "–"
            cells = {
                "attack": f"{ATTACKS.get(attack, attack)}, {NORMS[norm]}",
                "ε": radius,
                "clean [%]": accuracy(row["clean_acc"], row.get("clean_ci95")),
                "robust [%], 95 % interval": figure,
                "images": f"{row['n']} {row['split']}",
                "effort": effort_text(row) or "see the JSON",
            }
            lines.append(cells)
    table = Table.of(list(lines[0]), lines).markdown() if lines else ["Not evaluated."]
    doubts = [
        f"- {file}: {why}" for file in run.evaluations for why in run.doubts(file) if f"`{file}`" not in str(stale)
    ]
    missing = (
        f"AutoAttack: not evaluated; `python evaluate_on_autoattack.py --model {shlex.quote(str(run.shown))}` does."
    )
    below = doubts + ([] if "autoattack" in attacks else [missing]) + list(dict.fromkeys(stale))
    return [*table, *(["", *below] if below else [])]


def margins_picture(run: Run) -> list[str]:
    """margins.png, drawn anew if margins.npy is there."""
    picture = run.folder / "margins.png"
    if (run.folder / "margins.npy").exists():
        try:
            figure, _ = plots.draw_margins([run])
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
    run = read_run(folder)
    if run.config is None:
        raise UserError(f"{folder / 'config.json'}: missing or damaged: name a folder that train.py made")
    config, environment = run.config, run.environment
    file = load_model_file(str(folder)) if (folder / "model_best.pt").exists() else None
    parameters = sum(tensor.numel() for tensor in file.weights.values()) if file else None
    passes = f"{int(run.cost.passes):,}".replace(",", " ") if run.cost.passes and run.cost.recorded else "not recorded"
    if run.cost.minutes and run.cost.recorded:
        passes += f" (an image once through the network, in training); {run.cost.minutes:.3g} minutes"
    unfinished = f" of {config.max_steps}" if run.steps < config.max_steps else ""
    facts = {
        "trained by": f"`{training_command(config, str(run.shown))}`",
        "data": DATA.get(config.dataset, "a folder of pictures, given as `--data_root`")
        + (f"; the first {config.train_size} training images" if config.train_size else ""),
        "steps": f"{run.steps}{unfinished}" if run.steps else "not recorded",
        "passes": passes,
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
        f'model = torch.hub.load("path/of/the/clone", "mma", name="{run.name}", source="local")',
        "```",
        "",
    ]
    lines = [
        f"# {run.name}",
        "",
        f"{MADE}{shlex.quote(str(run.shown))}` from the files beside it; not to be edited.*",
        "",
        f"{config.network}, trained on {title(run.images)} by {EXPLAINED.get(config.method, METHODS[config.method])} under "
        f"{NORMS[config.norm]}, seed {config.seed}. A network of this re-implementation, not of the paper's authors.",
        "",
        *(load if file else []),
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {' '.join(value.split()).replace('|', chr(92) + '|')} |" for key, value in facts.items()),
        "",
        "## Evaluations",
        "",
        *evaluations_table(run, file.sha256 if file else None),
        *(["", *run.damaged] if run.damaged else []),
        "",
        "## Margins",
        "",
        *margins_picture(run),
    ]
    return "\n".join(lines) + "\n"


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the cards. Returns the exit status."""
    parser = Parser(description="Write the model cards of run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    for folder in map(Path, parser.parse(argv)["runs"]):
        path = folder / "README.md"
        if path.exists() and MADE not in path.read_text(errors="replace"):
            raise UserError(f"{path}: not written by this program: move it away, or copy the run into another folder")
        try:
            write_atomically(path, card(folder).encode())
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}): copy the run into a folder of yours"
            ) from None
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
