"""Tables, pictures and the page of run folders. They need what requirements/report.txt installs."""

import importlib.util
import os
import shlex
import sys
from pathlib import Path


def require(*packages: str, by: str = "requirements/report.txt") -> None:
    """Leave the program with one line, exit status 2, if one of these is not installed; by: the file that installs them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            python, root = shlex.quote(sys.executable), Path(__file__).resolve().parent.parent
            file = shlex.quote(os.path.relpath(root / by))
            print(f"error: package {package}: not installed: {python} -m pip install -r {file}", file=sys.stderr)
            sys.exit(2)
