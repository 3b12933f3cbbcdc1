"""What the page's scripts draw, as JSON that can stand inside HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from records.reading import is_number
from reports import report_training
from reports.report_data import Benchmark, Entry, Line
from reports.report_figures import Figure
from reports.results import NORMS


def in_page(benchmarks: Sequence[Benchmark], entries: Sequence[Entry]) -> str:
    """JSON in which no `<`, `>` or `&` stands, so that no name can end the script element."""
    content = {
        "benchmarks": [benchmark_json(benchmark) for benchmark in benchmarks],
        "training": {entry.id: report_training.curves(entry.rows) for entry in entries},
        "passes_a_step": {entry.id: report_training.passes_a_step(entry.run.config) for entry in entries},
        "margins": margins_json(entries),
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def benchmark_json(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "key": benchmark.key,
        "title": benchmark.title,
        "norm": NORMS[benchmark.norm],
        "scale": benchmark.scale,
        "radii": benchmark.radii,
        "lines": [line_json(line) for line in benchmark.lines],
        "pairs": benchmark.pairs,
        "test_eps": sorted({e for line in benchmark.lines if line.entry for e in test_radius(line.entry)}),
    }


def test_radius(entry: Entry) -> list[float]:
    """Radius of the check after each epoch."""
    value = entry.run.config.get("test_eps")
    return [float(value)] if isinstance(value, int | float) and is_number(value) else []


def line_json(line: Line) -> dict[str, Any]:
    return {
        "id": line.id,
        "name": line.name,
        "published": line.entry is None,
        "clean": numbers(line.clean),
        "robust": [[row.eps, *(numbers(row.robust) or []), row.n] for row in line.rows],
        "average": numbers(line.averages[1]) if line.averages else None,
        "autoattack": [[a.eps, *(numbers(a.robust) or [])] for a in line.autoattack],
    }


def numbers(figure: Figure | None) -> list[float | None] | None:
    """[value, low, high] with as many digits as a picture needs."""
    return None if figure is None else [None if v is None else float(f"{v:.5g}") for v in figure]


def margins_json(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Of each run its distributions, on one axis for all runs of a benchmark."""
    tops: dict[object, float] = {}
    for entry in entries:
        if entry.margins is not None:
            tops[entry.own] = max(tops.get(entry.own, 0.0), float(entry.margins.eps.max()))
    return {
        entry.id: report_training.distribution(entry.margins, tops[entry.own])
        for entry in entries
        if entry.margins is not None
    }
