"""Random damage and random command lines: a UserError or a good answer, never anything else, and no file changed.

The same draws every time, so that a failure elsewhere is a failure here.
"""

import contextlib
import functools
import io
import json
import math
import shlex
import string
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import evaluate_on_transfer as transfer
import flags
import train
from config import LARGEST, Config
from errors import UserError
from evaluations import flags as evaluation_flags
from evaluations.flags import PgdFlags, parse_pgd
from flags import parse_train
from records import checkpoint, resume
from records.checkpoint import STATE_KEYS
from records.run_folder import RunFolder
from reports import plots
from validation import radius, stored_config

often = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=10_000,
    print_blob=False,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def state(step):
    """A small state of a run."""
    weights = torch.arange(300.0).reshape(30, 10) + step
    return {
        "step": step,
        "checked_step": 0,
        "epoch": 1,
        "model": {"w": weights, "b": torch.zeros(3)},
        "optimizer": {"state": {}},
        "eps": torch.rand(40, generator=torch.Generator().manual_seed(step)),
        "best_margin": 0.1,
        "sums": [0.0] * 5,
        "config": {"lr": ((0, 0.1),), "dataset": "digits"},
    }


@st.composite
def damage(draw):
    """What to do with the bytes of a file."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "flips", "zeros", "append", "empty", "html"]))
    place = st.floats(0, 1, exclude_max=True)
    places = draw(st.lists(place, min_size=1, max_size=1 if kind != "flips" else 20))
    bit = draw(st.integers(0, 7))
    length = draw(st.integers(1, 600))

    def apply(raw):
        raw = bytearray(raw)
        at = [int(p * len(raw)) for p in places]
        if kind == "cut":
            return bytes(raw[: at[0]])
        if kind in ("flip", "flips"):
            for i in at:
                raw[i] ^= 1 << bit
        elif kind == "zeros":
            raw[at[0] : at[0] + length] = bytes(len(raw[at[0] : at[0] + length]))
        elif kind == "append":
            raw += bytes(length)
        return {"empty": b"", "html": b"<html><body>404 Not Found</body></html>"}.get(kind, bytes(raw))

    return apply


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two saves of a run, and their bytes."""
    folder = RunFolder(tmp_path_factory.mktemp("fuzz"))
    checkpoint.save(folder.last, state(1))
    checkpoint.save(folder.last, state(2), previous=folder.previous)
    return folder, folder.last.read_bytes(), folder.previous.read_bytes()


@often
@given(damage())
def test_a_damaged_checkpoint_is_refused_or_unharmed(saved, change):
    folder, raw, _ = saved
    path = folder.path / "named.pt"
    path.write_bytes(change(raw))
    try:
        found = checkpoint.load(path, needed=STATE_KEYS)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert checkpoint.digest(found) == checkpoint.digest(state(2))
    with contextlib.suppress(UserError):  # as a model file, which needs no checksum of ours
        checkpoint.load_model_file(str(path))


@often
@given(damage(), st.none() | damage())
def test_resume_takes_the_last_good_save(saved, change, change_previous):
    """last.pt damaged: the one before it, with a warning; that one damaged too: one line."""
    folder, raw, previous = saved
    (folder.path / "last.damaged.pt").unlink(missing_ok=True)
    folder.last.write_bytes(change(raw))
    folder.previous.write_bytes(change_previous(previous) if change_previous else previous)
    said = io.StringIO()
    try:
        found = resume.usable_state(folder, lambda line: print(line, file=said))
    except UserError as error:
        assert change_previous is not None and str(folder.last) in str(error)
    else:
        assert checkpoint.digest(found) in (checkpoint.digest(state(1)), checkpoint.digest(state(2)))
        fell_back = found["step"] == 1
        assert (
            fell_back == said.getvalue().startswith("warning: checkpoint") == (folder.path / "last.damaged.pt").exists()
        )


# --- command lines -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def quick_parser():
    """The parser made once for each program: making it is what takes the time, and parsing leaves it as it is."""
    made = functools.lru_cache(flags.build_parser)
    with pytest.MonkeyPatch.context() as patched:
        for module in (flags, evaluation_flags):
            patched.setattr(module, "build_parser", made)
        yield


NUMBERS = [
    "1e999",
    "-1e999",
    "nan",
    "-nan",
    "inf",
    "-0",
    "0",
    "-0.0",
    "8/0",
    "0/0",
    "8/255",
    "1/3",
    "-3",
    "1e-999",
    "1e308",
    "-1e308",
    "1e39",
    "1e-320",
    "5e-324",
    "0.3",
    "1.5",
    "10",
    "255",
    "256",
    "99999",
    "999999999999999",
    "1" + "0" * 15,
    "9" * 400,
    "0x10",
    "1_0",
    "१२",
    "٣",
    "1e",
    "1/2/3",
    "1 ",
    " 1",
    "+1",
    "½",
    "∞",
    "1,5",
    "0:0.1,5:0.01",
    "5:1",
    "0:0",
    "0:1,0:2",
    "0:nan",
    ":",
    ",",
]
WORDS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "\ud800",
    "é",
    "🦊",
    "~",
    "~nobody_of_that_name",
    "/",
    "..",
    "-",
    "--",
    "x" * 5000,
    "/dev/null",
    "/nowhere/x",
    "grid",
    "Linf",
    "L2",
    "linf",
    "mnist",
    "digits",
    "auto",
    "cpu",
    "cuda:99999999999999999999",
    "cpu:-1",
    "cuda:x",
    "meta",
    "mps",
    "lenet5",
    "os:system:x",
    "os",
    ":",
    "no.module:net",
    "a:",
    "%s",
    "%(prog)s",
    "{}",
    "cw,ddn",
    ",",
    "fmn,fmn",
    "square",
]


def flags_of(names):
    """Command lines of these flags, with values that fit, that do not, and misspelt flags."""
    flag = st.sampled_from([f"--{name}" for name in names])
    misspelt = st.builds(
        lambda f, i, c: f[:i] + c + f[i + 1 :],
        flag,
        st.integers(0, 12),
        st.sampled_from([*string.printable[:64], "é", "\0"]),
    )
    value = (
        st.sampled_from(NUMBERS)
        | st.sampled_from(WORDS)
        | st.text(max_size=8)
        | st.floats().map(str)
        | st.integers().map(str)
    )
    pair = st.tuples(flag | flag | flag | misspelt, value).map(list) | st.tuples(flag, value).map(
        lambda p: ["=".join(p)]
    )
    part = pair | flag.map(lambda f: [f]) | value.map(lambda v: [v])
    return st.lists(part, max_size=5).map(lambda parts: [word for words in parts for word in words])


def fields(*classes):
    return sorted({name for cls in classes for name in cls.__dataclass_fields__})


def is_sound(config):
    numbers = [value for value in vars(config).values() if isinstance(value, int | float)]
    return all(math.isfinite(value) and abs(value) <= LARGEST for value in numbers)


BASE = ["--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "0.3"]


@often
@given(st.booleans(), flags_of(fields(Config)))
def test_training_flags_parse_or_are_refused(whole, argv):
    try:
        config, notes = parse_train([*(BASE if whole else []), *argv])
    except UserError as error:
        assert str(error)
    else:
        assert is_sound(config) and stored_config(config.to_dict()) == config
        assert all(isinstance(note, str) for note in notes) and config.run_name


@often
@given(flags_of(fields(PgdFlags)))
def test_evaluation_flags_parse_or_are_refused(argv):
    with contextlib.suppress(UserError):
        assert is_sound(parse_pgd(["--model", "nowhere", *argv]))


SHARDS = (
    evaluate_on_autoattack.AutoAttackFlags,
    evaluate_on_gradient_free_attacks.GradientFreeFlags,
    evaluate_on_minimum_norm.MinimumNormFlags,
)


@often
@given(
    flags_of(fields(*SHARDS)),
    st.sampled_from([evaluate_on_autoattack, evaluate_on_gradient_free_attacks, evaluate_on_minimum_norm]),
)
def test_flags_of_the_other_evaluations_parse_or_are_refused(argv, program):
    with contextlib.suppress(UserError):
        assert is_sound(program.parse(["--model", "nowhere", *argv]))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# Programs, what makes each fail at the latest before it could begin, and the flags to draw from.
PROGRAMS = {
    "train": (train, [*BASE, "--train_size", "999999"], fields(Config)),
    "pretrained": (
        train,
        [*BASE, "--max_steps", "1", "--train_size", "60"],
        [n for n in fields(Config) if n != "pretrained"],
    ),
    "pgd": (evaluate_on_pgd_attacks, ["--model", "nowhere"], fields(PgdFlags)),
    "autoattack": (evaluate_on_autoattack, ["--model", "nowhere"], fields(SHARDS[0])),
    "gradient_free": (evaluate_on_gradient_free_attacks, ["--model", "nowhere"], fields(SHARDS[1])),
    "minimum_norm": (evaluate_on_minimum_norm, ["--model", "nowhere"], fields(SHARDS[2])),
    "transfer": (transfer, ["nowhere", "elsewhere"], fields(transfer.TransferFlags)),
    "plots examples": (
        plots,
        ["examples", "nowhere"],
        ["count", "max_eps", "out", "data_root", "dataset", "norm", "network"],
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_commands_end_in_one_line_and_change_nothing(name, tmp_path, monkeypatch):
    program, base, names = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}")
    (tmp_path / "x.pt").write_bytes(b"x")
    before = contents(tmp_path)
    # A flag that would make it succeed, download or write elsewhere is the last one's to decide.
    last = {
        "train": ["--train_size", "999999", "--data_root", "nowhere", "--savepath", "new"],
        "pretrained": shlex.split(
            "--pretrained nowhere --savepath new --data_root nowhere --dataset digits --network lenet5"
        ),
    }.get(name, [])

    @settings(often, max_examples=60, deadline=20_000)
    @given(flags_of(names))
    def tried(argv):
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = program.main([*base, *argv, *last])
        except SystemExit as error:  # --help
            assert error.code == 0 and "usage" in out.getvalue()
            return
        assert status == 2, (status, err.getvalue())
        assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1, err.getvalue()
        assert contents(tmp_path) == before

    tried()
    assert not Path("new").exists()


PARSERS = {
    "train": (lambda argv: parse_train([*BASE, *argv])[0], Config),
    "train L2": (lambda argv: parse_train([*BASE, "--norm", "L2", "--hinge_maxeps", "1", *argv])[0], Config),
    "pgd": (lambda argv: parse_pgd(["--model", "nowhere", *argv]), PgdFlags),
    "autoattack": (lambda argv: evaluate_on_autoattack.parse(["--model", "nowhere", *argv]), SHARDS[0]),
    "gradient_free": (lambda argv: evaluate_on_gradient_free_attacks.parse(["--model", "nowhere", *argv]), SHARDS[1]),
    "minimum_norm": (lambda argv: evaluate_on_minimum_norm.parse(["--model", "nowhere", *argv]), SHARDS[2]),
}


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_with_every_odd_value(name):
    """Not by chance: with all of them."""
    parse, cls = PARSERS[name]
    refused = 0
    for field in fields(cls):
        for value in (*NUMBERS, *WORDS):
            try:
                config = parse([f"--{field}={value}"])
            except UserError:
                refused += 1
                continue
            assert is_sound(config), (field, value)
            if cls is Config:
                config.run_name.encode()
                assert stored_config(json.loads(json.dumps(config.to_dict()))) == config
    assert refused > 500


@pytest.mark.parametrize(
    "argv",
    [
        ["--data_root", "~nobody_of_that_name"],
        ["--lr", "1e30"],
        ["--device", "cuda:99999999999999999999"],
        ["--savepath", "x" * 5000],
        ["--savepath", "a\0b"],
        ["--savepath", "\ud800"],
        ["--savepath", "file/x"],
        ["--pretrained", "x" * 5000],
    ],
    ids=lambda argv: str(argv)[:40],
)
def test_odd_values_that_parse_end_in_one_line_later(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    small = shlex.split("--device cpu --train_size 60 --val_size 20 --test_size 0 --nb_iter 1 --max_steps 6")
    status = train.main([*BASE, *small, "--savepath", "new", *argv])
    error = [line for line in capsys.readouterr().err.splitlines() if "step/s" not in line and line]
    assert status in (2, 3) and error[-1].startswith("error: ")
    if status == 2:
        assert len(error) == 1 and [path.name for path in tmp_path.iterdir()] == ["file"]


ABSURD = {
    "--hinge_maxeps": ["0", "-1", "1e-30", "2"],
    "--test_eps": ["1.5", "0"],
    "--attack_mineps": ["5"],
    "--batch_size": ["0", "-1", "1.5", "9" * 30],
    "--seed": ["-1", "9" * 19],
    "--num_search_steps": ["0", "1000000"],
    "--lr": ["0", "-1", "1e39"],
    "--momentum": ["-1"],
    "--clean_loss_coeff": ["2", "-0.1"],
    "--network": ["lenet6"],
    "--method": ["mmaa"],
    "--optimizer": ["adamw"],
    "--dataset": ["mnits"],
    "--norm": ["linf"],
    "--max_steps": ["0"],
    "--eval_batch_size": ["0"],
    "--save_interval": ["0"],
    "--test_eps_iter": ["0"],
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in ABSURD.items() for value in values])
def test_absurd_values_are_refused_by_name(flag, value):
    with pytest.raises(UserError, match=flag):
        parse_train([*BASE, flag, value])


@pytest.mark.parametrize("argv", [["--norm", "L2", "--test_eps", "1e5"], ["--norm", "L2", "--hinge_maxeps", "1e30"]])
def test_absurd_l2_radii_are_refused(argv):
    with pytest.raises(UserError, match="so far apart"):
        parse_train([*BASE, *argv])


@pytest.mark.parametrize(
    ("value", "norm", "flag"), [(1e-9, "Linf", "eps"), (1e-9, "L2", "eps"), (1e5, "L2", "eps"), (1e5, "L2", "eps_iter")]
)
def test_absurd_radii_of_an_evaluation_are_refused(value, norm, flag):
    with pytest.raises(UserError, match=f"--{flag} "):
        radius(value, "mnist", norm, flag)
    assert radius(1e-9, "mnist", norm, "eps_iter") == (1e-9, [])
