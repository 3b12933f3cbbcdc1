"""docs/architecture.md: its drawing of the directions is that of the real imports, and it names every file."""

import re

import pytest

from modules import ARCHITECTURE, MODULES, ROOMS, SHELL, arrows, below, drawn, files, room_graph

TEXT = ARCHITECTURE.read_text()
DRAWN = drawn(re.search(r"```mermaid\n(.*?)```", TEXT, flags=re.DOTALL)[1])
AGAIN = "`python tests/support/modules.py` writes docs/architecture.md's drawing and tables anew"


@pytest.mark.parametrize("node", sorted(room_graph()))
def test_drawn_arrows_are_the_real_imports(node):
    """What can be reached along arrows is what the room imports, directly or not; no arrow is one too many."""
    graph = room_graph()
    assert DRAWN.get(node, set()) == arrows(graph)[node], AGAIN
    assert below(DRAWN, node) == below(graph, node), AGAIN


def test_nothing_else_is_drawn():
    assert set(DRAWN) <= set(room_graph()), AGAIN


def test_arrows_leave_out_what_follows_from_others():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert arrows(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert below(graph, "a") == {"b", "c"}
    assert drawn("    a --> b & c\n    b --> c\n") == {"a": {"b", "c"}, "b": {"c"}}


@pytest.mark.parametrize("folder", ["", *sorted({*ROOMS, SHELL})])
def test_every_file_is_named_in_its_room(folder):
    section = TEXT.split(f"### {folder + '/' if folder else 'The root'}\n")[1].split("\n### ")[0]
    named = re.findall(r"^\| `([^`]+)` \| \S", section, flags=re.MULTILINE)
    assert named == [path.name for path in files(folder)], AGAIN


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_stands_in_the_first_table(room):
    assert f"| `{room}/` |" in TEXT.split("## Directions")[0]


def test_paths_in_the_text_are_there():
    """Each `room/file.py` and `file.py` that the text names exists."""
    text = TEXT.split("## Every file")[0]
    for path in re.findall(r"`((?:\w+/)*\w+\.(?:py|sh))`", text):
        assert (ARCHITECTURE.parent.parent / path).exists(), path


def test_names_in_the_text_are_there():
    """Each class, function or constant that the text names is defined somewhere."""
    text = re.sub(r"```.*?```", "", TEXT.split("## Every file")[0], flags=re.DOTALL)
    code = "\n".join(path.read_text() for path in MODULES.values())
    names = {name for name in re.findall(r"`([A-Za-z_][\w.]*)`", text) if not re.search(r"\.(py|pt)$", name)}
    assert {"Mma", "AnPgd", "config.METHODS"} <= names
    for name in names - {"index", "network", "step", "imagefolder"}:
        own = re.escape(name.rpartition(".")[2])
        assert re.search(rf"\b(?:class|def) {own}\b|\b{own}(?:: [^=\n]+)? = ", code), name
