"""Which package, or file of the root, may import which; how long a chain of imports is; who prints."""

import ast
from functools import cache
from graphlib import TopologicalSorter

import pytest

from support import ROOT

LONGEST = 9  # packages and files of the root in a chain of imports
EVALUATORS = " ".join(path.stem for path in ROOT.glob("evaluate_on_*.py"))
LOW = "errors utils"
METHOD = "anpgd check losses objectives pgd presets trainer"
PACKAGES = "evaluations hardware loading networks processes records reports training"
COMMANDS = f"train {EVALUATORS}"
MAY_IMPORT = {  # rows share what they may import; what is not listed, they must not
    "errors losses presets": "",
    "networks utils": "errors",
    "loading processes": LOW,
    "config": "errors networks presets",
    "validation": "config errors networks presets",
    "flags": "config errors presets records validation",
    "pgd": "utils",  # attacks know neither losses nor networks, which are arguments
    "anpgd": "pgd utils",
    "hardware": f"pgd {LOW}",
    "objectives": "anpgd config losses pgd processes utils",
    "check": "anpgd config hardware loading losses pgd processes utils",
    "training": f"anpgd check config hardware loading losses networks objectives pgd processes {LOW}",
    "trainer": "check config hardware loading networks objectives pgd processes training utils",
    "records": f"config objectives presets processes trainer training validation {LOW}",
    "evaluations": f"anpgd check config flags hardware loading losses networks pgd presets processes records validation {LOW}",
    "hubconf": "errors evaluations records training",
    "train": f"config flags hardware loading networks processes records trainer training validation {LOW}",
    EVALUATORS: f"check config evaluations flags hardware losses pgd presets processes records validation {LOW}",
    "reports": f"config evaluations flags records validation hardware loading {METHOD} {LOW}",
    "benchmarks scripts": f"config flags validation {COMMANDS} {PACKAGES} {METHOD} {LOW}",
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
def test_direction(path):
    assert imported(path) <= ALLOWED[PATHS[path]]


def test_no_circle_and_no_long_chain():
    graph = {name: set().union(*(imported(path) for path in PATHS if PATHS[path] == name)) for name in ALLOWED}
    length = {}
    for name in TopologicalSorter(graph).static_order():  # raises CycleError
        length[name] = 1 + max((length[other] for other in graph[name]), default=0)
    assert max(length.values()) <= LONGEST, length


def test_only_commands_and_what_shows_progress_print():
    prints = {"errors", "records", "reports", "benchmarks", "scripts", *COMMANDS.split()}
    for path, name in PATHS.items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert name in prints or "print" not in {getattr(call, "id", "") for call in calls}, path
