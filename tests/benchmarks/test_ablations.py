"""The rows of ablations and trials whose run folders are not kept: whole in themselves, and what the tables beside them say."""

import json
import math
import re

import numpy as np
import pytest

from evaluations.results import quoted
from reports.compare_runs import paired
from support import ROOT

FILES = [ROOT / "benchmarks" / f"{name}.json" for name in ("mnist_ablation", "mnist_trials", "cifar10_ablation")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_are_whole(path):
    content = json.loads(path.read_text())
    assert {row["run"] for row in content["rows"]} == set(content["runs"])
    for row in content["rows"]:
        if row["attack"] in ("pgd", "strong", "autoattack"):
            assert len(row["flags"]) == row["n"] and math.isclose(row["flags"].count("1") / row["n"], row["robust_acc"])
            low, high = row["ci95"]
            assert low < row["robust_acc"] < high or row["robust_acc"] in (0, 1)
        else:
            assert len(row["distances"]) == row["n"]
    for run in content["runs"].values():
        assert run["passes"] > 1e6 and run["minutes"] > 1 and run["changed"]["max_steps"] > 0 and run["checks"]


@pytest.mark.parametrize("name", ["mnist_ablation", "cifar10_ablation"])
def test_tables_and_their_paired_differences_follow_from_the_rows(name):
    content, found = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text()), 0
    for text in (ROOT / "benchmarks" / f"{name}.md").read_text().split("\n\n1000 "):
        eps, _, whole = re.search(r"PGD at ([\d./]+)", text)[1].partition("/")
        radius = float(eps) / float(whole or 1)
        seeds = {}
        for name_of_run, run in content["runs"].items():
            for row in quoted([row for row in content["rows"] if row["run"] == name_of_run], "val"):
                if math.isclose(row["eps"], radius, rel_tol=1e-6):
                    seeds.setdefault(name_of_run.replace(f"-sd{run['seed']}", ""), {})[run["seed"]] = row
        lines = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \w+-L", line)]
        for run, _, _, _, _, robust, against in lines:
            found += 1
            mean = 100 * np.mean([row["robust_acc"] for row in seeds[run].values()])
            assert math.isclose(mean, float(robust.split(" ± ")[0]), abs_tol=0.051)
            if against != "–":
                written = [float(end) for end in re.findall(r"[-+][\d.]+", against)[:3]]
                *ends, _ = paired(seeds[run], seeds[lines[0][0]])
                assert written == pytest.approx([100 * end for end in ends], abs=0.051)
    assert found == {"mnist_ablation": 22, "cifar10_ablation": 16}[name]
