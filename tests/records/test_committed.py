"""Every committed run is read as it is: its settings by `--config`, its network by the hub and by the evaluators."""

import json
from dataclasses import fields, replace

import pytest
import torch

import hubconf
from config import GONE, Config
from errors import UserError
from evaluations import subject
from evaluations.flags import PgdFlags
from flags import parse_train
from loading import datasets
from loading.batches import Split
from records import checkpoint
from support import ROOT
from validation import stored_config

FOLDERS = sorted(
    path.parent
    for pattern in ("trained_models/*", "benchmarks/*", "benchmarks/*/*")
    for path in ROOT.glob(f"{pattern}/config.json")
)
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "imagefolder": (3, 32, 32), "cifar10": (3, 32, 32)}
OF_RUN = {f.name: f.default for f in fields(Config) if f.metadata["of_run"]}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_settings_are_read_and_are_the_same_again(folder):
    values = json.loads((folder / "config.json").read_text())
    stored = stored_config(values)
    assert stored.method == (values.get("method") or "mma")
    again, _ = parse_train(["--config", str(folder)])
    ramp_steps = stored.ramp_steps or again.ramp_steps  # half of all steps, where it is not said
    stored = replace(stored, ramp_steps=ramp_steps)
    assert again == replace(stored, **OF_RUN), "but for where it lies and how it is shown"


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if (folder / "model_best.pt").exists()], ids=lambda folder: folder.name
)
def test_its_network_is_the_same_to_the_hub_and_to_an_evaluator(folder, monkeypatch):
    config = stored_config(json.loads((folder / "config.json").read_text()))
    images = torch.randint(
        0, 256, (2, *SHAPES[config.dataset]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    monkeypatch.setattr(subject, "load_test", lambda *_, **__: datasets.Part(split, 10))  # the data may not be here
    found = subject.load_subject(PgdFlags(model=str(folder)), torch.device("cpu"))
    assert (found.dataset, found.norm) == (config.dataset, config.norm)
    x = split.everything().x
    hub = hubconf.mma(folder.name)
    torch.testing.assert_close(found.model(x), hub(x))
    assert checkpoint.load(folder / "model_best.pt")["model"].keys() == found.model.state_dict().keys()


@pytest.mark.parametrize(("name", "value"), [("activation", "silu"), ("average_decay", 0.999)])
def test_a_setting_that_is_gone_is_refused_unless_it_holds_its_default(tmp_path, name, value):
    values = json.loads((ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0" / "config.json").read_text())
    assert stored_config({**values, name: GONE[name]}) == stored_config({k: v for k, v in values.items() if k != name})
    (tmp_path / "config.json").write_text(json.dumps({**values, name: value}))
    for read in (lambda: stored_config({**values, name: value}), lambda: parse_train(["--config", str(tmp_path)])):
        with pytest.raises(UserError, match=f"{name} {value}: there is no such setting any more"):
            read()
