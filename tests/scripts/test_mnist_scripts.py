"""The scripts of MNIST's fast runs and of their ablation: every command that they would run is one that is understood."""

from pathlib import Path

import pytest

from dry_runs import dry_run
from flags import parse_train
from programs import PARSERS


def runs_of(script, folder):
    """The names of the runs that it trains."""
    found, _ = dry_run(script, folder)
    return [Path(argv[argv.index("--savepath") + 1]).name for program, *argv in found if program == "train.py"]


@pytest.mark.parametrize("script", ["run_mnist_fast.sh", "run_mnist_ablation.sh"])
def test_every_command_parses(script, tmp_path):
    found, _ = dry_run(script, tmp_path / "again", trained=runs_of(script, tmp_path / "first"))
    assert len(found) > 40
    for program, *argv in found:
        if program in PARSERS:
            PARSERS[program](argv)
        else:
            assert program in (
                "scripts/round_weights.py",
                "reports/make_tables.py",
                "reports/compare_runs.py",
                "reports/plot_passes.py",
            )


def test_every_fast_run_is_attacked_where_its_network_is(tmp_path):
    """Of a run that is committed without its network its attacks are kept; nothing is attacked in its stead."""
    runs = runs_of("run_mnist_fast.sh", tmp_path / "first")
    without = "mnist-Linf-STD-sd0-fast"
    page = tmp_path / "again" / "trained_models" / without / "README.md"
    page.parent.mkdir(parents=True)
    page.touch()
    found, said = dry_run("run_mnist_fast.sh", tmp_path / "again", trained=[run for run in runs if run != without])
    attacked = {argv[argv.index("--model") + 1] for program, *argv in found if "--model" in argv}
    assert attacked == {f"trained_models/{run}" for run in runs if run != without}
    assert f"{without}: skipped, its network is not committed" in said
    assert not any(program == "evaluate_on_transfer.py" for program, *_ in found)
    found, _ = dry_run("run_mnist_fast.sh", tmp_path / "whole", trained=runs)
    assert sum(program == "evaluate_on_transfer.py" for program, *_ in found) == 1


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
