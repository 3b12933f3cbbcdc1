"""What the pictures share: line styles that differ without colour, the norm's name on an axis, PNG and PDF."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError
from flags import Parser
from reports.results import checked_config, image_name

# Grey levels, lines and markers have periods of 3, 4 and 7, so that no two of 84 runs look alike.
GREYS = ("0.0", "0.35", "0.6")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "\\\\\\", "xxx")


T = TypeVar("T")


def style(number: int) -> dict[str, Any]:
    """Keyword arguments of `plot` for the run of this number."""
    return {
        "color": GREYS[number % len(GREYS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def read_config(run: Path) -> dict[str, Any]:
    """The run's config.json.

    :raises UserError: if there is no such folder, or no config in it.
    """
    if not run.is_dir():
        raise UserError(f"run folder {run}: not there: name a folder that train.py made")
    try:
        return checked_config(run / "config.json")
    except (OSError, ValueError):
        raise UserError(f"{run / 'config.json'}: missing or damaged: name a folder that train.py made") from None


def common(what: str, values: dict[Path, T]) -> T:
    """The one value that all runs have.

    :raises UserError: if they differ.
    """
    (first, value), *others = values.items()
    for run, other in others:
        if other != value:
            raise UserError(
                f"run folder {run}: its {what} is {other}, that of {first} is {value}: draw them in two pictures"
            )
    return value


def common_images(configs: dict[Path, dict[str, Any]]) -> str:
    """What the images of all runs are called (`reports.results.image_name`).

    :raises UserError: if they differ.
    """
    names = {run: image_name(str(config.get("dataset")), run.resolve().name) for run, config in configs.items()}
    return common("data set", names)


def labels(runs: Sequence[Path]) -> list[str]:
    """The folder's name of each run; with its parent's where two have the same.

    :raises UserError: if a run is named twice.
    """
    resolved = [run.resolve() for run in runs]
    for run in runs:
        if resolved.count(run.resolve()) > 1:
            raise UserError(f"run folder {run}: named twice: leave one out")
    names = [run.name for run in resolved]
    return [run.name if names.count(run.name) == 1 else f"{run.parent.name}/{run.name}" for run in resolved]


def save(figure: Figure, out: str | None, default: str) -> list[Path]:
    """Write `<out>.png` and `<out>.pdf`, with or without such an ending in `out`; by default in runs/.

    :raises UserError: if the folder cannot be written.
    """
    base = out or f"runs/{default}"
    base = base[:-4] if base.endswith((".png", ".pdf")) else base
    paths = [Path(base + ending) for ending in (".png", ".pdf")]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"--out {base}: cannot be written ({error.strerror}): choose another place") from None
    plt.close(figure)
    return paths


def picture_command(
    argv: Sequence[str] | None, what: str, needs: str, name: str, draw: Callable[[list[Path]], tuple[Figure, str]]
) -> int:
    """The command line of a picture of several runs: RUN … and --out. Returns the exit status.

    what: it does; needs: what the run folders must hold; name: what the file is called, before data set and norm.
    """
    parser = Parser(description=what, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"run folders with a {needs}")
    parser.add_argument("--out", metavar="PATH", help=f"file without .png (default: runs/{name}-<dataset>-<norm>)")
    given = parser.parse(argv)
    figure, own_name = draw([Path(run) for run in given["runs"]])
    print("\n".join(str(path) for path in save(figure, given["out"], own_name)))
    return 0
