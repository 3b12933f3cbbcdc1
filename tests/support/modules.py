"""The modules of this clone, what each imports of ours, and the part of docs/architecture.md that is made from that.

`python tests/support/modules.py` writes that part anew.
"""

import ast
import re
from functools import cache

from support import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
SHELL = "scripts"  # the room that also holds shell files


def modules():
    """Dotted name -> path, of every file of ours that is not a test."""
    paths = [
        *ROOT.glob("*.py"),
        *(path for room in {*ROOMS, SHELL} for path in (ROOT / room).glob("*.py")),
    ]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths if path.stem != "__init__"}


MODULES = modules()


def room(name):
    return name.partition(".")[0]


@cache
def imported(name):
    """Dotted names of ours that the module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*here, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(found & set(MODULES))


def _node(name):
    """A room, or a file of the root; the evaluators are one."""
    return "evaluate_on" if name.startswith("evaluate_on_") else room(name)


def room_graph():
    """Node -> the nodes it imports."""
    graph = {}
    for name in MODULES:
        graph.setdefault(_node(name), set()).update({_node(other) for other in imported(name)} - {_node(name)})
    return graph


def below(graph, node):
    """Every node that can be reached from it."""
    found, waiting = set(), [*graph.get(node, ())]
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += graph.get(other, ())
    return found


def arrows(graph):
    """Node -> the nodes it imports that do not already follow from its other arrows."""
    return {
        node: {other for other in others if not any(other in below(graph, third) for third in others - {other})}
        for node, others in graph.items()
    }


def drawn(text):
    """The arrows of a Mermaid flowchart: node -> nodes."""
    found = {}
    for node, others in re.findall(r"^ *(\w+) --> ([\w &]+)$", text, flags=re.MULTILINE):
        found.setdefault(node, set()).update(others.split(" & "))
    return found


def drawing():
    """The lines of the flowchart, the node that reaches most first."""
    graph = room_graph()
    order = sorted(graph, key=lambda node: (-len(below(graph, node)), node))
    labels = [f'    {node}["{_label(node)}"]' for node in order]
    chosen = arrows(graph)
    return "\n".join(
        [*labels, *(f"    {node} --> {' & '.join(sorted(chosen[node]))}" for node in order if chosen[node])]
    )


def _label(node):
    if node == "evaluate_on":
        return "evaluate_on_*.py"
    return f"{node}/" if (ROOT / node).is_dir() else f"{node}.py"


def files(folder):
    """The files of a room, or of the root (""), that the table must name."""
    found = [path for path in (ROOT / folder).glob("*.*") if path.suffix in (".py", ".sh", ".js", ".css")]
    return sorted(path for path in found if path.name != "__init__.py")


def first_sentence(path):
    """What a file says it is for."""
    text = path.read_text()
    if path.suffix == ".sh":
        lines = [line for line in text.splitlines() if line.startswith("# ")]
        text = " ".join(line[2:] for line in lines[:3])
    elif path.suffix in (".js", ".css"):
        text = re.search(r"(?://|/\*) (.*?)(?: \*/)?\n", text)[1]
    else:
        text = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^.])\.(?: |$)", text)[0].strip().rstrip(".").replace("|", r"\|")


def table():
    """The headings and tables that name every file."""
    parts = []
    for folder in ("", *sorted({*ROOMS, SHELL})):
        rows = [f"| `{path.name}` | {first_sentence(path)} |" for path in files(folder)]
        parts.append(
            "\n".join(
                [
                    f"### {folder + '/' if folder else 'The root'}",
                    "",
                    "| file | what lives there |",
                    "| --- | --- |",
                    *rows,
                ]
            )
        )
    return "\n\n".join(parts)


def write():
    """Draw the directions and list the files anew."""
    text = ARCHITECTURE.read_text()
    text = re.sub(r"(?<=flowchart TD\n).*?(?=\n```)", lambda _: drawing(), text, flags=re.DOTALL)
    ARCHITECTURE.write_text(text[: text.index("### The root")] + table() + "\n")


if __name__ == "__main__":
    write()
