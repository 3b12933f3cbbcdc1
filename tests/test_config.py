"""Presets, flags and their errors, run names, schedules, settings in a file."""

import json
from dataclasses import asdict, fields, replace
from functools import partial

import pytest

from config import PRESETS, Config
from errors import UserError
from evaluations.flags import PgdFlags, parse_flags
from flags import GROUPS, parse_train
from validation import radius, stored_config

MNIST = "--dataset mnist --norm Linf"
MNIST_L2 = "--dataset mnist --norm L2"
MMA = f"{MNIST} --hinge_maxeps 0.45"
CIFAR = "--dataset cifar10 --norm Linf"


def config(flags, *more):
    return parse_train([*flags.split(), *more])[0]


def test_published_settings():
    """The hyper-parameter table of the paper's runs."""
    names = "network optimizer batch_size max_steps nb_iter attack_mineps test_eps test_eps_iter augment"
    table = {
        ("mnist", "Linf"): ("lenet5", "adam", 50, 100_000, 40, 0.1, 0.3, 0.01, False),
        ("mnist", "L2"): ("lenet5", "adam", 50, 100_000, 40, 0.5, 2.0, 0.125, False),
        ("cifar10", "Linf"): ("wrn28_4", "sgd", 128, 50_000, 10, 0.005, 8 / 255, 2 / 255, True),
        ("cifar10", "L2"): ("wrn28_4", "sgd", 128, 50_000, 10, 0.5, 1.0, 0.25, True),
    }
    for key, values in table.items():
        preset = PRESETS[key]
        assert tuple(getattr(preset, name) for name in names.split()) == values
        assert (preset.val_size, preset.num_search_steps, preset.eps_iter_scale, preset.seed) == (5000, 10, 2.5, 0)
        assert (preset.attack_loss_fn, preset.search_loss_fn) == ("slm", "slm")
        assert (preset.clean_loss_fn, preset.margin_loss_fn) == ("xent", "xent")
        assert (preset.method, preset.clean_loss_coeff) == ("mma", 1 / 3)
    assert [PRESETS["mnist", "L2"].lr_at(s) for s in (0, 99_999)] == [1e-4, 1e-4]
    cifar = PRESETS["cifar10", "Linf"]
    assert [cifar.lr_at(s) for s in (0, 19_999, 20_000, 30_000, 39_999, 40_000)] == [0.3, 0.3, 0.09, 0.03, 0.03, 0.009]
    assert (cifar.momentum, cifar.weight_decay) == (0.9, 2e-4)


@pytest.mark.parametrize(
    ("flags", "method", "alpha", "name"),
    [
        (MMA, "mma", 1 / 3, "mnist-Linf-MMA-0.45-sd0"),
        ("--dataset mnist --norm L2 --hinge_maxeps 4 --clean_loss_coeff 0", "omma", 0.0, "mnist-L2-OMMA-4.0-sd0"),
        (f"{MMA} --method omma", "omma", 0.0, "mnist-Linf-OMMA-0.45-sd0"),
        (f"{MNIST} --clean_loss_coeff 1", "std", 1.0, "mnist-Linf-STD-sd0"),
        (f"{MNIST} --method trades", "trades", 1 / 3, "mnist-Linf-TRADES-0.3-sd0"),
        (f"{CIFAR} --hinge_maxeps 32/255 --seed 3", "mma", 1 / 3, "cifar10-Linf-MMA-32-sd3"),
        (f"{CIFAR} --hinge_maxeps 0.1255", "mma", 1 / 3, "cifar10-Linf-MMA-32-sd0"),
        ("--dataset cifar10 --norm L2 --hinge_maxeps 1", "mma", 1 / 3, "cifar10-L2-MMA-1.0-sd0"),
    ],
)
def test_the_method_is_named_when_flags_are_read_and_runs_by_it(flags, method, alpha, name):
    found = config(flags)
    assert (found.method, found.clean_loss_coeff, found.run_name) == (method, alpha, name)


def test_fractions_and_overrides():
    parsed = config(f"{MMA} --clean_loss_coeff 1/4 --lr 0:0.1,50:1e-3 --augment --val_size 100")
    found = parsed.clean_loss_coeff, parsed.lr, parsed.augment, parsed.val_size
    assert found == (0.25, ((0, 0.1), (50, 1e-3)), True, 100)
    assert not config("--dataset cifar10 --norm L2 --hinge_maxeps 1 --no-augment").augment
    for norm in ("linf", "LINF", "L-inf", "l_inf"):
        assert config(f"--dataset MNIST --norm {norm} --hinge_maxeps 0.45") == config(
            "--dataset mnist --norm Linf --hinge_maxeps 0.45"
        )
    assert config(f"{MMA} --max_steps 5 --max_steps 7").max_steps == 7  # scripts append the user's flags


def test_the_end_of_the_search():
    assert config(MMA).search_maxeps == pytest.approx(0.4725)
    assert config("--dataset mnist --norm L2 --clean_loss_coeff 1").search_maxeps == pytest.approx(6.3)
    assert config("--dataset digits --norm L2 --clean_loss_coeff 1").search_maxeps == pytest.approx(1.575)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("", ["--dataset and --norm are missing", "digits", "L2"]),
        ("--norm l2", ["--dataset is missing"]),
        ("--dataset mnist", ["--norm is missing"]),
        ("--dataset mnits --norm L2", ["mnits", "mnist"]),
        (MNIST, ["--hinge_maxeps is missing", "0.45"]),
        (f"{MNIST} --hinge_maxeps 0", ["--hinge_maxeps 0", "above 0"]),
        (f"{MNIST} --hinge_maxeps 2", ["--hinge_maxeps 2", "[0, 1]"]),
        (f"{MNIST} --hinge_maxeps nan", ["nan", "8/255"]),
        (f"{MMA} --hinge_maxesp 1", ["--hinge_maxesp", "--hinge_maxeps"]),
        (f"{MMA} --seed -1", ["--seed", "'-1' is not a whole number from 0 on"]),
        (f"{MMA} --attack_mineps 0.5", ["--attack_mineps 0.5", "0.4725"]),
        (f"{MMA} --clean_loss_coeff 1.5", ["--clean_loss_coeff 1.5"]),
        (f"{MMA} --method mma --clean_loss_coeff 0", ["contradicts --method mma"]),
        (f"{MMA} --search_loss_fn xent", ["search_loss_fn", "slm"]),
        (f"{MMA} --network lenet", ["lenet", "lenet5"]),
        (f"{MMA} --batch_size 0", ["--batch_size 0"]),
        (f"{MMA} --weight_decay -1", ["--weight_decay -1", "negative"]),
        (f"{MMA} --lr 5:0.1", ["--lr", "0:0.3,20000:0.09"]),
        (f"{MMA} --lr -1", ["--lr"]),
        (f"{MMA} --resume yes", ["yes"]),
        (f"{MMA} --recipe fats", ["'fats'", "choose from", "did you mean fast?"]),
        (f"{MMA} --recipe xxxxx", ["choose from"]),
        (f"{MNIST} --method pgd --search secant", ["--search: has no meaning with --method pgd"]),
        (f"{MNIST_L2} --method pgd --ramp_steps 5", ["only with pgdls"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --momentum 0.5", ["only with sgd"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --streaming", ["lives in memory, only image folders stay on disk"]),
        (f"{MNIST_L2} --method pgd --keep_directions", ["--keep_directions: has no meaning with --method pgd"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --refresh_interval 3", ["--refresh_interval: is about warm starts"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --crop_pad 2", ["--crop_pad, --flip: are about augmentation: add --augment"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --no-flip", ["--crop_pad, --flip: are about augmentation: add --augment"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --cycle_steps 30", ["--cycle_steps: is the length of the one-cycle rate"]),
        (f"{MNIST_L2} --hinge_maxeps 2 --one_cycle --lr 0:0.1,5:0.01", ["--lr: with --one_cycle it is the highest"]),
    ],
)
def test_wrong_flags_are_one_line(flags, parts):
    with pytest.raises(UserError) as error:
        config(flags)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


@pytest.mark.parametrize("flags", ["", "--model x --eps a", "--model x --nb_iter 0", "--model", "--modle x"])
def test_wrong_evaluation_flags(flags):
    with pytest.raises(UserError):
        parse_flags(PgdFlags, flags.split())


def test_radii():
    assert parse_flags(PgdFlags, ["--model", "x", "--eps", "0.1", "8/255"]).eps == (0.1, 8 / 255)
    value, notes = radius(8, "cifar10", "Linf", "eps")
    assert value == 8 / 255 and "8/255" in notes[0]
    assert radius(8, "cifar10", "L2", "eps") == (8, []) and radius(1.0, "mnist", "Linf", "eps") == (1.0, [])
    assert radius(1e-9, "mnist", "Linf", "eps_iter") == (1e-9, [])
    for dataset, norm, value in (
        *(("mnist", "Linf", 8), ("imagefolder", "Linf", 8), ("cifar10", "Linf", 256)),
        *(("mnist", "Linf", 1e-9), ("mnist", "L2", 1e-9), ("mnist", "L2", 1e5), ("mnist", "L2", 0)),
    ):
        with pytest.raises(UserError, match="--eps "):
            radius(value, dataset, norm, "eps")
    parsed, notes = parse_train(f"{CIFAR} --hinge_maxeps 32 --test_eps 8 --test_eps_iter 2".split())
    assert (parsed.hinge_maxeps, parsed.test_eps, parsed.test_eps_iter) == (32 / 255, 8 / 255, 2 / 255)
    assert len(notes) == 3


def test_configs_survive_json():
    for parsed in (config(f"{MMA} --lr 0:0.1,7:0.01"), config("--dataset imagefolder --norm L2 --hinge_maxeps 2")):
        assert stored_config(json.loads(json.dumps(asdict(parsed)))) == parsed
    older = {k: v for k, v in asdict(config(MMA)).items() if k not in ("eval_batch_size", "recipe", "search")}
    assert stored_config({**older, "method": None, "environment": {}}) == config(MMA)
    assert stored_config({**older, "method": None, "clean_loss_coeff": 1.0}).method == "std"
    for broken in ({}, {"dataset": "mnist"}):  # wrong values: see test_bad_input.py
        with pytest.raises(UserError):
            stored_config(broken)


def test_every_field_says_what_it_is_and_stands_in_one_group():
    for cls in (Config, PgdFlags):
        assert all(len(f.metadata["help"]) > 3 for f in fields(cls))
    named = [name for names in GROUPS.values() for name in names.split()]
    flags = {f.name for f in fields(Config) if f.metadata["flag"]}
    assert len(named) == len(set(named)) and flags <= set(named)
    assert all(f.metadata["of_run"] for f in fields(Config) if not f.metadata["flag"])


# --- --config FILE ---------------------------------------------------------------------------------------------------


def test_a_toml_file_beside_flags(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'dataset = "cifar10"\nnorm = "Linf"\nhinge_maxeps = "32/255"\nlr = "0:0.1,7:1e-3"\naugment = false\nseed = 3\n'
        "weight_decay = 5e-4\n"
    )
    flags = f"{CIFAR} --hinge_maxeps 32/255 --lr 0:0.1,7:1e-3 --no-augment --seed 4 --weight_decay 5e-4"
    assert config("", "--config", str(file), "--seed", "4") == config(flags)
    assert config("--seed 4 --augment", f"--config={file}").augment


def test_what_a_toml_file_says_counts_as_if_typed(tmp_path):
    """Also where it says what the preset would: then beside a recipe, another norm or another data set."""
    file = tmp_path / "mine.toml"
    numbers = "nb_iter = 40\nmax_steps = 100_000\nattack_mineps = 0.1\nhinge_maxeps = 0.45\n"
    file.write_text(f'dataset = "mnist"\nnorm = "Linf"\n{numbers}')
    typed = "--nb_iter 40 --max_steps 100000 --attack_mineps 0.1 --hinge_maxeps 0.45"
    for beside in ("--recipe fast", "--norm L2", "--dataset digits"):
        assert config(beside, f"--config={file}") == config(f"{MNIST} {typed} {beside}")
    assert config("--method pgd", f"--config={file}").method == "pgd"


def test_flags_that_turn_something_off_drop_what_a_file_says_of_it(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'dataset = "cifar10"\nnorm = "Linf"\nhinge_maxeps = 0.1\naugment = true\ncrop_pad = 2\none_cycle = true\n'
        "cycle_steps = 50\nmomentum = 0.8\nkeep_directions = true\nrefresh_interval = 4\nsearch = 'secant'\nnum_search_steps = 3\n"
    )
    for flags in ("--no-augment", "--no-one_cycle", "--optimizer adam", "--no-keep_directions", "--method pgd"):
        assert config(flags, f"--config={file}") is not None
    for flags in ("--search bisection", "--method std", "--method pgd"):  # passes of a secant search are no halvings
        found = config(flags, f"--config={file}")
        assert (found.search, found.num_search_steps) == ("bisection", 10)
    assert config("--seed 1", f"--config={file}").num_search_steps == 3
    file.write_text('dataset = "mnist"\nnorm = "Linf"\nhinge_maxeps = 0.45\nnum_search_steps = 12\n')
    assert config("--search bisection", f"--config={file}").num_search_steps == 12


def test_empty_text_is_no_value(tmp_path):
    for name in ("pretrained", "savepath", "data_root", "network", "dataset"):
        with pytest.raises(UserError, match=f"--{name}"):
            config(MMA, f"--{name}=")
    (tmp_path / "a.toml").write_text('pretrained = ""\n')
    with pytest.raises(UserError, match="--pretrained: is empty"):
        config(MMA, "--config", str(tmp_path / "a.toml"))


def test_a_run_older_than_a_setting_is_made_again_as_it_was(tmp_path):
    stored = {**config(f"{MNIST} --method std --recipe fast").to_dict(), "environment": {}}
    del stored["best_by"], stored["step_decay"], stored["odi_steps"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert config("", "--config", str(tmp_path)).best_by == stored_config(stored).best_by == "mean_margin"


def test_the_recipe_takes_a_folder_of_few_test_images():
    assert config("--dataset imagefolder --norm Linf --hinge_maxeps 0.1 --recipe fast").test_size is None


@pytest.mark.parametrize(
    "flags",
    [
        f"{MMA} --lr 0:0.1,7:0.01 --seed 3 --attack_mineps 1/255",
        f"{MNIST} --method omma --hinge_maxeps 0.3",
        f"{MNIST} --method std",
        f"{MNIST} --method trades --trades_beta 4",
        f"{CIFAR} --method pgdls --train_eps 24/255",
        f"{CIFAR} --hinge_maxeps 20/255 --recipe fast",
        "--dataset imagefolder --norm L2 --hinge_maxeps 2 --no-augment",
    ],
)
def test_the_same_again_with_another_seed(tmp_path, flags):
    """Less what does not matter to the result of that run: where its files were, how it was shown and run."""
    of_run = {"savepath": "there", "data_root": "elsewhere", "device": "cuda", "tensorboard": True, "quiet": True}
    changed = replace(config(flags), **of_run).to_dict()
    stored = {**changed, "max_minutes": 3.0, "average_decay": None, "environment": {"torch": "2"}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for name in (tmp_path, tmp_path / "config.json"):
        again = config("", "--config", str(name), "--seed", "7")
        assert again == replace(config(flags, "--seed", "7"), by_images=()), "a folder of any size changes nothing"
    for method in ("mma", "std", "pgd", "pgdls"):  # another method drops what was the old one's
        other = config("--hinge_maxeps 0.6 --recipe paper", "--config", str(tmp_path), "--method", method)
        assert other.method == method
    if "pgdls" in flags:
        assert config("", "--config", str(tmp_path), "--max_steps", "100").ramp_steps == 50


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.toml", "hinge_maxesp = 1", ["unknown name hinge_maxesp", "did you mean hinge_maxeps?"]),
        ("a.toml", "seed = 'x'", ["--seed", "'x'"]),
        ("a.toml", "seed = true", ["seed = True", "switches"]),
        ("a.toml", "augment = 1", ["augment = 1", "switches"]),
        ("a.toml", "seed = ", ["damaged"]),
        ("a.toml", "\xff", ["damaged"]),
        ("a.json", "[1]", ["holds no settings but a list"]),
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
        config("", "--config", str(tmp_path / name), *MMA.split())
    for part in [name, *parts]:
        assert part in str(error.value), str(error.value)


# --- --help ----------------------------------------------------------------------------------------------------------


def test_help_shows_groups_and_the_presets_values(capsys):
    def shown(*flags, parse=parse_train):
        with pytest.raises(SystemExit) as stop:
            parse([*flags, "--help"])
        assert stop.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    text = shown("--dataset", "cifar10", "--norm=Linf")
    assert "(cifar10 Linf: 0:0.3,20000:0.09,30000:0.03,40000:0.009)" in text and "(cifar10 Linf: wrn28_4)" in text
    assert "(MNIST Linf: 0:0.0001)" in shown() and "--norm" in shown(parse=partial(parse_flags, PgdFlags))
    where = [text.index(f" {group}: --") for group in ("data", "method", "attack", "optimisation", "check", "run")]
    assert where == sorted(where)
