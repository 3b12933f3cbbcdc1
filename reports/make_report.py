"""One page of run folders, to look at: figures with intervals, comparisons, curves, margins by epoch, images.

python reports/make_report.py trained_models/* [--out report.html] [--examples 60] [--data_root FOLDER]

The page holds everything it needs and asks no network for anything.
"""

from __future__ import annotations

import base64
import functools
import gzip
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from errors import UserError, exits_on_user_error
from flags import Parser, whole
from reports.report_data import Entry, benchmarks, read_entries
from reports.report_examples import gallery
from reports.report_json import in_page
from reports.report_page import page
from reports.results import Run, read_run
from utils import write_atomically

EXAMPLES, MOST_EXAMPLES = 60, 1000


@functools.cache
def plotly_source() -> str:
    """plotly.js, from plotly's wheel, as the page holds it: gzip, base64. It is most of the page, and shrinks to 40 %.

    :raises UserError: if it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        python = min((sys.executable, os.path.relpath(sys.executable)), key=len)
        file = os.path.relpath(ROOT / "requirements/report.txt")
        raise UserError(f"package plotly: not installed: {python} -m pip install -r {file}") from None
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def with_examples(entries: Sequence[Entry], count: int, data_root: str | None) -> list[Entry]:
    """Each run with its images, which takes the attack a while; says which run it is at, and how long it will take."""
    if not count:
        return [replace(entry, gallery=entry.gallery._replace(why="--examples 0")) for entry in entries]
    found: list[Entry] = []
    started = time.monotonic()
    for entry in entries:
        done, left = len(found), len(entries) - len(found)
        to_go = f", about {left * (time.monotonic() - started) / done:.0f} s to go" if done else ""
        told = f"AN-PGD on {count} images of {entry.run.folder} ({done + 1} of {len(entries)}{to_go})"
        print(told, file=sys.stderr, flush=True)
        found.append(replace(entry, gallery=gallery(entry.run, count, torch.device("cpu"), data_root)))
    return found


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The folders among these, each once.

    :raises UserError: if one is not there.
    """
    different: dict[Path, Path] = {}
    for folder in folders:
        different.setdefault(folder.resolve(), folder)
    return [run for run in map(read_run, different.values()) if run.folder.is_dir()]


@exits_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    """Read, attack a few images, write the page. Returns the exit status."""
    parser = Parser(description="One page of run folders, to look at.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, e.g. trained_models/*")
    parser.add_argument("--out", metavar="FILE", default="report.html", help="file to write (default: report.html)")
    parser.add_argument(
        "--examples",
        type=whole,
        default=EXAMPLES,
        help=f"test images of each run that AN-PGD attacks, to show some (default: {EXAMPLES}; 0: none)",
    )
    parser.add_argument("--data_root", metavar="FOLDER", help="folder of the data set (default: the run's, else data)")
    given = parser.parse(argv)
    if given["examples"] > MOST_EXAMPLES:
        raise UserError(
            f"--examples {given['examples']}: they pass through the network together: at most {MOST_EXAMPLES}"
        )
    plotly = plotly_source()
    entries = read_entries(read_runs([Path(run) for run in given["runs"]]))
    for note in [note for entry in entries for note in entry.notes]:
        print(f"warning: {note}", file=sys.stderr)
    entries = with_examples(entries, given["examples"], given["data_root"])
    found = benchmarks(entries)
    made = f"made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by reports/make_report.py"
    html = page(found, entries, in_page(found, entries), made, plotly)
    out = Path(given["out"])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, html.encode())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another file") from None
    print(f"written: {out} ({len(html.encode()) / 1e6:.1f} MB): open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
