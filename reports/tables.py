"""Tables of accuracies and of smallest distances as text: a line for each method and attack, its seeds together.

Markdown and the page of `make_report.py` show the same lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jinja2 import Environment, StrictUndefined

from evaluations.compare_attacks import GRADIENT_FREE, gaps, stronger
from evaluations.results import Row, average_accuracies, effort, function_of, is_standard, way, wilson
from reports import published
from reports.runs import ATTACKS, TEST_IMAGES, Rows, Run, eps_text, kind_of, nearest_known, spread

BY_DISTANCE = "by smallest distances"
NONE, WARNING = "–", "⚠"
ACCURACIES = (
    "Accuracy [%], of one seed with its 95 % interval, of several ± their standard deviation. AvgAcc: mean over clean and "
    "all ε; AvgRobAcc: over all ε (of fewer where said). Passes of training: an image once through the network; ≤: what "
    "the settings ask for at most. Minutes: of its steps, without the checks. By smallest distances: images whose nearest "
    "known adversarial image is farther than ε; what an attack at a smaller ε breaks is nearer."
)


def in_cell(text: str) -> str:
    """Where `|` would begin the next cell, and a line break end the table."""
    return " ".join(text.split()).replace("|", "\\|")


Line: TypeAlias = dict[Any, str]  # text by column: its name, or its radius


class Table(NamedTuple):
    """Text by column; the columns in which no line says anything are left out."""

    header: list[Any]
    lines: list[list[str]]

    @classmethod
    def of(cls, header: Sequence[object], lines: Sequence[Line]) -> Table:
        used = [name for name in header if any(line.get(name, NONE) != NONE for line in lines)]
        return cls(used, [[line.get(name, NONE) for name in used] for line in lines])

    def markdown(self) -> list[str]:
        lines = [list(map(in_cell, line)) for line in self.lines]
        return ["| " + " | ".join(line) + " |" for line in (self.header, ["---"] * len(self.header), *lines)]


def mark(text: str, notes: list[str]) -> str:
    """`[1]`: its number among the lines under a table, which it joins; the same text twice is one of them."""
    if text not in notes:
        notes.append(text)
    return f"[{notes.index(text) + 1}]"


def code(text: object) -> str:
    """A name in Markdown, on one line."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def render(template: str, **values: object) -> str:
    """A page: a template of this folder filled in, in HTML with text."""
    environment = Environment(trim_blocks=True, autoescape=".html" in template, undefined=StrictUndefined)
    return environment.from_string(Path(__file__).with_name(template).read_text(encoding="utf-8")).render(values)


def show_or_write(text: str, out: str | None) -> int:
    """Print it, or write it to the file `out`; 0, the exit status."""
    if out is None:
        print(text, end="")
    else:
        Path(out).write_text(text, encoding="utf-8")
        print(f"written: {out}")
    return 0


# --- accuracies ----------------------------------------------------------------------------------------------------


def by_method(found: Rows) -> Iterator[tuple[str, list[Run], Rows]]:
    """Of each method its name, its runs, which differ in their seed alone, and its rows."""
    for label, group in found.groupby("label", sort=False):
        runs = list(group["run"].unique())
        yield str(label) + (f", {len(runs)} seeds" if len(runs) > 1 else ""), runs, group


def accuracy_table(found: Rows, notes: list[str], asked: Sequence[float] = ()) -> Table:
    """Method by eps, of the rows of one data set and norm (`reports.runs.frame`); published figures below ours.

    asked: further radii, at which smallest distances alone may say something.
    """
    images, norm = kind_of(found)
    lines: list[Line] = []
    radii = {*found["eps"].dropna(), *asked}
    for name, runs, every in by_method(found):
        by_attack = dict(list(every[every["eps"].notna()].groupby("attack", sort=False)))
        first, cost = {"method": f"{name} {mark(sources(runs, norm), notes)}"}, cost_cells(runs)
        for attack, rows in by_attack.items():
            if attack == "autoattack" and "pgd" in by_attack:
                continue  # a column of PGD's line
            line = _accuracy_line(rows, runs)
            if attack == "pgd" and "autoattack" in by_attack:
                line["AutoAttack"] = _autoattack(by_attack["autoattack"], runs, line["n"])
            lines.append(first | line | cost)
            cost = {}
        if radii and (by_distance := _line_by_distance(every, runs, radii)):
            lines.append(first | by_distance | cost)
        for said in published.ACCURACIES.get((images, norm), ()):
            if any(published.is_of(said, run) and (run.images, run.norm) == (images, norm) for run in runs):
                radii |= {round(eps, 6) for eps in said.robust}
                line = _published_line(said, images, norm, notes)
                lines += [line] if line not in lines else []
    for line in lines:
        known = len(radii & line.keys())
        for average in ("AvgAcc", "AvgRobAcc") if known < len(radii) else ():
            line |= {average: f"{line[average]} (of {known} ε)"} if average in line else {}
    averages_and_cost = ("AvgAcc", "AvgRobAcc", "AutoAttack", "passes [M]", "minutes")
    header, cells = Table.of(["method", "attack", "n", "clean", *sorted(radii), *averages_and_cost], lines)
    return Table([f"ε = {eps_text(name, images, norm)}" if name in radii else name for name in header], cells)


def _accuracy_line(rows: Rows, runs: Sequence[Run]) -> Line:
    """The figures of one attack, by column; of each run those of most images and effort are what the line speaks of."""
    images, _ = kind_of(rows)
    leads = {run: _lead(of_run) for run, of_run in rows.groupby("run", sort=False)["row"]}
    attack = ATTACKS[rows["attack"].iloc[0]]
    line: Line = {
        "attack": attack if all(map(is_standard, leads.values())) else f"not standard {attack}",
        "n": _images([row["n"] for row in leads.values()], images),
        "clean": _cell([row["clean_acc"] for row in leads.values()], runs, next(iter(leads.values()))["clean_ci95"]),
    }
    warning, odd = f"{WARNING} " if rows["doubted"].any() else "", False
    for eps, at in rows.groupby("eps"):
        remark = _remark(at, leads)
        odd |= bool(remark) or len(at) < len(leads)
        robust = _cell([row["robust_acc"] for row in at["row"]], runs, at["row"].iloc[0]["ci95"])
        line[eps] = warning + robust + remark
    if not odd and rows["eps"].nunique() > 1:
        of_runs = rows.groupby("run", sort=False)["row"]
        means = [average_accuracies(leads[run]["clean_acc"], [row["robust_acc"] for row in of]) for run, of in of_runs]
        for name, key in (("AvgAcc", "avg_acc"), ("AvgRobAcc", "avg_rob_acc")):
            line[name] = warning + _cell([mean[key] for mean in means], runs)
    return line


def _line_by_distance(rows: Rows, runs: Sequence[Run], radii: Iterable[float]) -> Line:
    """The share of images whose nearest known adversarial image is farther than eps, by column."""
    images, _ = kind_of(rows)
    distances = [known for _, of_run in rows.groupby("run", sort=False) if (known := nearest_known(of_run))]
    if not distances:
        return {}
    line: Line = {"attack": BY_DISTANCE, "n": _images(map(len, distances), images)}
    for name, eps in [("clean", 0.0), *((eps, eps + 1e-6) for eps in radii)]:  # eps is rounded
        standing = [sum(distance > eps for distance in known) for known in distances]
        shares = [count / len(known) for count, known in zip(standing, distances, strict=True)]
        line[name] = _cell(shares, runs, wilson(standing[0], len(distances[0])))
    return line


def _lead(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: (row["n"], effort(row)))


def _images(counts: Iterable[int], images: str) -> str:
    """How many test images; of how many, where that is known to be more."""
    different, of = sorted(set(counts)), TEST_IMAGES.get(images)
    return ", ".join(map(str, different)) + (f" of {of}" if of and different != [of] else "")


def with_interval(share: float, interval: Sequence[float]) -> str:
    """`98.9 [97.4, 99.6]`, in per cent."""
    return f"{100 * share:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _cell(shares: Sequence[float], runs: Sequence[Run], interval: Sequence[float] | None = None) -> str:
    """In per cent: one seed's figure with its interval, or the mean of the seeds that have one."""
    if interval and len(runs) == 1:
        return with_interval(shares[0], interval)
    return spread([100 * share for share in shares], of=len(runs))


def _remark(at: Rows, leads: Mapping[Run, Row]) -> str:
    """` (n 1000, nb_iter 40)` where this radius was attacked on other images, or in another way, than the line says."""
    said = []
    for lead, row in ((leads[run], row) for run, row in zip(at["run"], at["row"], strict=True)):
        usual, own = way(lead), way(row)
        said += [f"n {row['n']}"] if row["n"] != lead["n"] else []
        if is_standard(lead) and not is_standard(row):
            said.append("not standard")
        else:
            names = [name for name in {**usual, **own} if usual.get(name) != own.get(name)]
            said += [f"{name} {short(row['settings'].get(name))}" for name in names]
    return f" ({', '.join(dict.fromkeys(said))})" if said else ""


def _autoattack(rows: Rows, runs: Sequence[Run], n: str) -> str:
    """`90.3 at 0.3 (n 500)`, for each eps; with its n where that is not PGD's, and said if it is not the standard one."""
    line = _accuracy_line(rows, runs)
    figures = [f"{line[eps]} at {eps_text(eps, *kind_of(rows))}" for eps in sorted(set(rows["eps"]))]
    remarks = [] if line["n"] == n else [f"n {line['n']}"]
    remarks += [] if line["attack"] == ATTACKS["autoattack"] else ["not standard AutoAttack"]
    return "; ".join(figures) + (f" ({', '.join(remarks)})" if remarks else "")


def cost_cells(runs: Sequence[Run]) -> Line:
    """What training took."""
    passes = [run.passes_at_most / 1e6 for run in runs if run.passes_at_most]
    minutes = [run.minutes for run in runs if run.minutes]
    at_most = "" if all(run.passes for run in runs) else "≤ "
    return {
        "passes [M]": at_most + spread(passes, 2) if passes else NONE,
        "minutes": spread(minutes, 0 if min(minutes) >= 10 else 1) if minutes else NONE,
    }


def _published_line(said: published.Accuracies, images: str, norm: str, notes: list[str]) -> Line:
    decimals, robust = 1 if said.autoattack is None else 2, list(said.robust.values())
    line: Line = {round(eps, 6): f"{value:.{decimals}f}" for eps, value in said.robust.items()}
    line["clean"] = f"{said.clean:.{decimals}f}"
    if said.autoattack is None:
        source = f"{published.DISCUSSION}; averages computed here"
        line |= {"AvgAcc": f"{np.mean([said.clean, *robust]):.1f}", "AvgRobAcc": f"{np.mean(robust):.1f}"}
        line |= {"attack": ATTACKS["transfer"], "n": "10000"}
    else:
        source, radius = published.LEADERBOARDS, eps_text(min(said.robust), images, norm)
        line |= {"attack": published.PGD, "AutoAttack": f"{said.autoattack:.2f} at {radius}"}
    return line | {"method": f"{published.name(said, images, norm)}, published {mark(source, notes)}"}


# --- smallest distances --------------------------------------------------------------------------------------------

DISTANCES = ("method", "attack", "n", "clean [%]", "mean", "25 %", "median", "75 %", "not found")


def distance_table(found: Rows, notes: list[str]) -> Table:
    """Mean and quartiles of the smallest distance found, of the rows of one data set and norm."""
    images, norm = kind_of(found)
    lines: list[list[str]] = []
    for name, runs, group in by_method(found[found["eps"].isna()]):
        name = f"{name} {mark(sources(runs, norm), notes)}"
        for attack, rows in group.groupby("attack", sort=False):
            warning, mine = f"{WARNING} " if rows["doubted"].any() else "", list(rows["row"])
            images_and_clean = [_images(rows["n"], images), _cell([row["clean_acc"] for row in mine], runs)]
            # The mean of the seeds; no figure where one of them has none because images were not broken.
            seeds = zip(*([row["mean"], *row["quartiles"]] for row in mine), strict=True)
            figures = [NONE if None in values else warning + spread(values, 3, len(runs)) for values in seeds]
            lost = [str(row["distances"].count(None)) for row in mine]
            not_found = NONE if set(lost) == {"0"} else ", ".join(lost)
            lines.append([name, ATTACKS[attack], *images_and_clean, *figures, not_found])
            for said in published.DISTANCES.get((images, norm), ()) if attack == "cw" else ():
                if any(published.is_of(said, run) for run in runs):
                    theirs = f"{published.name(said, images, norm)}, published {mark(published.DISCUSSION, notes)}"
                    figures = [f"{value:.2f}" for value in (said.mean, *said.quartiles)]
                    lines.append([theirs, ATTACKS["cw"], "1000", f"{said.clean:.1f}", *figures, NONE])
    return Table.of(DISTANCES, [dict(zip(DISTANCES, line, strict=True)) for line in lines])


# --- what must be said of them -------------------------------------------------------------------------------------


def sources(runs: Sequence[Run], norm: str) -> str:
    """The run folders behind a line, with the settings of their training and of every evaluation there."""
    folders: dict[str, list[str]] = {}
    for run in runs:
        made = [code(" ".join(f"--{name} {value}" for name, value in run.settings.items()))] if run.settings else []
        for file, rows in run.evaluations.items():
            if mine := [row for row in rows if row["norm"] == norm and row["split"] == "test"]:
                made.append(f"{code(file)} ({settings_text(run, _lead(mine))})")
        folders.setdefault(", ".join(made), []).append(code(run.shown))
    return "; ".join(f"{', '.join(names)}: {made}" for made, names in folders.items())


def settings_text(run: Run, row: Row) -> str:
    """How an evaluation was made; of which checkpoint, where that is not the best one."""
    said = {"n": row["n"]} | {name: value for name, value in way(row).items() if name not in ("eps_iter", "name")}
    if (file := run.hashes.get(row["model_sha256"], "model_best.pt")) != "model_best.pt":
        said["of"] = file
    return ", ".join(f"{name} {short(value)}" for name, value in said.items() if value != {})


def short(value: object) -> str:
    """A setting without the punctuation of JSON."""
    if isinstance(value, dict):
        return " ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def remarks(found: Rows) -> list[str]:
    """Below the tables of one data set and norm, a line each: why a figure is not to be trusted, and what other attacks on a network say of its PGD figure."""
    loud, others = [], []
    for name, runs, group in by_method(found):
        for run in runs:
            files = dict.fromkeys((row["file"], function_of(row)) for row in group[group["run"] == run]["row"])
            for file, of in files:
                loud += [f"{WARNING} {name}: {code(run.shown / file)}: {why}" for why in run.doubts(file, of=of)]
            for of in dict.fromkeys(of for _, of in files):
                others += [f"{name}: {code(run.shown)}: {line}" for line in _other_attacks(run, of, *kind_of(found))]
    return [" ".join(line.split()) for line in (*loud, *others)]


def _other_attacks(run: Run, of: tuple[str, str], images: str, norm: str) -> list[str]:
    """By how much PGD overestimates; a warning where an attack without gradients is stronger, which should be weaker. of: the
    function of the checkpoint that all attacked."""
    if not (pgd := [row for row in run.evaluations.get(f"eval_pgd_{norm}.json", []) if function_of(row) == of]):
        return []
    dataset, alike = pgd[0]["dataset"], (pgd[0]["model_sha256"], of)
    files = {attack: run.evaluations.get(f"eval_{attack}_{norm}.json", []) for attack in ATTACKS}
    rows = {
        attack: [row for row in of if (row["model_sha256"], function_of(row)) == alike] for attack, of in files.items()
    }
    found = [("", gap) for gap in stronger(dataset, pgd, rows.__getitem__)]
    for attack in GRADIENT_FREE:
        weaker = (gap for gap in gaps(attack, dataset, pgd, rows[attack]) if gap.beyond_chance)
        found += [(f"{WARNING} masked gradients: ", gap) for gap in weaker]
    return [warning + gap.text(eps_text(gap.eps, images, norm)) for warning, gap in found]
