"""Run folders with made-up results, for the report."""

import json

import numpy as np
from scipy.stats import binomtest

from support import ROOT

ODD = 'odd <img src=x onerror="window.hit=1"> & <b>run'
TRAINED = ROOT / "trained_models" / "digits-Linf-MMA-0.3-sd0"
RADII = (0.1, 0.2, 0.3)


def flags(accuracy, n=200, seed=0):
    """Text of 0 and 1 that stand for nested sets of images: who stands at a larger eps also stands at a smaller one."""
    order = np.random.default_rng(seed).permutation(n)
    return "".join("1" if place < round(accuracy * n) else "0" for place in order)


def result(eps, accuracy, n=200, seed=0, **more):
    text = flags(accuracy, n, seed)
    right = text.count("1")
    ends = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return {"eps": eps, "robust_acc": right / n, "ci95": [ends.low, ends.high], "flags": text, **more}


def make_run(folder, accuracies=(0.9, 0.7, 0.3), clean=0.96, seed=0, margins=False, norm="Linf", checks=6, **config):
    """A run folder with config, metrics and, where there are accuracies, an eval_pgd_<norm>.json."""
    folder.mkdir(parents=True)
    settings = {"dataset": "digits", "norm": norm, "method": "mma", "hinge_maxeps": 0.3, "batch_size": 50, "seed": seed}
    settings |= {
        "nb_iter": 10,
        "num_search_steps": 10,
        "test_eps": 0.2,
        "max_steps": 2000,
        "network": "lenet5",
    } | config
    (folder / "config.json").write_text(json.dumps(settings))
    rows = []
    for epoch in range(1, checks + 1):
        rows.append({"kind": "train", "step": 24 * epoch, "clean_loss": 2 / epoch, "lr": 1e-3, "steps_per_second": 10})
        row = {"kind": "eval", "split": "val", "step": 24 * epoch, "epoch": epoch}
        rows.append({**row, "clean_acc": 0.9, "robust_acc": epoch / 10, "mean_margin": epoch / 40})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if margins:
        draws = np.random.default_rng(seed).random((checks, 1200)) * np.linspace(0.1, 0.315, checks)[:, None]
        draws[:, :60] = 0
        np.save(folder / "margins.npy", draws.astype(np.float16))
    if accuracies:
        results = [result(eps, value, seed=seed) for eps, value in zip(RADII, accuracies, strict=True)]
        write_evaluation(folder, "pgd", norm, clean_acc=clean, results=results, sanity=SANITY)
    return folder


SANITY = {
    "falls with eps": {"ok": True, "value": "90.0% at eps 0.1, 70.0% at 0.2"},
    "falls with steps": {"ok": False, "value": "10.0% at 5 steps, <20.0%> at 20"},
    "square not stronger": {"ok": None, "value": "not run"},
}


def write_evaluation(folder, attack, norm, n=200, **content):
    head = {
        "attack": attack,
        "dataset": "digits",
        "norm": norm,
        "n": n,
        "model_sha256": "a",
        "seed": 0,
        "clean_acc": 0.9,
    }
    (folder / f"eval_{attack}_{norm}.json").write_text(json.dumps({**head, "settings": {}, "seconds": 1, **content}))
