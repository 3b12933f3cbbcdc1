"""Commands as they are shown to be typed: with the interpreter that is in use, from the folder one is in."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def shortest(path: Path) -> str:
    """`path` from the current folder, or whole where that is shorter."""
    whole = str(path.absolute())
    return min(os.path.relpath(whole), whole, key=len)


def interpreter() -> str:
    """What starts this Python from here: `python` where that is it, else its path, the shorter way."""
    found = shutil.which("python")  # links of a .venv all lead elsewhere: they are not followed
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shortest(Path(sys.executable))


def command(program: str, *arguments: str, processes: int = 1) -> str:
    """The line that starts `program`, a file of this repository, quoted for a shell; several processes by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    return shlex.join([interpreter(), *torchrun, shortest(ROOT / program), *arguments])
