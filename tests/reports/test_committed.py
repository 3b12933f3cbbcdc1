"""What is committed of runs is of the present format, and has its network beside it or names what remakes it."""

import hashlib
import json
import re
import shlex
import subprocess

import pytest

from flags import parse_train
from reports.runs import frame, read_run
from support import ROOT
from validation import stored_config

ROOMS = ("trained_models", "benchmarks/digits")
TRACKED = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=False).stdout
# Where there is no git, every folder: one would have to be added by hand to be missed.
CONFIGS = [path for path in TRACKED.splitlines() if path.endswith("/config.json")] or [
    str(path.relative_to(ROOT)) for room in ROOMS for path in sorted(ROOT.glob(f"{room}/*/config.json"))
]
SUMS = dict(line.split()[::-1] for line in (ROOT / "trained_models" / "SHA256SUMS").read_text().splitlines())


@pytest.mark.parametrize("path", CONFIGS)
def test_a_committed_run(path):
    folder = (ROOT / path).parent
    config = stored_config(json.loads((ROOT / path).read_text()))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "eval" and max(row["step"] for row in rows) == config.max_steps
    run = read_run(folder)
    assert not run.damaged and set(run.evaluations) == {path.name for path in folder.glob("eval_*.json")}
    assert len(frame([run])) or len(frame([run], "val")) or not run.evaluations
    model = folder / "model_best.pt"
    if not model.exists():
        return remade(folder, config)
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    assert SUMS[f"{folder.name}/model_best.pt"] == found
    for evaluation in folder.glob("eval_*.json"):
        assert json.loads(evaluation.read_text())["model_sha256"] == found
    return None


def remade(folder, config):
    """A README there, or one above, gives the command: of this very folder, or a script that names its method."""
    text = "".join(
        (place / "README.md").read_text() for place in (folder, folder.parent) if (place / "README.md").exists()
    )
    commands = [line for line in text.splitlines() if re.match(r"(\w+=\S+ )*(python train.py|bash scripts/)", line)]
    commands += re.findall(r"^\| trained by \| `(.*)` \|$", text, flags=re.MULTILINE)  # a model card
    assert (commands and "minutes" in text) or "hour" in text
    for command in commands:
        program, script, *argv = (word for word in shlex.split(command) if not re.match(r"\w+=", word))
        assert (ROOT / script).exists()
        if program == "python":
            wanted, _ = parse_train(argv)
            assert ROOT / wanted.savepath == folder
            assert (wanted.max_steps, wanted.hinge_maxeps, wanted.norm) == (
                config.max_steps,
                config.hinge_maxeps,
                config.norm,
            )
        else:
            method = re.fullmatch(r"\w+-\w+-(.+)-sd\d", folder.name)[1]
            assert re.search(rf"^{re.escape(method)} ", (ROOT / script).read_text(), flags=re.MULTILINE)


def test_the_sums_name_what_is_there():
    for name, found in SUMS.items():
        assert hashlib.sha256((ROOT / "trained_models" / name).read_bytes()).hexdigest() == found
