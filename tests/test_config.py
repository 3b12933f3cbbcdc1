"""Presets, flags and their errors, run names, schedules."""

import json
from dataclasses import asdict, fields

import pytest

from config import PRESETS, Config
from errors import UserError
from evaluations.flags import PgdFlags, eval_step_size, parse_pgd
from flags import GROUPS, parse_train
from validation import radius, stored_config

MNIST = ["--dataset", "mnist", "--norm", "Linf"]
MMA = [*MNIST, "--hinge_maxeps", "0.45"]


def config(*flags):
    return parse_train(list(flags))[0]


def test_published_settings():
    """The hyper-parameter table of the paper's runs."""
    table = {
        ("mnist", "Linf"): ("lenet5", "adam", 50, 100_000, 40, 0.1, 0.3, 0.01, False),
        ("mnist", "L2"): ("lenet5", "adam", 50, 100_000, 40, 0.5, 2.0, 0.125, False),
        ("cifar10", "Linf"): ("wrn28_4", "sgd", 128, 50_000, 10, 0.005, 8 / 255, 2 / 255, True),
        ("cifar10", "L2"): ("wrn28_4", "sgd", 128, 50_000, 10, 0.5, 1.0, 0.25, True),
    }
    names = (
        "network",
        "optimizer",
        "batch_size",
        "max_steps",
        "nb_iter",
        "attack_mineps",
        "test_eps",
        "test_eps_iter",
        "augment",
    )
    for key, values in table.items():
        preset = PRESETS[key]
        assert tuple(getattr(preset, name) for name in names) == values
        assert (preset.val_size, preset.num_search_steps, preset.eps_iter_scale, preset.seed) == (5000, 10, 2.5, 0)
        assert (preset.attack_loss_fn, preset.search_loss_fn, preset.clean_loss_fn, preset.margin_loss_fn) == (
            "slm",
            "slm",
            "xent",
            "xent",
        )
        assert preset.clean_loss_coeff == 1 / 3
    assert [PRESETS["mnist", "L2"].lr_at(s) for s in (0, 99_999)] == [1e-4, 1e-4]
    cifar = PRESETS["cifar10", "Linf"]
    assert [cifar.lr_at(s) for s in (0, 19_999, 20_000, 30_000, 39_999, 40_000)] == [0.3, 0.3, 0.09, 0.03, 0.03, 0.009]
    assert (cifar.momentum, cifar.weight_decay) == (0.9, 2e-4)


def test_evaluation_steps():
    assert eval_step_size("mnist", "Linf", 0.3) == 0.3 / 40
    assert eval_step_size("mnist", "L2", 2.0) == 0.5
    assert eval_step_size("cifar10", "Linf", 8 / 255) == 2 / 255


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (MMA, "mnist-Linf-MMA-0.45-sd0"),
        (
            ["--dataset", "mnist", "--norm", "L2", "--hinge_maxeps", "4", "--clean_loss_coeff", "0"],
            "mnist-L2-OMMA-4.0-sd0",
        ),
        (
            ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "32/255", "--seed", "3"],
            "cifar10-Linf-MMA-32-sd3",
        ),
        (["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "0.1255"], "cifar10-Linf-MMA-32-sd0"),
        (["--dataset", "cifar10", "--norm", "L2", "--hinge_maxeps", "1"], "cifar10-L2-MMA-1.0-sd0"),
        ([*MNIST, "--clean_loss_coeff", "1"], "mnist-Linf-STD-sd0"),
    ],
)
def test_run_names(flags, name):
    assert config(*flags).run_name == name


def test_fractions_and_overrides():
    parsed = config(*MMA, "--clean_loss_coeff", "1/4", "--lr", "0:0.1,50:1e-3", "--augment", "--val_size", "100")
    assert (parsed.clean_loss_coeff, parsed.lr, parsed.augment, parsed.val_size) == (
        0.25,
        ((0, 0.1), (50, 1e-3)),
        True,
        100,
    )
    assert not config("--dataset", "cifar10", "--norm", "L2", "--hinge_maxeps", "1", "--no-augment").augment
    assert config(*MMA, "--max_steps", "5", "--max_steps", "7").max_steps == 7  # scripts append the user's flags


def test_the_end_of_the_search():
    assert config(*MMA).search_maxeps == pytest.approx(0.4725)
    assert config("--dataset", "mnist", "--norm", "L2", "--clean_loss_coeff", "1").search_maxeps == pytest.approx(6.3)
    assert config("--dataset", "digits", "--norm", "L2", "--clean_loss_coeff", "1").search_maxeps == pytest.approx(
        1.575
    )


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["--dataset is missing"]),
        (["--dataset", "mnist"], ["--norm is missing"]),
        (["--dataset", "mnits", "--norm", "L2"], ["mnits", "mnist"]),
        (MNIST, ["--hinge_maxeps is missing", "0.45"]),
        ([*MNIST, "--hinge_maxeps", "0"], ["--hinge_maxeps 0", "above 0"]),
        ([*MNIST, "--hinge_maxeps", "-0.1"], ["--hinge_maxeps -0.1"]),
        ([*MNIST, "--hinge_maxeps", "2"], ["--hinge_maxeps 2", "[0, 1]"]),
        ([*MNIST, "--hinge_maxeps", "nan"], ["nan", "8/255"]),
        ([*MNIST, "--hinge_maxeps", "1/0"], ["1/0"]),
        ([*MMA, "--hinge_maxesp", "1"], ["--hinge_maxesp", "--hinge_maxeps"]),
        ([*MMA, "--seed", "x"], ["--seed", "'x'"]),
        ([*MMA, "--seed", "-1"], ["--seed"]),
        ([*MMA, "--attack_mineps", "0.5"], ["--attack_mineps 0.5", "0.4725"]),
        ([*MMA, "--clean_loss_coeff", "1.5"], ["--clean_loss_coeff 1.5"]),
        ([*MMA, "--search_loss_fn", "xent"], ["search_loss_fn", "slm"]),
        ([*MMA, "--network", "lenet"], ["lenet", "lenet5"]),
        ([*MMA, "--batch_size", "0"], ["--batch_size 0"]),
        ([*MMA, "--lr", "5:0.1"], ["--lr", "0:0.3,20000:0.09"]),
        ([*MMA, "--lr", "-1"], ["--lr"]),
        ([*MMA, "--resume", "yes"], ["yes"]),
    ],
)
def test_wrong_flags_are_one_line(flags, parts):
    with pytest.raises(UserError) as error:
        parse_train(flags)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "flags", [[], ["--model", "x", "--eps", "a"], ["--model", "x", "--nb_iter", "0"], ["--model"], ["--modle", "x"]]
)
def test_wrong_evaluation_flags(flags):
    with pytest.raises(UserError):
        parse_pgd(flags)


def test_several_radii():
    assert parse_pgd(["--model", "x", "--eps", "0.1", "8/255"]).eps == (0.1, 8 / 255)


def test_an_eps_above_one():
    value, notes = radius(8, "cifar10", "Linf", "eps")
    assert value == 8 / 255 and "8/255" in notes[0]
    assert radius(8, "cifar10", "L2", "eps") == (8, []) and radius(1.0, "mnist", "Linf", "eps") == (1.0, [])
    for dataset, value in (("mnist", 8), ("imagefolder", 8), ("cifar10", 256)):
        with pytest.raises(UserError, match="Linf radius above 1"):
            radius(value, dataset, "Linf", "eps")


def test_steps_in_255ths():
    parsed, notes = parse_train(
        ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "32", "--test_eps", "8", "--test_eps_iter", "2"]
    )
    assert (parsed.hinge_maxeps, parsed.test_eps, parsed.test_eps_iter) == (32 / 255, 8 / 255, 2 / 255) and len(
        notes
    ) == 3


def test_configs_survive_json():
    for parsed in (
        config(*MMA, "--lr", "0:0.1,7:0.01"),
        config("--dataset", "imagefolder", "--norm", "L2", "--hinge_maxeps", "2"),
    ):
        assert stored_config(json.loads(json.dumps(asdict(parsed)))) == parsed
    older = {k: v for k, v in asdict(config(*MMA)).items() if k != "eval_batch_size"}
    assert stored_config({**older, "environment": {}}) == config(*MMA)
    for broken in (
        {},
        {"dataset": "mnist"},
        {**older, "lr": 3},
        {**older, "batch_size": "many"},
        {**older, "norm": []},
    ):
        with pytest.raises(UserError):
            stored_config(broken)


def test_every_field_says_what_it_is():
    for cls in (Config, PgdFlags):
        assert all(len(f.metadata["help"]) > 3 for f in fields(cls))


def test_help_exits_without_an_error(capsys):
    for parse in (parse_train, parse_pgd):
        with pytest.raises(SystemExit) as stop:
            parse(["--help"])
        assert stop.value.code == 0
        assert "--norm" in capsys.readouterr().out


# --- --config FILE ---------------------------------------------------------------------------------------------------


def test_a_toml_file_beside_flags(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'dataset = "cifar10"\nnorm = "Linf"\nhinge_maxeps = "32/255"\nlr = "0:0.1,7:1e-3"\naugment = false\nseed = 3\n'
        "weight_decay = 5e-4\n"
    )
    found = config("--config", str(file), "--seed", "4")
    flags = ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "32/255", "--lr", "0:0.1,7:1e-3"]
    assert found == config(*flags, "--no-augment", "--seed", "4", "--weight_decay", "5e-4")
    assert config("--seed", "4", "--augment", f"--config={file}").augment


@pytest.mark.parametrize(
    "flags",
    [
        [*MMA, "--lr", "0:0.1,7:0.01", "--seed", "3", "--attack_mineps", "1/255"],
        [*MNIST, "--method", "omma", "--hinge_maxeps", "0.3"],
        [*MNIST, "--method", "std"],
        [*MNIST, "--method", "trades", "--trades_beta", "4"],
        ["--dataset", "cifar10", "--norm", "Linf", "--method", "pgdls", "--train_eps", "24/255"],
        ["--dataset", "cifar10", "--norm", "Linf", "--hinge_maxeps", "20/255", "--recipe", "fast"],
        ["--dataset", "imagefolder", "--norm", "L2", "--hinge_maxeps", "2", "--no-augment", "--tensorboard"],
    ],
)
def test_the_same_again_with_another_seed(tmp_path, flags):
    first = config(*flags)
    of_that_run = {
        "savepath": "there",
        "resume": True,
        "max_minutes": 3.0,
        "quiet": True,
        "environment": {"torch": "2"},
    }
    stored = {**first.to_dict(), **of_that_run}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for name in (tmp_path, tmp_path / "config.json"):
        again = config("--config", str(name), "--seed", "7")
        assert again == config(*flags, "--seed", "7")
        assert again.savepath is None and not again.resume
    for method in ("mma", "std", "pgd", "pgdls"):  # another method drops what was the old one's
        other = config("--config", str(tmp_path), "--method", method, "--hinge_maxeps", "0.6", "--recipe", "paper")
        assert other.method == method
    if "pgdls" in flags:
        assert config("--config", str(tmp_path), "--max_steps", "100").ramp_steps == 50


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.toml", "hinge_maxesp = 1", ["unknown name hinge_maxesp", "did you mean hinge_maxeps?"]),
        ("a.toml", "seed = 'x'", ["--seed", "'x'"]),
        ("a.toml", "seed = true", ["seed = True", "switches"]),
        ("a.toml", "augment = 1", ["augment = 1", "switches"]),
        ("a.toml", "[seed]\na = 1", ["--seed"]),
        ("a.toml", "seed = [1, 2]", ["--seed"]),
        ("a.toml", "seed = ", ["damaged"]),
        ("a.toml", "\xff", ["damaged"]),
        ("a.json", "[1]", ["holds no settings but a list"]),
        ("a.json", '{"seed": 1', ["damaged"]),
        ("a.json", "[" * 100_000, ["damaged"]),
        ("a.json", '{"config": "b.toml"}', ["unknown name config"]),
        ("a.json", '{"lr": [[0, 1], 3]}', ["--lr"]),
        ("a.json", '{"dataset": ["mnist"]}', ["--dataset"]),
        ("missing.toml", None, ["cannot be read", "No such file"]),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin1"))
    with pytest.raises(UserError) as error:
        config("--config", str(tmp_path / name), *MMA)
    for part in [name, *parts]:
        assert part in str(error.value), str(error.value)


# --- --help ----------------------------------------------------------------------------------------------------------


def test_help_shows_groups_and_the_presets_values(capsys):
    def shown(*flags):
        with pytest.raises(SystemExit):
            parse_train([*flags, "--help"])
        return " ".join(capsys.readouterr().out.split())

    text = shown("--dataset", "cifar10", "--norm=Linf")
    assert "(cifar10 Linf: 0:0.3,20000:0.09,30000:0.03,40000:0.009)" in text and "(cifar10 Linf: wrn28_4)" in text
    assert "(MNIST Linf: 0:0.0001)" in shown()
    where = [text.index(f" {group}: --") for group in ("data", "method", "attack", "optimisation", "check", "run")]
    assert where == sorted(where)


def test_every_flag_is_in_one_group():
    from evaluate_on_autoattack import AutoAttackFlags
    from evaluate_on_gradient_free_attacks import GradientFreeFlags
    from evaluate_on_minimum_norm import MinimumNormFlags
    from evaluate_on_transfer import TransferFlags

    named = [name for names in GROUPS.values() for name in names.split()]
    assert len(named) == len(set(named))
    classes = (Config, PgdFlags, AutoAttackFlags, GradientFreeFlags, MinimumNormFlags, TransferFlags)
    assert {f.name for cls in classes for f in fields(cls)} == set(named)
