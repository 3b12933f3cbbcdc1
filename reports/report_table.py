"""The table of a benchmark, as HTML that the page's script sorts and filters."""

from __future__ import annotations

from html import escape

from reports.report_data import AutoAttack, Benchmark, Line
from reports.report_figures import Figure, Quartiles

# The look of a line, the same in table and pictures: 7 colours, then other dashes. Markers differ between neighbours.
COLOURS, DASHES = 7, ("", "7 4", "2 3", "8 3 2 3", "13 4")
FEW = 6  # lines drawn at first
PUBLISHED_FEW = 1


def look(number: int) -> str:
    """The sample of a line's colour and dash."""
    dash = DASHES[number // COLOURS % len(DASHES)]
    return (
        f'<svg class="look" viewBox="0 0 30 8" aria-hidden="true"><line x1="1" y1="4" x2="29" y2="4" '
        f'stroke="var(--s{number % COLOURS})" stroke-dasharray="{dash}"/></svg>'
    )


EXPLAINED = (
    "Accuracies in %, 95 % intervals in small type. AvgAcc: mean over clean and all ε; AvgRobAcc: over all ε. Passes: what "
    "the settings ask for at most (≤), unless they were counted; minutes: of the optimizer steps, without checks."
)


def table(benchmark: Benchmark) -> str:
    """All lines of a benchmark."""
    shown = ticked(benchmark)
    rows = "\n".join(row(benchmark, number, line, line.id in shown) for number, line in enumerate(benchmark.lines))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(benchmark.title)}: all figures">\n'
        f'<table class="results">\n{head(benchmark)}\n<tbody>\n{rows}\n</tbody></table></div>'
        f'<p class="explained">{EXPLAINED}</p>{sources(benchmark)}'
    )


def sources(benchmark: Benchmark) -> str:
    """Where the published rows come from."""
    items = "".join(
        f'<li id="source-{escape(benchmark.key)}-{number}">{escape(source)}</li>'
        for number, source in enumerate(benchmark.sources, 1)
    )
    return f'<ol class="sources">{items}</ol>' if items else ""


def ticked(benchmark: Benchmark) -> set[str]:
    """The lines drawn at first: ours that have a curve, else ours, and a published one."""
    ours = [line for line in benchmark.lines if line.entry]
    drawn = [line for line in ours if line.rows] or ours
    theirs = [line for line in benchmark.lines if not line.entry and line.rows]
    theirs.sort(key=lambda line: -len(line.rows))
    return {line.id for line in drawn[:FEW] + theirs[:PUBLISHED_FEW]}


def head(benchmark: Benchmark) -> str:
    """Two rows: groups of columns, and the columns, each a button that sorts."""
    radii = benchmark.radii
    unit = "/255" if benchmark.scale == 255 else ""
    groups = [("", 1), ("", 2)] + ([(f"robust to PGD at {benchmark.norm_sign} ε", len(radii))] if radii else [])
    groups += [("averages", 2), ("", 1), ("margins", 3), ("cost of training", 2)]
    top = "".join(f'<th colspan="{span}" scope="colgroup">{escape(text)}</th>' for text, span in groups if span)
    columns = ["run", "n", "clean", *(benchmark.length(eps) + unit for eps in radii)]
    columns += ["AvgAcc", "AvgRobAcc", "AutoAttack", "25 %", "median", "75 %", "passes", "minutes"]
    cells = "".join(
        f'<th scope="col"{"" if i else " class=first"}><button type="button">{escape(text)}</button></th>'
        for i, text in enumerate(columns)
    )
    return f'<thead><tr class="groups">{top}</tr><tr>{cells}</tr></thead>'


def row(benchmark: Benchmark, number: int, line: Line, is_ticked: bool) -> str:
    cells = [first_cell(benchmark, number, line, is_ticked), plain(line.n, str(line.n), small(line.split))]
    cells.append(percent(line, line.clean, "pgd"))
    for eps in benchmark.radii:
        found = line.at(eps)
        cells.append(percent(line, found.robust if found else None, "pgd"))
    averages = line.averages or (None, None)
    fewer = f"of {len(line.rows)} ε" if line.averages and len(line.rows) < len(benchmark.radii) else ""
    cells += [percent(line, figure, "pgd", fewer) for figure in averages]
    cells.append(autoattack_cell(benchmark, line))
    cells += quartile_cells(benchmark, line, line.quartiles)
    cells += cost_cells(line)
    kind = "ours" if line.entry else "published"
    return f'<tr class="{kind}" data-id="{line.id}">{"".join(cells)}</tr>'


def first_cell(benchmark: Benchmark, number: int, line: Line, is_ticked: bool) -> str:
    """Tick box, look, name; the folder or the source below it."""
    name, note = escape(line.name), escape(line.attack)
    if line.entry:  # the whole path stands below, with the run
        note = escape(line.entry.run.folder.resolve().name)
    else:
        mark_of = benchmark.sources.index(line.note) + 1
        note += f' <a href="#source-{escape(benchmark.key)}-{mark_of}">[{mark_of}]</a>'
    mark = '<span class="badge">published</span>' if line.entry is None else ""
    if line.doubts:
        mark += f'<a class="warn" href="#run-{line.id}" aria-label="warnings: {name}">⚠ doubtful</a>'
    title = f'<a href="#run-{line.id}">{name}</a>' if line.entry else name
    if line.entry and line.entry.run.partial:
        steps = line.entry.run.partial.replace("the preset's ", "").replace("the recipe's ", "")
        note += f"<br>{escape(steps)}"
    drawable = line.rows or line.entry
    box = f'<input type="checkbox" data-run="{line.id}" aria-label="draw {name}"{" checked" if is_ticked else ""}>'
    return (
        f'<th scope="row" class="first" data-v="{name}"><div><label>{box if drawable else ""}{look(number) if drawable else ""}'
        f'</label><span class="who"><span class="name">{title} {mark}</span>'
        f'<span class="note">{note}</span></span></div></th>'
    )


def plain(value: float | None, text: str, extra: str = "") -> str:
    if value is None:
        return '<td class="none" data-v="">–</td>'
    return f'<td data-v="{value:.6g}"><b>{escape(text)}</b>{extra}</td>'


def small(text: str) -> str:
    return f'<span class="ci">{escape(text)}</span>' if text else ""


def percent(line: Line, figure: Figure | None, key: str, extra: str = "") -> str:
    """`61.5` over `56.6–66.1`."""
    if figure is None:
        return absent(line, key)
    ends = "" if figure.low is None or figure.high is None else f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"
    return plain(figure.value, f"{100 * figure.value:.1f}", small(ends) + small(extra))


def absent(line: Line, key: str) -> str:
    """What is missing, with the way to the command that would give it; a dash where others published nothing."""
    if line.entry is None or not any(missing.key == key for missing in line.missing):
        return plain(None, "")
    return f'<td class="none" data-v=""><a href="#run-{line.id}">not evaluated</a></td>'


def autoattack_cell(benchmark: Benchmark, line: Line) -> str:
    """Sorted by the figure at the first radius."""
    if not line.autoattack:
        return absent(line, "autoattack")

    def text(found: AutoAttack) -> str:
        figure = found.robust
        at = f"at {benchmark.length(found.eps)}{'/255' if benchmark.scale == 255 else ''}"
        ends = "" if figure.low is None or figure.high is None else f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"
        n = f", n {found.n}" if found.n and found.n != line.n else ""
        kind = "" if found.standard else ", not standard"
        return f"<b>{100 * figure.value:.1f}</b>{small(ends)}{small(at + n + kind)}"

    return f'<td data-v="{line.autoattack[0].robust.value:.6g}">{"".join(map(text, line.autoattack))}</td>'


def quartile_cells(benchmark: Benchmark, line: Line, found: Quartiles | None) -> list[str]:
    if found is None:
        return [absent(line, "distances")] * 3
    cells = []
    for number, figure in enumerate(found.figures):
        source = small(found.source) if number == 1 and line.entry else ""
        if figure is None:
            cells.append(f'<td class="none" data-v="">not found{source}</td>')
            continue
        known = figure.low is not None and figure.high is not None
        ends = f"{benchmark.length(figure.low or 0)}–{benchmark.length(figure.high or 0)}" if known else ""
        cells.append(plain(figure.value, benchmark.length(figure.value), small(ends) + source))
    return cells


def cost_cells(line: Line) -> list[str]:
    if line.entry is None:
        return [plain(None, "")] * 2
    cost = line.entry.cost
    if cost.passes is None:
        return [absent(line, "training")] * 2
    bound = "" if cost.recorded else "≤ "
    minutes = "" if cost.minutes is None else f"{cost.minutes:.2g}" if cost.minutes < 10 else f"{cost.minutes:.0f}"
    return [
        plain(cost.passes, bound + millions(cost.passes)),
        plain(cost.minutes, minutes),
    ]


def millions(passes: float) -> str:
    """`265 M`, `575 k`."""
    return f"{passes / 1e6:.3g} M" if passes >= 1e6 else f"{passes / 1e3:.3g} k"
