"""One page of run folders, to look at: figures with intervals, curves, margins by epoch, adversarial images.

python reports/make_report.py trained_models/* [--out report.html] [--examples 60] [--data_root FOLDER]

The page holds everything it needs and asks no network for anything. Its layout is `report.html.jinja`.
"""

from __future__ import annotations

import base64
import html
import io
import re
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reports

reports.require("plotly")

import numpy as np
import plotly.graph_objects as go
import torch
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from errors import UserError, exits_on_user_error
from evaluations.flags import EvaluationFlags
from evaluations.results import accuracy_curve
from evaluations.subject import load_subject
from flags import Parser, whole
from networks.names import is_own
from records.commands import command
from records.reading import is_number
from reports import plots, published
from reports.runs import NORMS, Rows, Run, frame, kind_of, nearest_known, read_runs, title, training_command
from reports.tables import ACCURACIES, BY_DISTANCE, NONE, accuracy_table, distance_table, remarks, render
from utils import write_atomically

EXAMPLES, SHOWN = 60, 6  # images attacked, and shown of each run
MOST_POINTS = 120  # of a curve
LOSSES = ("mma_loss", "adv_loss", "clean_loss")  # in metrics.jsonl; a method's own comes first
Looks = dict[Run, plots.Look]
# Where a data set lies that would be downloaded if it were not there: a report downloads nothing.
DATA_FOLDERS = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py"}


def cells(header: Sequence[str], line: Sequence[str]) -> list[dict[str, str]]:
    """A line of a table: of each cell the figure, what goes with it in small type (interval, spread, number of images), and
    what its column is sorted by, a number where there is one."""
    found = []
    for column, text in zip(header, line, strict=True):
        figure = re.match(r"(?:[⚠≤] )?(-?[\d.]+)(?=\s|$)", text)
        main, rest = (figure[0], text[figure.end() :].strip()) if figure else (text, "")
        small = re.sub(r"(\[[^]]*,) ", "\\1\u00a0", rest)  # without a break inside an interval
        by = "" if text == NONE else figure[1] if figure else text
        found.append({"column": column, "main": main, "small": small, "sorted_by": by})
    return found


# --- figures -------------------------------------------------------------------------------------------------------


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """So many of them, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, most).round().astype(int) if items else ()
    return [items[place] for place in np.unique(places)]


def in_legend(name: str) -> str:
    """As plotly shows it: no tags, in lines that a phone has room for."""
    return "<br>".join(html.escape(line, quote=False) for line in textwrap.wrap(name, 40))


def style(look: plots.Look) -> dict[str, Any]:
    """Keyword arguments of a plotly line. A click on a method in the legend hides and shows all its seeds."""
    own = look.style
    return {
        "name": in_legend(look.name),
        "legendgroup": look.method,
        "mode": "lines+markers",
        "line": {"color": own["color"], "dash": plots.LINES[own["linestyle"]], "width": 2},
        "marker": {"symbol": plots.MARKERS[own["marker"]], "size": 7},
        "opacity": 1 if look.method < len(plots.COLOURS) else 0.5,
        "showlegend": True,
    }


def band(look: plots.Look) -> dict[str, Any]:
    """What makes of a line around it the band of a curve."""
    colour = "rgba({},{},{},0.12)".format(*bytes.fromhex(look.style["color"][1:]))
    own = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return own | {"fill": "toself", "fillcolor": colour}


def as_html(figure: go.Figure, x: str, y: str) -> Markup:
    """x, y: titles of the axes. Colours of text and grid are the page's, which sets them by theme."""
    names = sum(trace.showlegend is not False for trace in figure.data)
    figure.update_layout(
        height=340 + 21 * names,
        margin={"l": 50, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        showlegend=True,
        xaxis={"title": x, "rangemode": "tozero"},
        yaxis={"title": y, "rangemode": "tozero"},
    )
    config = {"responsive": True, "displayModeBar": False}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def robustness(rows: Rows, drawn: Looks) -> go.Figure:
    """Accuracy under repeated PGD against eps, of the rows of one data set and norm; published figures dotted. By smallest
    distances a step curve with its 95 % band, which counts what PGD breaks too."""
    images, norm = kind_of(rows)
    figure, (scale, _) = go.Figure(), plots.radius_axis(images, norm)
    by_function = [  # a run that was attacked as two networks, as with another --standardise, is two lines
        (drawn[run] if of_run["label"].nunique() == 1 else drawn[run]._replace(name=label), alike)
        for run, of_run in rows.groupby("run", sort=False)
        for label, alike in of_run.groupby("label", sort=False)
    ]
    for look, of_run in by_function:
        if len(by_pgd := of_run[of_run["attack"] == "pgd"]):
            eps, accuracy, low, high = plots.curve(by_pgd)
            bars = {"type": "data", "array": high - accuracy, "arrayminus": accuracy - low, "thickness": 1}
            figure.add_scatter(x=scale * eps, y=accuracy, error_y=bars, **style(look))
    for look, of_run in by_function:
        if known := nearest_known(of_run):
            eps, accuracy, low, high = np.repeat(np.transpose(accuracy_curve(known)), 2, axis=1)  # a step has two ends
            x, own = scale * eps[1:], style(look) | {"mode": "lines"}
            name = in_legend(f"{look.name}, {BY_DISTANCE} (n {len(known)})")
            figure.add_scatter(x=x, y=100 * accuracy[:-1], **own | {"name": name})
            figure.add_scatter(x=[*x, *x[::-1]], y=100 * np.append(low[:-1], high[-2::-1]), **own | band(look))
    for said in published.ACCURACIES.get((images, norm), ()) if figure.data else ():
        if said.autoattack is None:
            name = in_legend(f"{published.name(said, images, norm)}, published")
            line = {"color": plots.COLOURS[-1], "dash": "dot", "width": 1}
            eps, accuracies = [0, *(scale * eps for eps in said.robust)], [said.clean, *said.robust.values()]
            figure.add_scatter(x=eps, y=accuracies, line=line, name=name, visible="legendonly")
    return figure


def training(runs: Sequence[Run], drawn: Looks, kind: str, names: Sequence[str], scale: float) -> go.Figure:
    """A quantity of metrics.jsonl by step: of each run the first of `names` that rows of this kind have; of checks those on
    validation images."""
    figure = go.Figure()
    for run in runs:
        rows = [row for row in run.log if row.get("kind") == kind and row.get("split", "val") == "val"]
        name = next((name for name in names if any(is_number(row.get(name)) for row in rows)), "")
        points = [(row["step"], scale * row[name]) for row in rows if is_number(row.get(name))]
        if points:
            steps, values = np.transpose(thinned(points, MOST_POINTS))
            figure.add_scatter(x=steps, y=values, **style(drawn[run]) | {"mode": "lines"})
    return figure


def margins(runs: Sequence[Run], drawn: Looks, scale: float) -> go.Figure:
    """Median of the training images' margins by epoch, with a band from 10 to 90 %; a dotted line where the search ends."""
    figure = go.Figure()
    for run in runs:
        try:
            epochs, eps = run.margins()
        except UserError:
            continue
        end = scale * run.trained.search_maxeps
        low, median, high = scale * plots.quantiles(eps, end / scale)
        figure.add_hline(end, line={"dash": "dot", "color": "#888", "width": 1})
        figure.add_scatter(x=epochs, y=median, **style(drawn[run]))
        x, y = [*epochs, *epochs[::-1]], [*low, *high[::-1]]
        figure.add_scatter(x=x, y=y, **style(drawn[run]) | band(drawn[run]))
    return figure


# --- adversarial images --------------------------------------------------------------------------------------------


def pictures(run: Run, count: int, data_root: str | None) -> tuple[list[dict[str, Any]], str]:
    """SHOWN of `count` test images from the shortest to the longest perturbation that AN-PGD finds: each with its perturbation and
    their sum, as PNG in data URIs, and what stands below; and of how many they are, or why there are none."""
    if run.config is None or not (run.folder / "model_best.pt").exists():
        return [], "there is no model_best.pt in the folder"
    if is_own(run.config.network):
        draw = command("reports/plots.py", "examples", str(run.folder), "--network", run.config.network)
        return [], f"its network is code; if you trust it: {draw}"
    root = Path(data_root or run.config.data_root)
    if not (root / DATA_FOLDERS.get(run.config.dataset, "")).exists() and run.config.dataset != "digits":
        return [], f"the images are not in {root}; name their folder with --data_root"
    try:
        subject = load_subject(EvaluationFlags(model=str(run.folder), data_root=data_root), torch.device("cpu"))
        found = plots.find_examples(subject, count)
    except UserError as error:
        return [], str(error)
    order = [row for row in found.length.argsort().tolist() if 0 < found.length[row] < inf]
    shown = []
    for row in thinned(order, SHOWN):
        delta = found.x_adv[row] - found.x[row]
        factor = 0.5 / float(delta.abs().max())
        parts = [
            (png(found.x[row]), f"label {subject.class_name(found.labels[row])}"),
            (png(delta * factor + 0.5), f"difference ×{factor:.{0 if factor >= 10 else 2}f}"),
            (png(found.x_adv[row]), f"predicted {subject.class_name(found.predicted[row])}"),
        ]
        margin = plots.length_text(float(found.length[row]), run.images, subject.norm, found.max_eps)
        shown.append({"margin": f"margin at most {margin}", "parts": parts})
    wrong, safe = int((found.length == 0).sum()), int(found.length.isinf().sum())
    up_to = plots.length_text(found.max_eps, run.images, subject.norm, found.max_eps)
    said = f"{wrong} are misclassified as they are, {safe} withstand it up to {up_to}"
    return shown, f"{len(found.x)} test images attacked: {said}"


def png(image: Tensor) -> str:
    """(C, H, W) in [0, 1] -> a data URI."""
    buffer = io.BytesIO()
    to_pil_image((255 * image.clamp(0, 1)).round().to(torch.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# --- the page ------------------------------------------------------------------------------------------------------


def section(images: str, norm: str, found: Rows, runs: Sequence[Run]) -> dict[str, Any]:
    """What the page shows of one data set and norm; runs: those that were trained so."""
    rows = found[(found["images"] == images) & (found["norm"] == norm)]
    notes: list[str] = []
    scale, _ = plots.radius_axis(images, norm)
    unit = " [1/255]" if scale == 255 else ""
    margin = f"margin, {NORMS[norm]}{unit}"
    drawn = plots.looks(list(dict.fromkeys([*runs, *rows["run"]])))
    tables, figures, said = [], [], []
    if not rows.empty:
        made = (("Accuracy", accuracy_table(rows, notes)), ("Smallest distances", distance_table(rows, notes)))
        tables = [(name, header, [cells(header, line) for line in lines]) for name, (header, lines) in made if lines]
        radius, said = f"ε, {NORMS[norm]} radius{unit}", remarks(rows)
        figures.append(("Robust accuracy against ε", robustness(rows, drawn), radius, "accuracy [%]"))
    name = "Margins of the training images by epoch (dotted: end of the search, farther is not known)"
    figures.append((name, margins(runs, drawn, scale), "epoch", margin))
    for name, kind, keys, factor, y in (
        ("Robust accuracy of the check", "eval", ["robust_acc"], 100, "accuracy [%]"),
        ("Clean accuracy of the check", "eval", ["clean_acc"], 100, "accuracy [%]"),
        ("Mean margin of the check", "eval", ["mean_margin"], scale, margin),
        ("Training loss", "train", LOSSES, 1, "loss"),
    ):
        figures.append((name, training(runs, drawn, kind, keys, factor), "optimizer step", y))
    return {
        "key": re.sub(r"\W", "-", f"{images}-{norm}"),
        "title": f"{title(images)}, {NORMS[norm]}",
        "tables": tables,
        "notes": notes,
        "remarks": said,
        "figures": [(name, as_html(figure, x, y)) for name, figure, x, y in figures if figure.data],
    }


def page(runs: Sequence[Run], examples: int, data_root: str | None) -> str:
    """The whole page; it says on standard error which run's images it is attacking."""
    found = frame(runs)
    trained = [(run.images, run.norm) for run in runs if run.norm]
    every = {*trained, *zip(found["images"], found["norm"], strict=True)}
    keys = sorted(every, key=lambda key: (-trained.count(key), key))
    sections = [section(*key, found, [run for run in runs if (run.images, run.norm) == key]) for key in keys]
    described = []
    for number, (run, look) in enumerate(plots.looks(runs).items(), 1):
        if examples:
            print(f"AN-PGD on {examples} images of {run.folder} ({number} of {len(runs)})", file=sys.stderr, flush=True)
        shown, said = pictures(run, examples, data_root) if examples else ([], "--examples 0")
        doubts = [f"{file}: {why}" for file in run.evaluations for why in run.doubts(file)] + run.damaged
        command = training_command(run.config, str(run.shown)) if run.config else ""
        place = f"{title(run.images)}, {NORMS[run.config.norm]}" if run.config else ""
        described.append((run, look.name, place, command, doubts, shown, said))
    made = {"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "plotly": Markup(get_plotlyjs())}
    return render("report.html.jinja", explained=ACCURACIES, sections=sections, runs=described, **made)


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Read, attack a few images, write the page. Returns the exit status."""
    parser = Parser(description="One page of run folders, to look at.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, e.g. trained_models/*")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="file to write (default: report.html)")
    attacked = f"test images of each run that AN-PGD attacks, to show some (default: {EXAMPLES}; 0: none)"
    parser.add_argument("--examples", type=whole, default=EXAMPLES, help=attacked)
    parser.add_argument("--data_root", metavar="FOLDER", help="folder of the data set (default: the run's, else data)")
    given = parser.parse(argv)
    runs = read_runs([Path(run) for run in given["runs"]])
    for line in [line for run in runs for line in run.damaged]:
        print(f"warning: {' '.join(line.split())}", file=sys.stderr)
    text, out = page(runs, given["examples"], given["data_root"]).encode(), Path(given["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    print(f"written: {out} ({len(text) / 1e6:.1f} MB): open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
