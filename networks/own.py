"""People's own networks: their code runs beside ours, and neither sees the other's files.

`path/to/file.py:callable` is looked for where the path says, and what the file imports first in its own folder;
`package.module:callable` in the current folder. What these folders have is theirs, also under a name that ours have
(utils.py, config.py, losses.py, networks/); what they lack is taken from where Python finds it: installed packages,
then ours. Paths and packages are as seen from the current folder, and a checkpoint stores them as they were typed.

How: the folders become a private package in `sys.modules`, and each module in it gets an `__import__` of its own, that
looks there first. So nothing of theirs stands in `sys.modules` under the name of one of ours, `sys.path` keeps its
order, and imports that run later, in their `forward` say, still find theirs.
Covered: import statements anywhere in their files, relative ones too, `__import__`, `importlib.import_module`, folders
that they add to `sys.path`, pickle and deepcopy within the process and its forks.
Not covered: `sys.modules["utils"]` read by hand, pickles of whole networks opened in another process, and folders in
PYTHONPATH, which are searched after ours as installed packages are.
"""

from __future__ import annotations

import builtins
import difflib
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from errors import UserError

OURS = Path(__file__).resolve().parent.parent
PREFIX = "_own_network_"  # of the private packages


def load_own(network: str) -> Callable[..., Any]:
    """`path/to/file.py:callable` or `package.module:callable` -> the callable.

    :raises UserError: if there is none, or their code fails; with file name and cause.
    """
    where, _, attribute = network.rpartition(":")
    importlib.invalidate_caches()
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
        found: Callable[..., Any] | None = getattr(module, attribute, None)
    except _NoFile as error:
        raise UserError(f"--network {network}: there is no file {error}: name another") from None
    except (Exception, SystemExit) as error:  # theirs may raise anything
        form = (
            "the form is path/to/file.py:callable, or package.module:callable, looked for in the current folder and "
            "the installed packages"
        )
        remedy = "mend it" if _place(error) else form
        raise UserError(f"--network {network}: cannot be imported ({cause(error)}): {remedy}") from None
    if found is None or not callable(found):
        near = difflib.get_close_matches(attribute, [name for name, v in vars(module).items() if callable(v)], n=1)
        kind = f"has no {attribute}" if found is None else f"{attribute} in it is no callable but {found!r:.40}"
        remedy = f"did you mean {near[0]}?" if near else "name a function or class that it defines"
        raise UserError(f"--network {network}: {getattr(module, '__file__', where)}: {kind}: {remedy}")
    return found


def cause(error: BaseException) -> str:
    """What went wrong in their code, with the last line of theirs that was running."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return _place(error) + re.sub(rf"{PREFIX}\w+\.", "", f"{type(error).__name__}: {text}")


def _place(error: BaseException) -> str:
    """`file, line n: ` in their code, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    lines = [
        f"{frame.f_code.co_filename}, line {line}: "
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(PREFIX)
    ]
    return lines[-1] if lines else ""


@contextmanager
def ours_unharmed() -> Iterator[None]:
    """Our modules stay what they are and the first to be found, whatever code in here does to `sys`."""
    path, ours = list(sys.path), {name: module for name, module in sys.modules.items() if _is_ours(module)}
    try:
        yield
    finally:
        sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
        sys.modules.update(ours)


def _is_ours(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(OURS) and not str(module).startswith(PREFIX)


class _Space:
    """Folders of theirs as a private package: the module `m` in them is `<name>.m` in `sys.modules`."""

    def __init__(self, name: str, folders: Sequence[str]) -> None:
        self.package = ModuleType(name)
        self.package.__path__ = list(folders)
        self.package.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = self.package
        self.name = name
        self.path_before = {*sys.path, str(OURS)}
        self.found: dict[str, bool] = {}
        self.builtins = {**vars(builtins), "__import__": self.import_}
        self.importlib = _Importlib(self)

    def has(self, module: str) -> bool:
        """Whether the top-level module of this name is theirs."""
        added = [p for p in sys.path if p not in self.path_before and not Path(p).is_relative_to(sys.prefix)]
        if added:
            self.path_before.update(added)
            self.package.__path__.extend(added)
            self.found.clear()
        if module not in self.found:
            self.found[module] = module not in sys.builtin_module_names and self._finds(module)
        return self.found[module]

    def _finds(self, module: str) -> bool:
        spec = PathFinder.find_spec(module, self.package.__path__)
        if spec is None:
            return False
        if spec.origin is None:  # a plain folder gives way to an installed package, as on any search path
            elsewhere = PathFinder.find_spec(module, [p for p in sys.path if Path(p).resolve() != OURS])
            return elsewhere is None or elsewhere.origin is None
        return getattr(sys.modules.get(module), "__file__", None) != spec.origin  # else it is loaded already

    def import_(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`__import__` of their modules."""
        top = name.partition(".")[0]
        if level or not self.has(top):
            module = builtins.__import__(name, globals, locals, fromlist or (), level)
            return self.importlib if module is importlib else module
        module = builtins.__import__(f"{self.name}.{name}", globals, locals, fromlist or ())
        return module if fromlist else sys.modules[f"{self.name}.{top}"]

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        """`importlib.import_module` of their modules."""
        name = importlib.util.resolve_name(name, package)
        return importlib.import_module(f"{self.name}.{name}" if self.has(name.partition(".")[0]) else name)


class _Importlib(ModuleType):
    """`importlib` as their modules see it."""

    def __init__(self, space: _Space) -> None:
        super().__init__("importlib")
        self.import_module = space.import_module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib, name)


class _Loader(SourceFileLoader):
    """Runs a file of theirs with the `__import__` of its space, which every function in it keeps."""

    def __init__(self, space: _Space, name: str, file: str) -> None:
        super().__init__(name, file)
        self.space = space

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self.space.builtins
        super().exec_module(module)


class _Finder:
    """Finds the modules of the private packages, and no others."""

    spaces: dict[str, _Space] = {}  # noqa: RUF012

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        space = cls.spaces.get(name.partition(".")[0])
        spec = PathFinder.find_spec(name, path) if space else None
        if space and spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(space, spec.loader.name, spec.loader.path)
        return spec


def _space(*folders: Path) -> _Space:
    """The space of these folders; our own root is none of theirs, it is where Python finds it anyway."""
    names = list(dict.fromkeys(str(folder.resolve()) for folder in folders if folder.resolve() != OURS))
    name = PREFIX + hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]
    if name not in _Finder.spaces:
        _Finder.spaces[name] = _Space(name, names)
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    _Finder.spaces[name].found.clear()
    return _Finder.spaces[name]


def _load_module(name: str) -> ModuleType:
    return _space(Path.cwd()).import_module(name)


class _NoFile(Exception):
    pass


def _load_file(file: Path) -> ModuleType:
    """:raises _NoFile: if there is none."""
    if not file.is_file():
        raise _NoFile(file)
    file = file.resolve()
    if file.name == "__init__.py":
        return _space(file.parent.parent, Path.cwd()).import_module(file.parent.name)
    above = file.parent
    while (above / "__init__.py").exists():  # in a package: its files name each other from the folder it lies in
        above = above.parent
    space = _space(file.parent, above, Path.cwd())
    name = space.name + "." + re.sub(r"\W", "_", file.stem)
    if name not in sys.modules:
        loader = _Loader(space, name, str(file))
        spec = importlib.util.spec_from_file_location(name, file, loader=loader)
        assert spec is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
