"""Which package, or file of the root, may import which; how long a chain of imports is; who prints."""

import ast
from functools import cache
from graphlib import TopologicalSorter

import pytest

from support import ROOT

LONGEST = 9  # packages and files of the root in a chain of imports
COMMANDS = "train " + " ".join(path.stem for path in ROOT.glob("evaluate_on_*.py"))
LOW, BELOW = "errors utils", "config errors flags presets processes records utils validation"
MAY_IMPORT = {  # rows of names share what they may import
    "errors losses presets": "",
    "networks utils": "errors",
    "loading": f"presets {LOW}",
    "processes": LOW,
    "config": "errors networks presets",
    "validation": "config errors networks presets",
    "flags": "config errors presets records validation",
    "pgd": "utils",  # attacks know neither losses nor networks, which are arguments
    "anpgd": "pgd utils",
    "ddn": "losses pgd utils",
    "hardware": f"pgd {LOW}",
    "objectives": "anpgd config ddn losses pgd processes utils",
    "check": "anpgd config hardware loading losses pgd processes utils",
    "training": f"anpgd check config hardware loading losses networks objectives pgd processes {LOW}",
    "trainer": "check config hardware loading networks objectives pgd processes training utils",
    "records": f"config presets processes validation {LOW}",
    "evaluations": f"anpgd check hardware loading losses networks pgd {BELOW}",  # beside the trainer, not above it
    "hubconf": "errors evaluations records training",
    COMMANDS: f"check evaluations hardware loading losses networks trainer training {BELOW}",
    "reports": f"anpgd check evaluations loading losses networks pgd {BELOW}",
    "benchmarks": f"anpgd evaluations hardware loading losses networks pgd trainer {BELOW}",
    "scripts": f"check evaluations networks reports {COMMANDS} {BELOW}",
}
ALLOWED = {name: set(others.split()) for names, others in MAY_IMPORT.items() for name in names.split()}
PATHS = {path: path.stem for path in ROOT.glob("*.py")}
PATHS |= {path: path.parent.name for path in ROOT.glob("*/*.py") if path.parent.name in ALLOWED}


@cache
def imported(path):
    """The packages and files of the root that a file imports, anywhere in it, but its own."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} & set(PATHS.values()) - {PATHS[path]}


@pytest.mark.parametrize("path", sorted(PATHS), ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_and_who_prints(path):
    assert imported(path) <= ALLOWED[PATHS[path]]
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    prints = {"errors", "records", "reports", "benchmarks", "scripts", *COMMANDS.split()}
    assert PATHS[path] in prints or "print" not in {getattr(call, "id", "") for call in calls}


def test_no_circle_and_no_long_chain():
    graph = {name: set().union(*(imported(path) for path in PATHS if PATHS[path] == name)) for name in ALLOWED}
    length = {}
    for name in TopologicalSorter(graph).static_order():  # raises CycleError
        length[name] = 1 + max((length[other] for other in graph[name]), default=0)
    assert max(length.values()) <= LONGEST, length
