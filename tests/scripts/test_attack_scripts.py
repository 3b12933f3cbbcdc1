"""The scripts that fill the published tables: what they run for each table, in which order, on what is trained."""

import os
import shutil
import subprocess

import pytest

from dry_runs import dry_run
from programs import PARSERS
from support import ROOT

TRAINED = {
    "mnist": ("mnist-Linf-MMA-0.45-sd0", "mnist-Linf-TRADES-0.3-sd0", "mnist-Linf-STD-sd0", "mnist-L2-MMA-2.0-sd0"),
    "cifar10": ("cifar10-Linf-MMA-32-sd0", "cifar10-Linf-OMMA-32-sd0", "cifar10-L2-MMA-1.0-sd0"),
}


def calls(dataset, tmp_path, trained, *extra):
    return dry_run(f"attack_{dataset}_models.sh", tmp_path, *extra, trained=trained)


def shown(call, *flags):
    """The program, without what all have in common, its run and the values of these flags."""
    values = [" ".join(call[call.index(flag) + 1 :]).split(" --")[0] for flag in flags]
    run = call[call.index("--model") + 1] if "--model" in call else "all"
    return (call[0].removeprefix("evaluate_on_").removesuffix(".py"), run.removeprefix("trained_models/"), *values)


def test_mnist(tmp_path):
    found, said = calls("mnist", tmp_path, TRAINED["mnist"], "--test_size", "500")
    mma, trades, std, l2 = TRAINED["mnist"]
    linf = (mma, std, trades)  # the baselines beside the paper's runs
    assert [shown(call, "--eps") for call in found[:8]] == [
        *[("pgd_attacks", run, "0.3") for run in linf],
        ("pgd_attacks", l2, "2.0"),
        *[("pgd_attacks", run, "grid") for run in linf],
        ("pgd_attacks", l2, "grid"),
    ]
    transfer, cw = found[8:10]
    assert shown(transfer, "--eps") == ("transfer", "all", "grid")
    assert transfer[1:4] == [f"trained_models/{run}" for run in linf]
    assert shown(cw, "--attacks", "--test_size") == ("minimum_norm", l2, "cw", "1000")
    assert [shown(call, "--eps") for call in found[10:14]] == [
        *[("autoattack", run, "0.3") for run in linf],
        ("autoattack", l2, "2.0"),
    ]
    assert found[14] == ["reports/make_tables.py", *(f"trained_models/{run}" for run in (*linf, l2))]
    assert len(found) == 15 and said.count("not trained yet") == 6
    for program, *argv in found[:-1]:
        assert argv[-2:] == ["--test_size", "500"]
        PARSERS[program](argv)


def test_cifar10_under_l2_is_attacked_at_the_published_radius(tmp_path):
    found, _ = calls("cifar10", tmp_path, TRAINED["cifar10"])
    l2 = [call for call in found[:-1] if "L2" in call]
    assert [shown(call, "--eps") for call in l2 if "--eps" in call] == [
        ("pgd_attacks", TRAINED["cifar10"][2], "0.5 1.0"),
        ("pgd_attacks", TRAINED["cifar10"][2], "grid"),
        ("autoattack", TRAINED["cifar10"][2], "0.5"),
    ]
    linf = {shown(call, "--eps")[::2] for call in found[:-1] if "Linf" in call}
    assert linf == {("pgd_attacks", "8/255"), ("pgd_attacks", "grid"), ("transfer", "grid"), ("autoattack", "8/255")}


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_nothing_trained(dataset, tmp_path):
    found, said = calls(dataset, tmp_path, ())
    assert found == [] and said.count("not trained yet") == {"mnist": 8, "cifar10": 12}[dataset]


def test_a_python_that_is_named_and_not_a_path(tmp_path):
    """PYTHON=python calls the program, not the shell's function of that name."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\necho called "$1"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": "python", "PATH": f"{stub.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "run_mnist_training.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("called") == 8
