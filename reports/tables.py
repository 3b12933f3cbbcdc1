"""Tables of accuracies and of smallest distances as text: a line for each method and attack, its seeds together.

Markdown and the page of `make_report.py` show the same lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from errors import UserError
from evaluations.compare_attacks import GRADIENT_FREE, gaps, stronger
from evaluations.results import Row, average_accuracies, effort, is_standard, way
from reports import published
from reports.runs import ATTACKS, TEST_IMAGES, Run, eps_text, spread

NONE, WARNING = "–", "⚠"
ACCURACIES = (
    "Accuracy [%], of one seed with its 95 % interval, of several ± their standard deviation. AvgAcc: mean over clean and "
    "all ε; AvgRobAcc: over all ε (of fewer where said). Passes of training: an image once through the network; ≤: what "
    "the settings ask for at most. Minutes: of its steps, without the checks."
)


class Table(NamedTuple):
    """Text by column; the columns in which no line says anything are left out."""

    header: list[str]
    lines: list[list[str]]

    @classmethod
    def of(cls, header: Sequence[str], lines: Sequence[Mapping[str, str]]) -> Table:
        used = [name for name in header if any(line.get(name, NONE) != NONE for line in lines)]
        return cls(used, [[line.get(name, NONE) for name in used] for line in lines])

    def markdown(self) -> list[str]:
        """In a cell `|` would begin the next, a line break end the table."""
        lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in self.lines]
        return ["| " + " | ".join(line) + " |" for line in (self.header, ["---"] * len(self.header), *lines)]


class Footnotes:
    """Numbered lines under a table; the same text twice is one of them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def code(text: object) -> str:
    """A name in Markdown, on one line."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def show_or_write(text: str, out: str | None) -> int:
    """Print it, or write it to the file `out`; 0, the exit status.

    :raises UserError: if the file cannot be written.
    """
    if out is None:
        print(text, end="")
        return 0
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another file") from None
    print(f"written: {out}")
    return 0


# --- accuracies ----------------------------------------------------------------------------------------------------


def accuracy_table(found: pd.DataFrame, notes: Footnotes) -> Table:
    """Method by eps, of the rows of one data set and norm (`reports.runs.frame`); published figures below ours."""
    images, norm = found["images"].iloc[0], found["norm"].iloc[0]
    lines: list[dict[str, str]] = []
    radii: set[float] = set()
    for _, group in found[found["eps"].notna()].groupby("label", sort=False):
        runs = list(group["run"].unique())
        radii |= set(group["eps"])
        mark, cost = notes.mark(sources(runs, images, norm)), cost_cells(runs)
        for attack, rows in group.groupby("attack", sort=False):
            if attack == "autoattack" and (group["attack"] == "pgd").any():
                continue  # a column of PGD's line
            line = _accuracy_line(rows, runs, images, norm)
            if attack == "pgd":
                line["AutoAttack"] = _autoattack(group[group["attack"] == "autoattack"], runs, line)
            lines.append(line | cost | {"method": f"{_name(group)} {mark}"})
            cost = {}
        for said in published.ACCURACIES.get((images, norm), ()):
            if any(published.is_of(said, run) and (run.images, run.norm) == (images, norm) for run in runs):
                radii |= {round(eps, 6) for eps in said.robust}
                line = _published_line(said, images, norm, notes)
                lines += [line] if line not in lines else []
    columns = [_column(eps, images, norm) for eps in sorted(radii)]
    for line in lines:
        known = sum(column in line for column in columns)
        for name in ("AvgAcc", "AvgRobAcc") if known < len(columns) else ():
            line |= {name: f"{line[name]} (of {known} ε)"} if name in line else {}
    header = ["method", "attack", "n", "clean", *columns, "AvgAcc", "AvgRobAcc", "AutoAttack", "passes [M]", "minutes"]
    return Table.of(header, lines)


def _name(group: pd.DataFrame) -> str:
    """What a group of runs that differ in their seed alone is called."""
    seeds = group["run"].nunique()
    return str(group["label"].iloc[0]) + (f", {seeds} seeds" if seeds > 1 else "")


def _column(eps: float, images: str, norm: str) -> str:
    return f"ε = {eps_text(eps, images, norm)}"


def _accuracy_line(rows: pd.DataFrame, runs: Sequence[Run], images: str, norm: str) -> dict[str, str]:
    """The figures of one attack, by column; of each run those of most images and effort are what the line speaks of."""
    leads = {run: _lead(of_run) for run, of_run in rows.groupby("run", sort=False)["row"]}
    attack = str(rows["attack"].iloc[0])
    standard = all(map(is_standard, leads.values()))
    clean = [100 * row["clean_acc"] for row in leads.values()]
    line = {
        "attack": ATTACKS.get(attack, attack) if standard else f"not standard {ATTACKS[attack]}",
        "n": _images([row["n"] for row in leads.values()], images),
        "clean": _cell(clean, runs, next(iter(leads.values())).get("clean_ci95")),
    }
    mark, odd = f"{WARNING} " if rows["doubted"].any() else "", False
    for eps, at in rows.groupby("eps"):
        remark = _remark(at, leads)
        odd |= bool(remark) or len(at) < len(leads)
        line[_column(eps, images, norm)] = mark + _cell(at["robust"], runs, at["row"].iloc[0]["ci95"]) + remark
    if not odd:
        of_runs = rows.groupby("run", sort=False)["row"]
        means = [average_accuracies(leads[run]["clean_acc"], [row["robust_acc"] for row in of]) for run, of in of_runs]
        for name, key in (("AvgAcc", "avg_acc"), ("AvgRobAcc", "avg_rob_acc")):
            line[name] = mark + _cell([100 * mean[key] for mean in means], runs)
    return line


def _lead(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row["n"], effort(row)))


def _images(counts: Sequence[int], images: str) -> str:
    """How many test images; of how many, where that is known to be more."""
    different, of = sorted(set(counts)), TEST_IMAGES.get(images)
    return ", ".join(map(str, different)) + (f" of {of}" if of and different != [of] else "")


def _cell(
    values: Sequence[float], runs: Sequence[Run], interval: Sequence[float] | None = None, decimals: int = 1
) -> str:
    """One seed's figure with its interval; the mean of several with its spread, and of how many where some lack it."""
    text, some = spread(list(values), decimals), f" ({len(values)} of {len(runs)} seeds)"
    if len(runs) == 1 and interval is not None:
        text += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return text + (some if len(values) < len(runs) else "")


def _remark(at: pd.DataFrame, leads: Mapping[Run, Row]) -> str:
    """` (n 1000, nb_iter 40)` where this radius was attacked on other images, or in another way, than the line says."""
    said = []
    for run, row in zip(at["run"], at["row"], strict=True):
        lead = leads[run]
        usual, own = way(lead), way(row)
        said += [f"n {row['n']}"] if row["n"] != lead["n"] else []
        if is_standard(lead) and not is_standard(row):
            said.append("not standard")
        else:
            names = [name for name in {**usual, **own} if usual.get(name) != own.get(name)]
            said += [f"{name} {short(row['settings'].get(name))}" for name in names]
    return f" ({', '.join(dict.fromkeys(said))})" if said else ""


def _autoattack(rows: pd.DataFrame, runs: Sequence[Run], pgd: Mapping[str, str]) -> str:
    """`90.3 at 0.3 (n 500)`, for each eps; with its n where that is not PGD's, and said if it is not the standard one."""
    if rows.empty:
        return NONE
    images, norm = str(rows["images"].iloc[0]), str(rows["norm"].iloc[0])
    line = _accuracy_line(rows, runs, images, norm)
    radii = sorted(set(rows["eps"]))
    figures = [f"{line[_column(eps, images, norm)]} at {eps_text(eps, images, norm)}" for eps in radii]
    remarks = [] if line["n"] == pgd["n"] else [f"n {line['n']}"]
    remarks += [] if line["attack"] == ATTACKS["autoattack"] else ["not standard AutoAttack"]
    return "; ".join(figures) + (f" ({', '.join(remarks)})" if remarks else "")


def cost_cells(runs: Sequence[Run]) -> dict[str, str]:
    """What training took."""
    passes = [run.cost.passes / 1e6 for run in runs if run.cost.passes is not None]
    minutes = [run.cost.minutes for run in runs if run.cost.minutes is not None]
    at_most = "" if all(run.cost.recorded for run in runs) else "≤ "
    decimals = 0 if minutes and min(minutes) >= 10 else 1
    return {
        "passes [M]": at_most + spread(passes, 2) if passes else NONE,
        "minutes": spread(minutes, decimals) if minutes else NONE,
    }


def _published_line(said: published.Accuracies, images: str, norm: str, notes: Footnotes) -> dict[str, str]:
    figures, percent = list(said.robust.values()), f".{said.decimals}f"
    source = said.source + ("; averages computed here" if len(figures) > 1 else "")
    line = {
        "method": f"{published.name(said, images, norm)}, published {notes.mark(source)}",
        "attack": said.attack,
        "n": NONE if said.n is None else str(said.n),
        "clean": f"{said.clean:{percent}}",
        **{_column(eps, images, norm): f"{value:{percent}}" for eps, value in said.robust.items()},
    }
    if len(figures) > 1:
        line |= {"AvgAcc": f"{np.mean([said.clean, *figures]):.1f}", "AvgRobAcc": f"{np.mean(figures):.1f}"}
    if said.autoattack is not None:
        line["AutoAttack"] = f"{said.autoattack:{percent}} at {eps_text(min(said.robust), images, norm)}"
    return line


# --- smallest distances --------------------------------------------------------------------------------------------


def distance_table(found: pd.DataFrame, notes: Footnotes) -> Table:
    """Mean and quartiles of the smallest distance found, of the rows of one data set and norm."""
    images, norm = found["images"].iloc[0], found["norm"].iloc[0]
    lines: list[dict[str, str]] = []
    for _, group in found[found["eps"].isna()].groupby("label", sort=False):
        runs = list(group["run"].unique())
        name = f"{_name(group)} {notes.mark(sources(runs, images, norm))}"
        for attack, rows in group.groupby("attack", sort=False):
            mark = f"{WARNING} " if rows["doubted"].any() else ""
            lines.append(
                {"method": name, **_distance_line(ATTACKS.get(attack, attack), list(rows["row"]), runs, images, mark)}
            )
            for said in published.DISTANCES.get((images, norm), ()) if attack == "cw" else ():
                if any(published.is_of(said, run) for run in runs):
                    figures = [f"{value:.2f}" for value in (said.mean, *said.quartiles)]
                    lines.append(
                        {
                            "method": f"{published.name(said, images, norm)}, published {notes.mark(published.DISCUSSION)}",
                            **dict(
                                zip(DISTANCES, [ATTACKS["cw"], "1000", f"{said.clean:.1f}", *figures], strict=False)
                            ),
                        }
                    )
        first = group[group["attack"] == group["attack"].iloc[0]]
        if estimated := [row | row["anpgd"] | {"not_found": 0} for row in first["row"] if row.get("anpgd")]:
            end = f"AN-PGD, at most {short(estimated[0]['anpgd']['search_end'])}"
            lines.append({"method": name, **_distance_line(end, estimated, runs, images, "")})
    return Table.of(["method", *DISTANCES], lines)


DISTANCES = ("attack", "n", "clean [%]", "mean", "25 %", "median", "75 %", "not found")


def _distance_line(attack: str, rows: Sequence[Row], runs: Sequence[Run], images: str, mark: str) -> dict[str, str]:
    """The mean of the seeds; no figure where one of them has none because images were not broken."""
    figures = zip(*([row["mean"], *row["quartiles"]] for row in rows), strict=True)
    lost = [str(row.get("not_found") or 0) for row in rows]
    cells = [
        attack,
        _images([row["n"] for row in rows], images),
        _cell([100 * row["clean_acc"] for row in rows], runs),
        *(NONE if None in values else mark + _cell(values, runs, decimals=3) for values in figures),
        NONE if set(lost) == {"0"} else ", ".join(lost),
    ]
    return dict(zip(DISTANCES, cells, strict=True))


# --- what must be said of them -------------------------------------------------------------------------------------


def sources(runs: Sequence[Run], images: str, norm: str) -> str:
    """The run folders behind a line, with the settings of their training and of every evaluation there."""
    folders: dict[str, list[str]] = {}
    for run in runs:
        made = [code(" ".join(f"--{name} {value}" for name, value in run.settings.items()))] if run.settings else []
        for file, rows in run.evaluations.items():
            mine = [row for row in rows if row["norm"] == norm and row["split"] == "test"]
            if mine:
                made.append(f"{code(file)} ({settings_text(run, _lead(mine))})")
        folders.setdefault(", ".join(made), []).append(code(run.shown))
    return "; ".join(f"{', '.join(names)}: {made}" for made, names in folders.items())


def settings_text(run: Run, row: Row) -> str:
    """How an evaluation was made; of which checkpoint, where that is not the best one."""
    settings = {name: value for name, value in way(row).items() if name not in ("eps_iter", "name") and value != {}}
    said = [f"n {row['n']}", *(f"{name} {short(value)}" for name, value in settings.items())]
    file = run.hashes.get(row["model_sha256"], "model_best.pt")
    return ", ".join(said + ([f"of {file}"] if file != "model_best.pt" else []))


def short(value: object) -> str:
    """A setting without the punctuation of JSON."""
    if isinstance(value, dict):
        return " ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def remarks(found: pd.DataFrame) -> list[str]:
    """Below the tables of one data set and norm, a line each: why a figure is not to be trusted, and what other attacks on a network say of its PGD figure."""
    loud, others = [], []
    images, norm = found["images"].iloc[0], found["norm"].iloc[0]
    for _, group in found.groupby("label", sort=False):
        name = _name(group)
        for run, of_run in group.groupby("run", sort=False):
            for file in dict.fromkeys(row["file"] for row in of_run["row"]):
                loud += [f"- {WARNING} {name}: {code(run.shown / file)}: {why}" for why in run.doubts(file)]
            others += [f"- {name}: {code(run.shown)}: {line}" for line in _other_attacks(run, images, norm)]
    return [" ".join(line.split()) for line in (*loud, *others)]


def _other_attacks(run: Run, images: str, norm: str) -> list[str]:
    """By how much PGD overestimates; a warning where an attack without gradients is stronger, which should be weaker."""
    rows: dict[str, list[Row]] = {attack: [] for attack in ATTACKS}
    for row in itertools.chain(*run.evaluations.values()):
        if row["norm"] == norm and row["attack"] in rows:
            rows[row["attack"]].append(row)
    if not (pgd := rows["pgd"]):
        return []
    dataset, sha256 = pgd[0]["dataset"], pgd[0]["model_sha256"]
    rows = {attack: [row for row in of if row["model_sha256"] == sha256] for attack, of in rows.items()}
    found = [("", gap) for gap in stronger(dataset, pgd, lambda attack: rows.get(attack, []))]
    for attack in GRADIENT_FREE:
        weaker = (gap for gap in gaps(attack, dataset, pgd, rows[attack]) if gap.beyond_chance)
        found += [(f"{WARNING} masked gradients: ", gap) for gap in weaker]
    return [warning + gap.text(eps_text(gap.eps, images, norm)) for warning, gap in found]
