"""People's own networks, whose files may bear the names of ours: utils.py, config.py, networks/.

`path/to/file.py:callable` is looked for where the path says, and what the file imports first in its own folder;
`package.module:callable` in the current folder. What these folders lack is taken from the installed packages, then from
ours. Paths and packages are as seen from the current folder, and a checkpoint stores them as they were typed.

Their modules are in `sys.modules` only while they are loaded and called to build the network: an import that runs later, in
their `forward` say, does not find them, nor does pickle.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

from .modules import Modules

FILE = "_own_network_"  # how the module of a file that is named by its path begins
FORM = "the form is path/to/file.py:callable, or package.module:callable in the current folder or an installed package"
STDLIB = Path(os.__file__).parent


def load_own(network: str) -> Callable[..., Any]:
    """`path/to/file.py:callable` or `package.module:callable` -> the callable.

    :raises ValueError: if there is none, or their code fails; with file name and cause.
    """
    where, _, attribute = network.rpartition(":")
    file = Path(where).resolve() if where.endswith(".py") else None
    if file and not file.is_file():
        raise ValueError(f"there is no file {where}: name another")
    importlib.invalidate_caches()
    try:
        modules, module = _load(where, file)
        found: Callable[..., Any] | None = getattr(module, attribute, None)
    except (Exception, SystemExit) as error:  # theirs may raise anything
        raise ValueError(f"cannot be imported ({cause(error)}): {'mend it' if _place(error) else FORM}") from None
    if found is None or not callable(found):
        near = difflib.get_close_matches(attribute, [name for name, v in vars(module).items() if callable(v)], n=1)
        kind = f"has no {attribute}" if found is None else f"{attribute} in it is no callable but {found!r:.40}"
        remedy = f"did you mean {near[0]}?" if near else "name a function or class that it defines"
        raise ValueError(f"{getattr(module, '__file__', where)}: {kind}: {remedy}")

    def make(*shape: int) -> Any:
        with modules.in_place(), chdir("."):
            return found(*shape)

    return make


def code_of(network: str) -> str:
    """A digest of the file that `network` names and of those that it imports out of its folder, its package or the current
    folder; none of an installed package's."""
    where = network.rpartition(":")[0]
    named = [Path(where)] if where.endswith(".py") else _files_of(where, [Path()])
    files: list[Path] = []
    for file in (one.resolve() for one in named if one.is_file()):
        above = _above(file)
        inits = [parent / "__init__.py" for parent in file.parents if parent.is_relative_to(above) and parent != above]
        for one in (file, *inits):
            _with_imports(one, [file.parent, above, Path.cwd()], files)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12] if files else ""


def _with_imports(file: Path, folders: list[Path], found: list[Path]) -> None:
    """`found` gets the file and, in turn, what it imports out of its package or of `folders`, as far as its text says."""
    if file in found:
        return
    found.append(file)
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):  # the second for a NUL in it
        return
    for node in nodes:
        places, names = folders, list[str]()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
            if node.level:
                places = [file.parents[min(node.level, len(file.parents)) - 1]]
        for other in (file for name in names if name for file in _files_of(name, places)):
            _with_imports(other, folders, found)


def _files_of(name: str, folders: list[Path]) -> list[Path]:
    """The files that an import of the dotted name runs, out of the first of these folders that has them."""
    parts = name.split(".")
    for folder in folders:
        packages = [folder.joinpath(*parts[: count + 1], "__init__.py") for count in range(len(parts))]
        if found := [file for file in (*packages, folder.joinpath(*parts).with_suffix(".py")) if file.is_file()]:
            return found
    return []


def _above(file: Path) -> Path:
    """The folder in which the file's package lies, its own where it is in none: its files name each other from there."""
    above = file.parent
    while (above / "__init__.py").exists():
        above = above.parent
    return above


def _load(where: str, file: Path | None) -> tuple[Modules, ModuleType]:
    """The module of that file, else of that name, and the modules it belongs to."""
    if file is None:
        modules = Modules(Path.cwd())
        with modules.in_place(), chdir("."):
            return modules, importlib.import_module(where)
    above = _above(file)
    package = ".".join(file.parent.relative_to(above).parts)
    name = (f"{package}." if package else FILE) + re.sub(r"\W", "_", file.stem)
    modules = Modules(file.parent, above, Path.cwd(), name=name.partition(".")[0])
    with modules.in_place(), chdir("."):
        if package:
            importlib.import_module(package)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None and spec.loader is not None  # a file that is there
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return modules, sys.modules[name]


def cause(error: BaseException) -> str:
    """What went wrong in their code, with the last line of theirs that was running."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return _place(error) + f"{type(error).__name__}: {text}".replace(FILE, "")


def _place(error: BaseException) -> str:
    """`file, line n: ` in their code, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        installed = file.is_relative_to(STDLIB) or {"site-packages", "dist-packages"} & set(file.parts)
        if file.is_absolute() and not installed and file.parent != Path(__file__).parent:
            return f"{frame.filename}, line {frame.lineno}: "
    return ""
