"""scripts/*.sh as they would run: every line parses and writes to the folder that its flags name; what has broken before."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dry_runs import dry_run
from flags import parse_train
from programs import parses
from records.resume import open_run
from records.run_folder import RunFolder
from support import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
# Script -> how many networks it trains, where, and what its runs' names end with beyond what their flags say.
TRAINS = {
    "run_mnist_training.sh": (8, "trained_models"),
    "run_cifar10_training.sh": (12, "trained_models"),
    "run_mnist_baselines.sh": (15, "trained_models"),
    "run_cifar10_baselines.sh": (20, "trained_models"),
    "run_mnist_fast.sh": (18, "trained_models"),
    "run_cifar10_small_study.sh": (9, "trained_models"),
    "run_digits_table.sh": (21, "benchmarks/digits"),
    "first_gpu_hour.sh": (2, "runs/gpu"),
}
MNIST = ("mnist-Linf-MMA-0.45-sd0", "mnist-Linf-STD-sd0", "mnist-Linf-TRADES-0.3-sd0", "mnist-L2-MMA-2.0-sd0")
CIFAR10 = ("cifar10-Linf-MMA-32-sd0", "cifar10-Linf-OMMA-32-sd0", "cifar10-L2-MMA-1.0-sd0")


def value(call, flag):
    """The words after a flag, up to the next."""
    rest = call[call.index(flag) + 1 :]
    return " ".join(rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))])


def trained_by(calls):
    return [Path(value(call, "--savepath")).name for call in calls if call[0] == "train.py"]


def shown(call, *flags):
    """The program, the run and the values of these flags."""
    run = Path(value(call, "--model")).name if "--model" in call else "all"
    return (call[0].removeprefix("evaluate_on_").removesuffix(".py"), run, *(value(call, flag) for flag in flags))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("script", TRAINS)
def test_every_line_parses_and_writes_to_the_folder_that_its_flags_name(script, tmp_path, monkeypatch):
    count, place = TRAINS[script]
    calls, _ = dry_run(script, tmp_path / "first")
    runs = trained_by(calls)
    assert len(set(runs)) == len(runs) == count
    calls, _ = dry_run(script, tmp_path / "again", trained=runs if place == "trained_models" else ())
    for program, *argv in calls:
        if program == "-m":
            continue
        config = parses(program, argv, monkeypatch)
        if config:
            folder = Path(value(argv, "--savepath"))
            assert str(folder.parent).endswith(place) and config.resume, "started again it skips what is done"
            assert folder.name.replace("cifar10jpeg", "imagefolder").startswith(config.run_name.removesuffix("-fast"))
            assert "--recipe fast" not in " ".join(argv) or "-fast" in folder.name or "steps" in folder.name
            assert script.startswith("run_") is False or "fast" in folder.name or config.recipe == "paper"


def test_rows_by_name_and_further_arguments(tmp_path):
    row = "mnist-L2-MMA-2.0-sd0"
    ((_, *argv),), _ = dry_run("run_mnist_training.sh", tmp_path / "one", row, "--max_steps", "5")
    assert value(argv, "--savepath") == f"trained_models/{row}" and argv[-2:] == ["--max_steps", "5"]
    calls, _ = dry_run("run_mnist_training.sh", tmp_path / "all", "--max_steps", "5")
    assert len(calls) == 8 and all(call[-2:] == ["--max_steps", "5"] for call in calls)
    for number, name in enumerate(("mnist-L2-MMA-2", "mnist", "MMA-2.0-sd0", "0.45")):
        calls, said = dry_run("run_mnist_training.sh", tmp_path / f"none{number}", name, status=2)
        assert not calls and said.startswith(f"error: {name}: no row") and row in said
    calls, said = dry_run("attack_mnist_models.sh", tmp_path / "attack", "foo", status=2)
    assert not calls and said == "error: foo: is the name of no run, which has -Linf- or -L2- in it\n"


def test_published_tables_are_filled_cheap_things_first(tmp_path, monkeypatch):
    calls, said = dry_run("attack_mnist_models.sh", tmp_path, "--test_size", "500", "--nb_iter", "7", trained=MNIST)
    mma, std, trades, l2 = MNIST
    linf = (mma, std, trades)  # the baselines beside the paper's runs
    assert [shown(call, "--eps") for call in calls[:8]] == [
        *[("pgd_attacks", run, "0.3") for run in linf],
        ("pgd_attacks", l2, "2.0"),
        *[("pgd_attacks", run, "grid") for run in linf],
        ("pgd_attacks", l2, "grid"),
    ]
    transfer, cw, *autoattack, tables = calls[8:]
    assert shown(transfer, "--eps") == ("transfer", "all", "grid")
    assert transfer[1:4] == [f"trained_models/{run}" for run in linf]
    assert shown(cw, "--attacks") == ("minimum_norm", l2, "cw")
    assert [shown(call, "--eps") for call in autoattack] == [
        *[("autoattack", run, "0.3") for run in linf],
        ("autoattack", l2, "2.0"),
    ]
    assert tables == ["reports/make_tables.py", *(f"trained_models/{run}" for run in (*linf, l2))]
    assert said.count("not trained yet") == 19
    for program, *argv in calls[:-1]:  # further arguments reach the programs that know them
        knows_steps = program in ("evaluate_on_pgd_attacks.py", "evaluate_on_transfer.py")
        assert argv[-4 if knows_steps else -2 :] == ["--test_size", "500", *(["--nb_iter", "7"] if knows_steps else [])]
        parses(program, argv, monkeypatch)


def test_a_flag_that_no_evaluation_has_is_refused(tmp_path):
    calls, said = dry_run("attack_mnist_models.sh", tmp_path, "--test_sizes", "5", trained=MNIST, status=2)
    assert calls == [] and said == "error: --test_sizes: no evaluation has this flag: leave it out\n"


def test_cifar10_under_l2_is_attacked_at_the_published_radius(tmp_path):
    calls, _ = dry_run("attack_cifar10_models.sh", tmp_path, trained=CIFAR10)
    l2 = [shown(call, "--eps")[::2] for call in calls[:-1] if "L2" in call and "--eps" in call]
    assert l2 == [("pgd_attacks", "0.5 1.0"), ("pgd_attacks", "grid"), ("autoattack", "0.5")]
    linf = {shown(call, "--eps")[::2] for call in calls[:-1] if "Linf" in call}
    assert linf == {("pgd_attacks", "8/255"), ("pgd_attacks", "grid"), ("transfer", "grid"), ("autoattack", "8/255")}


@pytest.mark.parametrize("name", ["mnist-Linf-PGD-0.3-sd0-fast", "cifar10jpeg-Linf-STD-sd0-fast"])
def test_a_run_that_is_there_goes_on_with_its_own_flags(name, tmp_path, monkeypatch):
    """Not with those of today's recipe, which `--resume` refuses."""
    folder = tmp_path / "trained_models" / name
    shutil.copytree(ROOT / "trained_models" / name, folder)
    calls, _ = dry_run(f"run_{'mnist_fast' if 'mnist' in name else 'cifar10_small_study'}.sh", tmp_path)
    ((_, *argv),) = [call for call in calls if call[0] == "train.py" and name in value(call, "--savepath")]
    monkeypatch.chdir(tmp_path)
    assert open_run(RunFolder(folder), parse_train(argv)[0]).finished


def test_weights_are_rounded_once_before_they_are_attacked(tmp_path):
    attacked = tmp_path / "trained_models" / "cifar10jpeg-Linf-STD-sd0-fast"
    attacked.mkdir(parents=True)
    (attacked / "eval_pgd_Linf.json").write_text("{}")
    calls, _ = dry_run("run_cifar10_small_study.sh", tmp_path)
    for run in trained_by(calls):
        own = [Path(call[0]).name for call in calls if f"trained_models/{run}" in call]
        first = ["train.py"] if run == attacked.name else ["train.py", "round_weights.py"]
        assert own[: len(first) + 3] == [*first, *["evaluate_on_pgd_attacks.py"] * 2, "evaluate_on_autoattack.py"]


def test_a_run_that_is_committed_without_its_network_is_not_attacked(tmp_path):
    runs = trained_by(dry_run("run_mnist_fast.sh", tmp_path / "first")[0])
    without = "mnist-Linf-STD-sd0-fast"
    page = tmp_path / "again" / "trained_models" / without / "README.md"
    page.parent.mkdir(parents=True)
    page.touch()
    calls, said = dry_run("run_mnist_fast.sh", tmp_path / "again", trained=[run for run in runs if run != without])
    assert {Path(value(call, "--model")).name for call in calls if "--model" in call} == {*runs} - {without}
    assert f"{without}: skipped, its network is not committed" in said
    assert not any(call[0] == "evaluate_on_transfer.py" for call in calls)


def test_a_step_that_fails_does_not_end_the_check_of_a_gpu_but_is_told(tmp_path):
    calls, said = dry_run("first_gpu_hour.sh", tmp_path, tmp_path / "out", status=1, FAILS="imagefolder", PICTURES="p")
    programs = [Path(call[0]).name for call in calls[1:]]
    assert programs == ["benchmark.py", *["train.py", "evaluate_on_pgd_attacks.py"] * 2]
    assert "cifar10.train: status 3" in said and "cifar10.attack: status 0" in said
    assert (tmp_path / "out" / "mnist.train.log").exists()


def test_a_python_that_is_named_and_not_a_path(tmp_path, monkeypatch):
    """PYTHON=python calls the program, not the shell's function of that name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text('#!/bin/bash\necho called "$1"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    dry_run("run_mnist_training.sh", tmp_path / "clone")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHON", "python")
    script = tmp_path / "clone" / "scripts" / "run_mnist_training.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.count("called") == 8


@pytest.mark.parametrize(
    "path", [path for path in SCRIPTS if "common.sh" in path.read_text()], ids=lambda path: path.name
)
def test_help_of_a_script_is_its_own(path):
    """And nothing is installed or run."""
    found = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True, check=True)
    first = path.read_text().splitlines()[1].removeprefix("# ")
    assert found.stdout.startswith(first) and "usage:" not in found.stdout and not found.stderr
