"""What is committed of runs is of the present format, and has its network beside it or names what remakes it."""

import hashlib
import json
import re
import shlex

import pytest

from flags import parse_train
from records.pretrained import COMMITTED
from report_runs import gives_again
from reports.runs import frame, read_run
from support import ROOT
from validation import stored_config

FOLDERS = sorted(path.parent for pattern in COMMITTED for path in ROOT.glob(f"{pattern}/config.json"))
SUMS = dict(line.split()[::-1] for line in (ROOT / "trained_models" / "SHA256SUMS").read_text().splitlines())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_run(folder):
    config = stored_config(json.loads((folder / "config.json").read_text()))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "eval" and max(row["step"] for row in rows) == config.max_steps
    if folder.parent.name == "trained_models":
        words = gives_again(config)
        assert config.recipe != "fast" or "--keep_directions" not in words, "it implies the rest"
    run = read_run(folder)
    assert not run.damaged and set(run.evaluations) == {path.name for path in folder.glob("eval_*.json")}
    assert len(frame([run])) or len(frame([run], "val")) or not run.evaluations
    model = folder / "model_best.pt"
    if model.exists():
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        assert SUMS[f"{folder.name}/model_best.pt"] == found
        for evaluation in folder.glob("eval_*.json"):
            assert json.loads(evaluation.read_text())["model_sha256"] == found
    else:
        remade(folder, config)


def remade(folder, config):
    """A README there, or one above, gives the command: of this very folder, or a script that names its method."""
    pages = [place / "README.md" for place in (folder, folder.parent)]
    text = "".join(page.read_text() for page in pages if page.exists())
    commands = [line for line in text.splitlines() if re.match(r"(\w+=\S+ )*(python train.py|bash scripts/)", line)]
    commands += re.findall(r"^\| trained by \| `(.*)` \|$", text, flags=re.MULTILINE)  # a model card
    assert (commands and "minutes" in text) or "hour" in text
    for command in commands:
        program, script, *argv = (word for word in shlex.split(command) if not re.match(r"\w+=", word))
        assert (ROOT / script).exists()
        if program == "python":
            wanted, _ = parse_train(argv)
            assert ROOT / wanted.savepath == folder
            for name in ("max_steps", "hinge_maxeps", "norm"):
                assert getattr(wanted, name) == getattr(config, name)
        else:
            method = re.fullmatch(r"\w+-\w+-(.+)-sd\d", folder.name)[1]
            assert re.search(rf"^{re.escape(method)} ", (ROOT / script).read_text(), flags=re.MULTILINE)
