"""Which room may import which; walks the imports of the modules."""

import ast
from pathlib import Path

import pytest

from conftest import ROOT

EVALUATORS = {f"evaluate_on_{name}" for name in ("pgd_attacks", "autoattack", "gradient_free_attacks", "minimum_norm")}
ENTRY_POINTS = {"train", *EVALUATORS}
LOW = {"errors", "utils"}
EVALUATOR_MAY_IMPORT = {
    *(
        "advertorch_compat",
        "checkpoint",
        "config",
        "data",
        "distributed",
        "evaluation",
        "fast_pgd",
        "flags",
        "losses",
        "models",
    ),
    *("memory", "minimum_norm", "pgd", "sanity", "shards", "trainer"),
    *LOW,
}
# What each room may import of ours.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "flags": {"config", "errors"},
    "losses": set(),
    "utils": {"errors"},
    "image_conv": set(),
    "models": {"errors", "image_conv"},
    "image_folder": {"errors"},
    "streaming": {"errors", "image_folder"},
    "data": {"image_folder", "streaming", *LOW},
    "distributed": LOW,
    "global_batchnorm": set(),
    "replica": {"distributed", "utils"},
    "guard": set(),
    "signals": set(),
    "pgd": {"distributed", "utils"},
    "anpgd": {"pgd", "utils"},
    "precision": set(),
    "cuda_graph": set(),
    "fast_pgd": {"pgd", "precision", "cuda_graph"},
    "objectives": {"anpgd", "pgd", "losses", "config", "replica", "utils"},
    "minimum_norm": {"checkpoint", "distributed", "evaluation", "losses", "memory", "pgd", "reading", "shards", *LOW},
    "sanity": {"evaluation", "losses", "pgd", "reading", "utils"},
    "shards": {
        "checkpoint",
        "config",
        "distributed",
        "evaluation",
        "flags",
        "losses",
        "memory",
        "reading",
        "sanity",
        *LOW,
    },
    "trainer": {
        "anpgd",
        "pgd",
        "distributed",
        "fast_pgd",
        "global_batchnorm",
        "guard",
        "objectives",
        "precision",
        "cuda_graph",
        "replica",
        "losses",
        "memory",
        "data",
        "config",
        "utils",
    },
    "checkpoint": LOW,
    "lock": {"errors"},
    "memory": {"errors"},
    "reading": {"config"},
    "runlog": {"lock", "reading", *LOW},
    "evaluation": {"checkpoint", "config", "data", "models", "reading", *LOW},
    "advertorch_compat": set(),
    "train": {
        "checkpoint",
        "config",
        "data",
        "distributed",
        "flags",
        "models",
        "recorder",
        "runlog",
        "signals",
        "trainer",
        *LOW,
    },
    "recorder": {"checkpoint", "runlog", "trainer"},
    **dict.fromkeys(EVALUATORS, EVALUATOR_MAY_IMPORT),
}
FILES = {path.stem: path for path in ROOT.glob("*.py")}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_a_row():
    assert set(FILES) == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(FILES))
def test_direction(name):
    ours = imported(FILES[name]) & set(FILES)
    assert ours <= MAY_IMPORT[name]


def test_config_needs_the_standard_library_only():
    import sys

    assert imported(FILES["config"]) - {"errors"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(set(FILES) - ENTRY_POINTS))
def test_only_entry_points_print(name):
    calls = [
        n.func.id
        for n in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert name == "errors" or "print" not in calls
