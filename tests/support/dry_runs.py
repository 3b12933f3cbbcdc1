"""What a shell script of ours would run: it runs in a copy of scripts/, with a python that only writes its arguments down."""

import os
import shutil
import subprocess

from support import ROOT


def dry_run(script, folder, *arguments, trained=(), **environment):
    """([program, arguments] of each call, what was said) in a clone at `folder` where the runs `trained` have models."""
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "benchmarks").mkdir(exist_ok=True)
    for name in trained:
        (folder / "trained_models" / name).mkdir(parents=True, exist_ok=True)
        (folder / "trained_models" / name / "model_best.pt").write_bytes(b"")
    python = folder / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\t" "$@" >> calls.txt; echo >> calls.txt\n')
    python.chmod(0o755)
    command = ["bash", str(folder / "scripts" / script), *arguments]
    environment = {**os.environ, **environment, "PYTHON": str(python)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    log = folder / "calls.txt"
    lines = log.read_text().replace(f"{folder}/", "").splitlines() if log.exists() else []
    return [line.split("\t")[:-1] for line in lines], done.stdout + done.stderr
