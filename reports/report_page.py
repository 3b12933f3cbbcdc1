"""The page as HTML: head, sections, scripts. Every name that comes from a folder or a file is escaped here or in report_table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from config import BEST_BY
from reports.report_data import Benchmark, Entry, Line
from reports.report_examples import EACH, GROUPS, Picture, length_text
from reports.report_table import table
from reports.results import ATTACKS, NORMS, title

HERE = Path(__file__).resolve().parent
STYLE = ("report.css",)
SCRIPTS = (
    "report.js",
    "report_sort.js",
    "report_curves.js",
    "report_training.js",
    "report_compare.js",
    "report_start.js",
)
MARKS = {True: ("ok", "✓ passed"), False: ("bad", "✗ failed"), None: ("none", "– not run")}


def page(benchmarks: Sequence[Benchmark], entries: Sequence[Entry], data: str, made: str, plotly: str) -> str:
    """The whole page; data: JSON for the scripts; made: how and when; plotly: the library, gzip in base64."""
    style = "\n".join((HERE / name).read_text() for name in STYLE)
    scripts = "\n".join((HERE / name).read_text() for name in SCRIPTS)
    body = "\n".join(
        [
            header(benchmarks, entries, made),
            '<main id="main">',
            results_section(benchmarks),
            compare_section(),
            pictures_sections(),
            images_section(benchmarks, entries),
            runs_section(benchmarks, entries),
            "</main>",
            f"<footer>{escape(made)}</footer>",
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>Margins and robustness</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{data}</script>\n<script type="application/octet-stream" id="plotly">{plotly}</script>\n'
        f"<script>\n{scripts}\n</script>\n</body>\n</html>\n"
    )


def header(benchmarks: Sequence[Benchmark], entries: Sequence[Entry], made: str) -> str:
    links = (("results", "Results"), ("compare", "Compare"), ("curves", "Curves"), ("margins", "Margins"))
    more = (("training", "Training"), ("images", "Images"), ("runs", "Runs"))
    choices = "".join(
        f'<label><input type="radio" name="benchmark" value="{escape(b.key)}"{" checked" if not i else ""}>'
        f"<span>{escape(b.title)}</span></label>"
        for i, b in enumerate(benchmarks)
    )
    count = f"{len(entries)} run{'s' if len(entries) > 1 else ''}"
    return (
        '<a class="skip" href="#main">Skip to the results</a>\n<header><div class="top"><h1>Margins and robustness'
        f'<span>{count}, {escape(made)}</span></h1><button type="button" id="theme" aria-label="colours">Theme: system'
        '</button></div>\n<nav aria-label="sections">'
        + "".join(f'<a href="#{key}">{text}</a>' for key, text in links + more)
        + f'</nav>\n<fieldset class="benchmarks"{" hidden" if len(benchmarks) < 2 else ""}><legend>Images and norm</legend>'
        f"{choices}</fieldset></header>"
        "<noscript><p>Sorting and pictures need JavaScript; the tables below do not.</p></noscript>"
    )


def results_section(benchmarks: Sequence[Benchmark]) -> str:
    tables = "".join(
        f'<div data-benchmark="{escape(b.key)}"{" hidden" if i else ""}><h3>{escape(b.title)}</h3>{table(b)}</div>'
        for i, b in enumerate(benchmarks)
    )
    return (
        '<section id="results"><h2>Results</h2><p class="lead">A row a run. Tick the runs to draw them below; a column\'s '
        'name sorts by it.</p><div class="tools"><label>Filter <input type="search" id="filter" '
        'placeholder="name or folder"></label><label><input type="checkbox" id="with-published" checked> published rows'
        '</label><button type="button" id="all">Tick all shown</button><button type="button" id="none">Tick none</button>'
        f'<span id="shown" role="status"></span></div>{tables}</section>'
    )


def compare_section() -> str:
    return (
        '<section id="compare"><h2>Two runs compared</h2><p class="lead">On the very images that both were attacked on: '
        "McNemar's exact test, and the 95 % interval of the difference.</p>"
        '<div class="tools"><label>First <select id="first"></select></label><label>Second <select id="second"></select>'
        '</label><label>Attack <select id="attack"></select></label></div><div class="pair"><div><div id="pairs" class="scroll" '
        'tabindex="0" role="region" aria-label="comparison"></div><div id="pairs-said"></div></div><div id="plot-pairs" class="plot low"></div></div></section>'
    )


def pictures_sections() -> str:
    def figure(name: str, heading: str, text: str, tools: str = "") -> str:
        return (
            f'<figure><figcaption><h3>{heading}</h3><p>{text}</p></figcaption><div class="tools">{tools}</div>'
            f'<div id="plot-{name}" class="plot"></div></figure>'
        )

    at = '<label>Robust at <select id="{}"></select></label>'
    quantity = '<label>Quantity <select id="quantity"></select></label>'
    slider = (
        '<button type="button" id="play">Play</button><label class="grow">Epoch <input type="range" id="epoch" min="0" '
        'value="0" step="1"></label><output id="epoch-said" for="epoch"></output>'
    )
    return (
        '<section id="curves"><h2>Robustness</h2><div class="grid">'
        + figure("robustness", "Accuracy against ε", "Under repeated PGD, ε = 0 is clean; bands are 95 % intervals.")
        + figure("scatter", "Clean against robust", "One point a run; grey: not ticked.", at.format("scatter-at"))
        + '</div></section><section id="margins"><h2>Margins by epoch</h2>'
        + figure("margins", "How margins move outwards", "Radii that AN-PGD found for the training images.", slider)
        + '</section><section id="training"><h2>Training</h2><div class="grid">'
        + figure("training", "Training curves", "As logged in metrics.jsonl.", quantity)
        + figure(
            "passes",
            "Robust accuracy against passes",
            "Of the check after each epoch, on validation images. A pass is "
            "one image once forward, or forward and backward.",
        )
        + "</div></section>"
    )


# --- images --------------------------------------------------------------------------------------------------------


def images_section(benchmarks: Sequence[Benchmark], entries: Sequence[Entry]) -> str:
    own = {b.key: b for b in benchmarks}
    parts, options = [], []
    first = next((entry.id for entry in entries if entry.gallery.pictures), entries[0].id)
    for entry in entries:
        key = "-".join(entry.own) if entry.own else ""
        options.append(
            f'<option value="{entry.id}" data-of="{escape(key)}"{" selected" if entry.id == first else ""}>'
            f"{escape(entry.name)}</option>"
        )
        parts.append(
            f'<div class="gallery" data-gallery="{entry.id}"{"" if entry.id == first else " hidden"}>'
            f"{gallery(entry, own.get(key))}</div>"
        )
    return (
        '<section id="images"><h2>Images and their shortest perturbation</h2><div class="tools"><label>Run '
        f'<select id="gallery">{"".join(options)}</select></label></div>{"".join(parts)}</section>'
    )


def gallery(entry: Entry, benchmark: Benchmark | None) -> str:
    found = entry.gallery
    if not found.pictures or benchmark is None:
        return f'<p class="none">Not evaluated: {escape(found.why or "no image was broken")}.</p>'
    groups = []
    for group in GROUPS:
        cards = "".join(card(p, benchmark) for p in found.pictures if p.group == group)
        if cards:
            groups.append(f"<div><h3>{group} margins</h3>{cards}</div>")
    return f'<p class="lead">{escape(found.said)}</p><div class="cards" style="--each:{EACH}">{"".join(groups)}</div>'


def card(p: Picture, benchmark: Benchmark) -> str:
    def shown(uri: str, text: str, caption: str) -> str:
        return f'<span><img src="{uri}" alt="{escape(text)}"><small>{escape(caption)}</small></span>'

    return (
        '<div class="card">'
        + shown(p.original, f"original, predicted {p.label}", f"predicted {p.label}")
        + shown(p.difference, "difference", f"difference ×{p.factor:.{0 if p.factor >= 10 else 2}f}")
        + shown(p.perturbed, f"perturbed, predicted {p.predicted}", f"predicted {p.predicted}")
        + f"<b>margin {escape(length_text(p.margin, benchmark.dataset, benchmark.norm))}</b></div>"
    )


# --- runs ----------------------------------------------------------------------------------------------------------


def runs_section(benchmarks: Sequence[Benchmark], entries: Sequence[Entry]) -> str:
    lines: dict[str, list[tuple[Benchmark, Line]]] = {}
    for b in benchmarks:
        for line in b.lines:
            lines.setdefault(line.id if line.entry else "", []).append((b, line))
    parts = "".join(run_part(entry, lines.get(entry.id, [])) for entry in entries)
    return (
        '<section id="runs"><h2>Runs</h2><p class="lead">What each was evaluated on, what the sanity battery says, and what '
        f"is missing.</p>{parts}</section>"
    )


def run_part(entry: Entry, lines: Sequence[tuple[Benchmark, Line]]) -> str:
    """One run, folded; its head says how many checks failed and how much is missing."""
    checks = [outcome for e in entry.run.evaluations for outcome in (e.get("sanity") or {}).values()]
    counts = [sum(isinstance(c, dict) and c.get("ok") is ok for c in checks) for ok in (True, False)]
    doubts = [doubt for _, line in lines for doubt in line.doubts] + entry.notes
    absent = [(b, missing) for b, line in lines for missing in line.missing]
    said = [f"{counts[0]} sanity checks passed" if checks else "sanity battery not evaluated"]
    said += [f"{counts[1]} failed"] if counts[1] else []
    said += [f"{len(absent)} not evaluated"] if absent else []
    warn = f'<span class="warn">⚠ {len(doubts)}</span>' if doubts else ""
    body = facts(entry)
    body += "".join(f'<p class="warn">⚠ {escape(doubt)}</p>' for doubt in doubts)
    body += evaluations_table(entry) + sanity_table(entry)
    if absent:
        items = "".join(
            f"<li>{escape(b.title)}: {escape(m.what)}<code>{escape(m.command)}</code></li>" for b, m in absent
        )
        body += f'<h4>Not evaluated</h4><p>These commands would:</p><ul class="commands">{items}</ul>'
    return (
        f'<details id="run-{entry.id}"><summary><b>{escape(entry.name)}</b> {warn}<span class="note">'
        f"{escape(str(entry.run.shown))}</span><span>{escape(', '.join(said))}</span></summary>{body}</details>"
    )


def facts(entry: Entry) -> str:
    """What it was trained with, in words."""
    config = entry.run.config
    said = config.get("environment")
    environment = said if isinstance(said, dict) else {}
    data = config.get("dataset")
    named = {
        "data": title(data) if isinstance(data, str) else None,
        "norm": NORMS.get(config.get("norm") or ""),
        "method": config.get("method"),
        "recipe": config.get("recipe"),
        "network": config.get("network"),
        "d_max": config.get("hinge_maxeps") if config.get("method") in ("mma", "omma", None) else None,
        "ε in training": config.get("train_eps"),
        "seed": config.get("seed"),
        "steps": entry.run.steps,
        "batch": config.get("batch_size"),
        "network kept": BEST_BY.get(str(config.get("best_by") or "mean_margin")),
        "machine": environment.get("device"),
        "commit": str(environment.get("git_commit") or "")[:10] or None,
    }
    items = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(f'{value:.4g}' if isinstance(value, float) else str(value))}</dd></div>"
        for key, value in named.items()
        if value is not None
    )
    return f"<dl>{items}</dl>"


def evaluations_table(entry: Entry) -> str:
    rows = ""
    for e in entry.run.evaluations:
        if "quartiles" in e:
            middle = e["quartiles"][1]
            result = "median not found" if middle is None else f"median distance {middle:.3g}"
        else:
            result = ", ".join(f"{100 * row['robust_acc']:.1f} at {row['eps']:.4g}" for row in e["results"])
        cells = (ATTACKS.get(e["attack"], e["attack"]), NORMS[e["norm"]], str(e["n"]), result, e["file"])
        rows += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{name}</th>' for name in ("attack", "norm", "n", "accuracy [%] at ε", "file"))
    return f'<h4>Evaluations</h4><div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table></div>'


def sanity_table(entry: Entry) -> str:
    """Every finding of the battery; failed ones first."""
    rows = []
    for e in entry.run.evaluations:
        for check, outcome in (e.get("sanity") or {}).items():
            if not isinstance(outcome, dict):
                continue
            ok = outcome.get("ok") if isinstance(outcome.get("ok"), bool) else None
            kind, text = MARKS[ok]
            cells = f"<td>{escape(str(check))}</td><td>{escape(str(outcome.get('value', '')))}</td><td>{escape(e['file'])}</td>"
            rows.append((ok is not False, ok is None, f'<tr class="{kind}"><td>{text}</td>{cells}</tr>'))
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{name}</th>' for name in ("", "check", "seen", "beside"))
    body = "".join(html for *_, html in sorted(rows, key=lambda row: row[:2]))
    return f'<h4>Sanity battery</h4><div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
