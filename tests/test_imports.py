"""Which room may import which, folder by folder; walks the imports of every module."""

import ast
import sys
from graphlib import TopologicalSorter

import pytest

from modules import MODULES, ROOMS, imported, room
from support import ROOT

EVALUATORS = {path.stem for path in ROOT.glob("evaluate_on_*.py")}
COMMANDS = {"train", *EVALUATORS}
LOW = {"errors", "utils"}
METHOD = {"pgd", "anpgd", "losses", "presets", "objectives", "check", "trainer"}
# What the files of each room, and each file of the root, may import of other rooms.
MAY_IMPORT = {
    "errors": set(),
    "losses": set(),
    "presets": set(),
    "config": {"errors", "presets", "networks"},  # of networks the names
    "settings": {"config", "errors", "networks", "presets"},
    "utils": {"errors"},
    "flags": {"config", "errors", "presets", "records", "settings"},
    "networks": {"errors"},
    "loading": LOW,
    "processes": LOW,
    "pgd": {"utils"},
    "anpgd": {"pgd", "utils"},
    "hardware": {"pgd", *LOW},
    "objectives": {"anpgd", "pgd", "losses", "config", "processes", "utils"},
    "hubconf": {"anpgd", "errors", "losses", "pgd", "records", "training"},
    "check": {"anpgd", "config", "loading", "losses", "pgd", "processes", "utils"},
    "training": {
        "anpgd",
        "losses",
        "check",
        "config",
        "hardware",
        "loading",
        "networks",
        "objectives",
        "pgd",
        "processes",
        "utils",
    },
    "trainer": {
        "check",
        "config",
        "hardware",
        "loading",
        "networks",
        "objectives",
        "pgd",
        "processes",
        "training",
        "utils",
    },
    "records": {"presets", "config", "settings", "objectives", "processes", "trainer", "training", *LOW},
    "evaluations": {
        "config",
        "settings",
        "flags",
        "hardware",
        "loading",
        "losses",
        "networks",
        "pgd",
        "processes",
        "records",
        *LOW,
    },
    "train": {
        "config",
        "training",
        "flags",
        "hardware",
        "loading",
        "networks",
        "processes",
        "records",
        "trainer",
        *LOW,
    },
    **dict.fromkeys(  # noqa: RUF024
        EVALUATORS,
        {
            "settings",
            "check",
            "config",
            "flags",
            "evaluations",
            "hardware",
            "losses",
            "pgd",
            "processes",
            "records",
            *LOW,
        },
    ),
    "reports": {"settings", "config", "flags", "evaluations", "records", *METHOD, *LOW},
    "benchmarks": {"config", "flags", *METHOD, *LOW, *COMMANDS, *ROOMS},
    "scripts": {"config", "flags", *METHOD, *LOW, *COMMANDS, *ROOMS},
}
PRINTS = {"errors", "records", "reports", "benchmarks", "scripts", *COMMANDS}
TOUCHES_FILES = {"utils", "loading", "networks", *PRINTS, "evaluations"}


def outside(name):
    """Names that the module imports and that are not ours."""
    nodes = [n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {n for n in names | {n.module for n in nodes if isinstance(n, ast.ImportFrom)} if n not in MODULES}


def calls(name):
    nodes = ast.walk(ast.parse(MODULES[name].read_text()))
    return {
        n.func.id if isinstance(n.func, ast.Name) else getattr(n.func, "attr", "")
        for n in nodes
        if isinstance(n, ast.Call)
    }


def test_every_room_has_a_row():
    assert {room(name) for name in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_direction(name):
    assert {room(other) for other in imported(name)} - {room(name)} <= MAY_IMPORT[room(name)]


def test_the_definitions_of_networks_stand_alone():
    """They can be loaded under another package's name, beside people's own `errors` and `utils`."""
    for name in MODULES:
        if room(name) == "networks" and name.partition(".")[2] not in ("build", "own"):
            tree = ast.walk(ast.parse(MODULES[name].read_text()))
            absolute = {n.module for n in tree if isinstance(n, ast.ImportFrom) and not n.level}
            assert not {room(other) for other in absolute} & {room(other) for other in MODULES}
            assert {room(other) for other in imported(name)} <= {"networks"}


def test_no_circle_of_files_nor_of_folders():
    files = {name: imported(name) for name in MODULES}
    folders = {}
    for name, others in files.items():
        folders.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    for graph in (files, folders):
        list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_config_needs_the_standard_library_only():
    tree = ast.walk(ast.parse(MODULES["config"].read_text()))
    names = {alias.name for n in tree if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in ast.walk(ast.parse(MODULES["config"].read_text())) if isinstance(n, ast.ImportFrom)}
    own = {"errors", "presets", "networks.names"}
    assert {name.partition(".")[0] for name in names - own} <= sys.stdlib_module_names
    for name in own:
        assert {n.partition(".")[0] for n in outside(name)} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) not in PRINTS))
def test_only_commands_print(name):
    assert "print" not in calls(name)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) not in TOUCHES_FILES))
def test_files_are_touched_by_few(name):
    assert not calls(name) & {"open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink"}


def first_lines(name):
    """(where the clone is put on sys.path, where the first import of ours stands), top level only."""
    found, own = None, None
    for node in ast.parse(MODULES[name].read_text()).body:
        if ast.unparse(node).startswith(("sys.path.insert(0, ", "sys.path[:0] = ")):
            found = found or node.lineno
        names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", ())]
        if own is None and any(name and (name in MODULES or room(name) in ROOMS) for name in names):
            own = node.lineno
    return found, own


@pytest.mark.parametrize(
    "name", sorted(n for n in MODULES if "." in n and '__name__ == "__main__"' in MODULES[n].read_text())
)
def test_programs_in_rooms_find_the_clone_before_they_import_it(name):
    """`python reports/plot_margins.py` has reports/ on its path, not the folder above."""
    found, own = first_lines(name)
    assert own is None or (found is not None and found < own)
