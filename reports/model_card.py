"""Write a run folder's model card, its `README.md`, from the files in it: never by hand.

python reports/model_card.py RUN RUN ...

What the Hugging Face Hub reads, what the network is and how it is loaded, the command that trained it, data, machine, passes,
every evaluation with its interval, margins, licence and sha256. What is not there is said to be missing. margins.png is drawn
anew where margins.npy is at hand.
"""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt

from config import BEST_BY, SPLITS
from errors import UserError, exits_on_user_error
from evaluations.results import Row, function_of, is_standard
from flags import Parser
from records.checkpoint import load_model_file
from reports import plots
from reports.runs import ATTACKS, METHODS, NORMS, Run, eps_text, frame, read_run, title, training_command
from reports.tables import NONE, Table, in_cell, render, with_interval
from utils import write_atomically

MADE = "*Made by `python reports/model_card.py "  # how the line below a card's title begins
EFFORTS = {"nb_iter": "steps", "nb_restart": "restarts", "queries": "queries", "steps": "steps", "sources": "sources"}


def effort_text(row: Row) -> str:
    """`100 steps, 10 restarts`, or whatever its settings say of the effort."""
    if row["attack"] == "autoattack":
        return "standard" if is_standard(row) else "not standard"
    if "passes" in row:
        return f"{row['passes']:.0f} passes an image"
    said = [f"{row['settings'][name]} {word}" for name, word in EFFORTS.items() if name in row["settings"]]
    return ", ".join(said) or "see the JSON"


def evaluations(run: Run, sha256: str | None) -> tuple[list[Row], list[str]]:
    """The rows of this very checkpoint, as it is; and what must be said below their table."""
    every = [row for split in SPLITS for row in frame([run], split)["row"]]
    stale = dict.fromkeys(row["file"] for row in every if sha256 and row["model_sha256"] != sha256)
    others = dict.fromkeys(row["file"] for row in every if function_of(row)[1])
    rows = [row for row in every if row["file"] not in stale and not function_of(row)[1]]
    below = [f"- {file}: {why}" for file in run.evaluations if file not in stale for why in run.doubts(file)]
    if all(row["attack"] != "autoattack" for row in rows):
        attack = f"python evaluate_on_autoattack.py --model {shlex.quote(str(run.shown))}"
        below.append(f"AutoAttack: not evaluated; `{attack}` does.")
    below += [f"`{file}` is of another checkpoint and is left out." for file in stale]
    left_out = "has results with `--standardise`, another function of the weights: left out."
    return rows, below + [f"`{file}` {left_out}" for file in others]


def table_line(run: Run, row: Row) -> list[str]:
    """Attack, radius, clean and robust accuracy or distances, images, effort."""
    if "eps" in row:
        radius, robust = eps_text(row["eps"], run.images, row["norm"]), with_interval(row["robust_acc"], row["ci95"])
    else:
        quartiles = (NONE if quartile is None else f"{quartile:.3g}" for quartile in row["quartiles"])
        radius, robust = NONE, f"distances: {', '.join(quartiles)}"
    attack, images = f"{ATTACKS[row['attack']]}, {NORMS[row['norm']]}", f"{row['n']} {row['split']}"
    return [attack, radius, with_interval(row["clean_acc"], row["clean_ci95"]), robust, images, effort_text(row)]


def metric(said: str, share: float, interval: Sequence[float], n: int) -> dict[str, object]:
    """An accuracy on n test images as the Hugging Face Hub reads it, in per cent."""
    low, high = (100 * end for end in interval)
    name = f"{said}, {n} test images, 95 % interval [{low:.1f}, {high:.1f}]"
    return {"type": "accuracy", "name": name, "value": round(100 * share, 2)}


def margins_picture(run: Run) -> str:
    """Its file, drawn anew if margins.npy is there; or why there is none."""
    picture = run.folder / "margins.png"
    if (run.folder / "margins.npy").exists():
        try:
            figure, _ = plots.draw_margins([run])
        except UserError:
            return "Margins: not recorded in training."
        figure.savefig(picture, dpi=80)
        plt.close(figure)
    if not picture.exists():
        return "Margins: not recorded in training, or margins.npy is not at hand."
    said = "Upper bounds, as AN-PGD found them in training: the true margins are at most as large."
    return f"{said}\n\n![Margins of the training images, by epoch and at the end]({picture.name})"


def card(folder: Path, place: Path | None = None) -> str:
    """The page, in Markdown, as `model_card.md.jinja` lays it out. place: where it will lie, with the networks that others load.

    :raises UserError: if the folder holds no run.
    """
    run = read_run(folder)
    file = load_model_file(str(folder)) if (folder / "model_best.pt").exists() else None
    rows, below = evaluations(run, file.sha256 if file else None)
    header, metrics = ["attack", "ε", "clean [%]", "robust [%], 95 % interval", "images", "effort"], []
    if tested := [row for row in rows if "eps" in row and row["split"] == "test"]:
        most = max(tested, key=lambda row: row["n"])
        metrics.append(metric("clean accuracy", most["clean_acc"], most["clean_ci95"], most["n"]))
    for row in tested:
        at = f"{NORMS[row['norm']]} ε {eps_text(row['eps'], run.images, row['norm'])}"
        said = f"robust accuracy, {ATTACKS[row['attack']]}, {at}"
        metrics.append(metric(said, row["robust_acc"], row["ci95"], row["n"]))
    return render(
        "model_card.md.jinja",
        run=run,
        file=file,
        metrics=metrics,
        made=f"{MADE}{shlex.quote(str(run.shown))}`",
        command=training_command(run.trained, str(run.shown)),
        table=Table(header, [table_line(run, row) for row in rows]).markdown() if rows else ["Not evaluated."],
        below=below,
        margins=margins_picture(run),
        parameters=sum(tensor.numel() for tensor in file.weights.values()) if file else 0,
        there={path.name for path in (place or folder).glob("model.*")},
        json=functools.partial(json.dumps, ensure_ascii=False),
        **{"title": title, "methods": METHODS, "norms": NORMS, "best_by": BEST_BY, "in_cell": in_cell},
    )


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Write the cards. Returns the exit status."""
    parser = Parser(description="Write the model cards of run folders.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    for folder in map(Path, parser.parse(argv)["runs"]):
        path = folder / "README.md"
        if path.exists() and MADE not in path.read_text(errors="replace"):
            raise UserError(f"{path}: not written by this program: move it away, or copy the run into another folder")
        write_atomically(path, card(folder).encode())
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
