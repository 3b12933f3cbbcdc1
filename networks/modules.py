"""Modules of some folders, beside others of the same names: people's `utils` and ours, each found by its own side.

Nothing of ours is imported here: hubconf.py loads this file before any other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
OURS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
LOCK = threading.RLock()


class Modules:
    """Modules of some folders, kept apart from others of the same names."""

    def __init__(self, *folders: Path, name: str = "") -> None:
        """name: of a package that is theirs wherever another of that name was loaded from."""
        self.path = list(dict.fromkeys(map(str, folders)))
        self.names = OURS | {name}
        self.loaded: dict[str, ModuleType] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, `import` looks in these folders first and in ours last; afterwards everything is as it was before.

        The modules that it found here are kept, and are there again the next time.
        """
        with LOCK:
            path = list(sys.path)
            hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in self.names}
            before = set(sys.modules)
            sys.modules.update(self.loaded)
            sys.path[:] = [*self.path, *(folder for folder in path if Path(folder).resolve() != ROOT)]
            sys.meta_path.append(_OursLast)
            try:
                yield
            finally:
                sys.meta_path.remove(_OursLast)
                added = [folder for folder in sys.path if folder not in path]
                self.path = list(dict.fromkeys([*added, *self.path]))
                theirs = {top for top in map(_top, set(sys.modules) - before) if top in self.names or self._holds(top)}
                new = [name for name in sys.modules if name not in before and _top(name) in theirs]
                self.loaded = {name: sys.modules.pop(name) for name in new}
                sys.modules.update(hidden)
                sys.path[:] = path

    def _holds(self, top: str) -> bool:
        """Whether the loaded module of this name lies in one of the folders."""
        spec = getattr(sys.modules.get(top), "__spec__", None)
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec else []
        return any(str(Path(place).parent) in self.path and Path(place).stem == top for place in places)


class _OursLast:
    """Finds our modules where no others of their names are."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if path is None else None


def _top(name: str) -> str:
    return name.partition(".")[0]
