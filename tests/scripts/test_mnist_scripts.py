"""The scripts of MNIST's fast runs and of their ablation: every command that they would run is one that is understood."""

import pytest

from dry_runs import dry_run
from flags import parse_train
from programs import PARSERS

TRAINED = ("mnist-Linf-MMA-0.45-sd0-fast", "mnist-Linf-STD-sd0-fast")


@pytest.mark.parametrize("script", ["run_mnist_fast.sh", "run_mnist_ablation.sh"])
def test_every_command_parses(script, tmp_path):
    found, _ = dry_run(script, tmp_path, trained=TRAINED)
    assert len(found) > 30
    for program, *argv in found:
        if program in PARSERS:
            PARSERS[program](argv)
        else:
            assert program in ("scripts/round_weights.py", "reports/make_tables.py", "reports/compare_runs.py")


def test_each_run_of_the_ablation_leaves_out_one_part(tmp_path):
    """Of `fast`, each attacked on validation images only."""
    found, _ = dry_run("run_mnist_ablation.sh", tmp_path, SEEDS="1")
    runs = {
        argv[argv.index("--savepath") + 1]: parse_train(argv)[0] for program, *argv in found if program == "train.py"
    }
    assert len(runs) == 17
    by_name = {name.split("-sd")[1]: config.to_dict() for name, config in runs.items()}
    free = {"savepath", "max_steps", "cycle_steps", "seed", "num_search_steps", "lr"}
    for name, config in by_name.items():
        if name.startswith("0-fast-"):
            parts = {key for key, value in config.items() if value != by_name["0-fast"][key]} - free
            assert len(parts) == 1 or parts == {"keep_directions", "refresh_interval"}, (name, parts)
    attacks = [argv for program, *argv in found if program.startswith("evaluate")]
    assert all(argv[argv.index("--split") + 1] == "val" for argv in attacks)
