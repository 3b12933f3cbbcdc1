"""Run folders with made-up results, for tables, pictures and the page."""

import json
import shlex
from dataclasses import asdict, fields, replace

import numpy as np

from config import PRESETS, Config
from evaluations.results import accuracy_of, wilson
from flags import parse_train
from reports.runs import training_command
from support import ROOT

ODD = 'odd <img src=x onerror="window.hit=1"> & <b>r|un'
TRAINED = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"
SANITY = {
    "falls with eps": {"ok": True, "value": "90.0% at eps 0.1, 70.0% at 0.2"},
    "falls with steps": {"ok": False, "value": "10.0% at 5 steps, <20.0%> at 20"},
    "square not stronger": {"ok": None, "value": "not run"},
}


def row(eps, accuracy, n=200, clean=0.98, flags=None, **more):
    """A whole row; who stands at a larger eps also stands at a smaller one."""
    order = np.random.default_rng(0).permutation(n)
    flags = flags or "".join("1" if place < round(accuracy * n) else "0" for place in order)
    figures = {"n": len(flags), "split": "test", "images": "i", "seed": 0, "clean_acc": clean}
    figures |= {"clean_ci95": wilson(round(clean * len(flags)), len(flags)), "settings": {"nb_iter": 100}}
    return {"eps": eps, **figures, **accuracy_of(flags), **more}


def distances(values, **more):
    """A row of a search for the nearest image; None: not found."""
    known = [1e30 if value is None else value for value in values]
    figures = [np.mean(known), *np.quantile(known, (0.25, 0.5, 0.75))]
    mean, *quartiles = (float(value) if value < 1e20 else None for value in figures)
    found = {"n": len(values), "split": "test", "images": "i", "seed": 0, "clean_acc": 0.98, "settings": {"steps": 100}}
    found |= {"clean_ci95": [0.9, 1.0], "mean": mean, "quartiles": quartiles, "distances": values}
    return found | {"not_found": values.count(None)} | more


def rows(accuracies, **more):
    """Of `{eps: accuracy}`."""
    return [row(eps, accuracy, **more) for eps, accuracy in accuracies.items()]


def evaluate(folder, attack, found, norm="Linf", dataset=None, sha256="a"):
    """Write an eval_<attack>_<norm>.json."""
    dataset = dataset or json.loads((folder / "config.json").read_text())["dataset"]
    head = {"format": 2, "attack": attack, "model_sha256": sha256, "dataset": dataset, "norm": norm, "results": found}
    (folder / f"eval_{attack}_{norm}.json").write_text(json.dumps(head))


def make_run(folder, accuracies=None, checks=6, margins=False, dataset="digits", norm="Linf", **changes):
    """A run folder with config and log; `{eps: accuracy}` becomes its evaluation by PGD."""
    folder.mkdir(parents=True)
    config = replace(
        PRESETS[dataset, norm], **{"method": "mma", "hinge_maxeps": 0.3, "max_steps": 24 * checks} | changes
    )
    (folder / "config.json").write_text(json.dumps(asdict(config) | {"environment": {"device": "cpu"}}))
    log = []
    for epoch in range(1, checks + 1):
        log.append({"kind": "train", "step": 24 * epoch, "clean_loss": 2 / epoch, "steps_per_second": 10})
        check = {"kind": "eval", "split": "val", "step": 24 * epoch, "epoch": epoch}
        log.append({**check, "clean_acc": 0.9, "robust_acc": epoch / 10, "mean_margin": epoch / 40})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if margins:
        draws = np.random.default_rng(config.seed).random((checks, 1200)) * np.linspace(0.1, 0.315, checks)[:, None]
        draws[:, :60] = 0
        np.save(folder / "margins.npy", draws.astype(np.float16))
    if accuracies:
        evaluate(folder, "pgd", rows(accuracies), norm)
    return folder


def cells(page):
    """Of each line of the Markdown tables in it."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]


def gives_again(config):
    """The run's command means every setting but those that do not matter to a result, which it leaves out. Returns its words."""
    words = shlex.split(training_command(config, "runs/a b"))
    again, _ = parse_train(words[2:])
    assert words[:2] == ["python", "train.py"] and again.savepath == "runs/a b"
    for field in fields(Config):
        if not field.metadata["of_run"]:
            assert getattr(again, field.name) == getattr(config, field.name), field.name
        elif field.name not in ("savepath", "data_root"):
            assert f"--{field.name}" not in words
    return words
