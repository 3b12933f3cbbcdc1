"""What a shell script of ours would run: it runs in a copy of scripts/, with a python that only writes its arguments down."""

import os
import shutil
import subprocess
import sys

from support import ROOT

STUB = """#!/bin/bash
case " $* " in *" --help "*) exec {python} "{root}/$(basename "$1")" --help ;; esac
printf "%s\\t" "$@" >> calls.txt; echo >> calls.txt
case "$*" in *"${{FAILS:-no such word}}"*) exit 3 ;; esac
"""


def dry_run(script, folder, *arguments, trained=(), status=0, **environment):
    """([program, arguments] of each call, what was said) in a clone at `folder` where the runs `trained` have networks.

    Calls that hold the word FAILS end with status 3.
    """
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "benchmarks").mkdir()
    for name in trained:
        (folder / "trained_models" / name).mkdir(parents=True, exist_ok=True)
        (folder / "trained_models" / name / "model_best.pt").write_bytes(b"")
    python = folder / "python"
    python.write_text(STUB.format(python=sys.executable, root=ROOT))
    python.chmod(0o755)
    command = ["bash", str(folder / "scripts" / script), *map(str, arguments)]
    given = {**os.environ, **environment, "PYTHON": str(python)}
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    log = folder / "calls.txt"
    lines = log.read_text().replace(f"{folder}/", "").splitlines() if log.exists() else []
    return [line.split("\t")[:-1] for line in lines], done.stdout + done.stderr
