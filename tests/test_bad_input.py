"""Bad input to every command: one line, status 2, no file changed, and nothing in a file is ever run.

The same random draws every time, so that a failure elsewhere is a failure here.
"""

import contextlib
import functools
import io
import json
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import evaluate_on_transfer
import flags
import train
from command_lines import SMALL, fails, files
from config import LARGEST, Config
from errors import UserError
from evaluations import flags as evaluation_flags
from evaluations.flags import PgdFlags
from flags import parse_train
from records import checkpoint
from records.checkpoint import STATE_KEYS
from reports import plots
from validation import stored_config

EVALUATORS = {
    evaluate_on_pgd_attacks: PgdFlags,
    evaluate_on_autoattack: evaluate_on_autoattack.AutoAttackFlags,
    evaluate_on_gradient_free_attacks: evaluate_on_gradient_free_attacks.GradientFreeFlags,
    evaluate_on_minimum_norm: evaluate_on_minimum_norm.MinimumNormFlags,
}
SHORT = [*SMALL, "--train_size", "60", "--max_steps", "2"]
RESUME = [*SHORT, "--max_steps", "3", "--resume", "--savepath", "run"]
ATTACK = ["--device", "cpu", "--test_size", "20", "--nb_iter", "2", "--nb_restart", "1"]
PGD = ["--model", "run", *ATTACK]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps with an evaluation, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main([*SHORT, "--savepath", str(folder)]) == 0
    assert evaluate_on_pgd_attacks.main(["--model", str(folder), *ATTACK]) == 0
    return folder


# --- files that would run something ----------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it makes the file `pwned`."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


WRITERS = {
    "torch": torch.save,
    "legacy": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    "script": lambda _, path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),  # holds code
}
# What is called, with what, and which file is the hostile one.
READERS = {
    **{
        program.__name__: (program.main, ["--model", "run", "--device", "cpu"], "model_best.pt")
        for program in EVALUATORS
    },
    "a file": (evaluate_on_pgd_attacks.main, ["--model", "run/model_best.pt", "--device", "cpu"], "model_best.pt"),
    "transfer": (evaluate_on_transfer.main, ["run", "run", *ATTACK], "model_best.pt"),
    "examples": (plots.main, ["examples", "run"], "model_best.pt"),
    "pretrained": (train.main, [*SHORT, "--pretrained", "run", "--savepath", "new"], "model_best.pt"),
    "resume": (train.main, RESUME, "last.pt"),
    "resume from the previous": (train.main, RESUME, "last.prev.pt"),
}
CASES = [(reader, "torch") for reader in READERS] + [("resume", writer) for writer in WRITERS if writer != "torch"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(("reader", "writer"), CASES)
def test_no_command_runs_what_a_pickle_asks_for(run, tmp_path, capsys, reader, writer):
    main, argv, name = READERS[reader]
    if name.startswith("last"):  # the only state that there is
        (run / "model_best.pt").unlink()
        (run / "last.prev.pt").unlink()
    if name == "last.prev.pt":
        (run / "last.pt").write_bytes(b"")
    WRITERS[writer]({**dict.fromkeys(STATE_KEYS, 1), "epoch": 1, "model": Hostile()}, run / name)
    before = contents(tmp_path)
    fails(
        capsys, main, argv, ".pt", "not tensors and plain values", *(["asks to run code"] if writer != "script" else [])
    )
    assert contents(tmp_path) == before  # no `pwned` in it


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_the_pickles_above_would_do_harm(tmp_path, writer):
    WRITERS[writer]({"x": Hostile()}, tmp_path / "x.pt")
    if writer == "pickle":
        pickle.loads((tmp_path / "x.pt").read_bytes())
    else:
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_hostile_adversarial_images_are_made_again(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    torch.save({"x_adv": Hostile(), "labels": 1, "numbers": 1, "model_sha256": ""}, run / "adv_pgd_Linf.pt")
    assert evaluate_on_transfer.main(["run", "other", *ATTACK]) == 0
    assert not (tmp_path / "pwned").exists() and checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"]


# --- damaged files: a checkpoint, JSON, and .npy ----------------------------------------------------------------------


WRONG_STATE = {"step": ["2"], "eps": [[0.1], torch.zeros(3)], "config": [{}, {"lr": 3}], "sums": [["x"]]}
WRONG_STATE |= {"optimizer": [{}, {"state": 1, "param_groups": 2}], "model": [{1: 2}, {"a": "b"}]}
WRONG_SETTINGS = {"seed": [-1, 10**40], "hinge_maxeps": [10**400], "augment": [1]}
WRONG_SETTINGS |= {"test_eps": [math.nan], "dataset": [["digits"]], "num_search_steps": [10**9], "norm": [None, []]}
WRONG_SETTINGS |= {"lr": [3, [[0, 1e999]], [[0, -1]], {}], "batch_size": ["many"], "search_mode": ["batch"]}


def each(values):
    """One change a case."""
    changes = [{name: value} for name, those in values.items() for value in those]
    return pytest.mark.parametrize("change", changes, ids=lambda change: str(change)[:40])


@each(WRONG_STATE)
def test_a_state_of_the_wrong_types(run, capsys, change):
    (run / "last.prev.pt").unlink()
    checkpoint.save(run / "last.pt", {**checkpoint.load(run / "last.pt"), **change})
    before = contents(run)
    fails(capsys, train.main, RESUME)
    assert contents(run) == before


@pytest.mark.parametrize(
    "odd",
    [
        *(lambda t: t * math.nan, lambda t: t + math.inf, torch.Tensor.to_sparse, lambda t: t.to(torch.complex64)),
        *(lambda t: t.long(), lambda t: t.double() * 1e300, lambda t: t.to("meta")),
    ],
    ids=["nan", "inf", "sparse", "complex", "integers", "too large", "meta"],
)
def test_weights_that_are_no_finite_numbers(run, capsys, odd):
    for name in ("model_best.pt", "last.pt"):
        content = checkpoint.load(run / name)
        content["model"]["linear2.bias"] = odd(content["model"]["linear2.bias"])
        torch.save({key: value for key, value in content.items() if key != checkpoint.CHECKSUM}, run / name)
    (run / "last.prev.pt").unlink()
    for program in EVALUATORS:
        fails(capsys, program.main, ["--model", "run", "--device", "cpu"], "model_best.pt")
    fails(capsys, train.main, [*SHORT, "--pretrained", "run", "--savepath", "new"], "model_best.pt")
    fails(capsys, train.main, RESUME, "last.pt")


@each(WRONG_SETTINGS)
def test_stored_settings_of_wrong_values(run, capsys, change):
    config = json.loads((run / "config.json").read_text())
    with pytest.raises(UserError, match=r"stored config|--"):
        stored_config({**config, **change})
    stored = checkpoint.load(run / "model_best.pt")
    checkpoint.save(run / "model_best.pt", {**stored, "config": {**stored["config"], **change}})
    fails(capsys, evaluate_on_pgd_attacks.main, PGD, "error: checkpoint run/model_best.pt: ")
    (run / "config.json").write_text(json.dumps({**config, **change}))
    fails(capsys, train.main, RESUME, "error: run/config.json: ", *(["mend it"] if change == {"augment": 1} else []))


DEEP = "[" * 100_000
JSON_READERS = {
    "eval_pgd_Linf.json": [(evaluate_on_pgd_attacks.main, PGD), (plots.main, ["robustness", "run"])],
    "config.json": [(train.main, RESUME), (plots.main, ["margins", "run"])],
    "metrics.jsonl": [(train.main, RESUME)],
}


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", DEEP, '{"a": ' * 50 + "1" + "}" * 50, "\xff\xfe"], ids=lambda t: t[:9]
)
@pytest.mark.parametrize("name", JSON_READERS)
def test_broken_json(run, capsys, name, text):
    more = b"\n" + (run / name).read_bytes() if name == "metrics.jsonl" else b""
    (run / name).write_bytes(text.encode("latin1") + more)
    before = contents(run)
    for main, argv in JSON_READERS[name]:
        fails(capsys, main, argv, name)
    assert contents(run) == before


@pytest.mark.parametrize(
    "odd",
    [
        *(lambda good: np.array([Hostile()], dtype=object), lambda good: good[0], lambda good: good.astype(complex)),
        *(lambda good: good * np.nan, lambda good: good + np.inf, lambda good: -1 - good, lambda good: good[:, :5]),
    ],
    ids=["pickle", "one row", "complex", "nan", "inf", "negative", "of fewer images"],
)
def test_damaged_margins(run, capsys, odd):
    np.save(run / "margins.npy", odd(np.load(run / "margins.npy")))
    fails(capsys, train.main, RESUME, "margins.npy")
    assert not (run.parent / "pwned").exists()


# --- random command lines ---------------------------------------------------------------------------------------------

BASE = ["--dataset", "digits", "--norm", "Linf", "--hinge_maxeps", "0.3"]
NUMBERS = f"""
1e999 -1e999 nan inf -0 0 8/0 0/0 8/255 -3 1e-999 1e308 1e39 1e-320 5e-324 0.3 1.5 10 256 99999 999999999999999 {"9" * 400}
0x10 1_0 १२ 1e 1/2/3 +1 ½ ∞ 1,5 0:0.1,5:0.01 5:1 0:0 0:nan : ,
""".split()
WORDS = f"""
é ~nobody_of_that_name / .. - -- {"x" * 5000} /dev/null /nowhere/x L2 linf mnist digits auto cpu meta lenet5 a: %s %(prog)s {{}}
cuda:99999999999999999999 cpu:-1 cuda:x os:system:x no.module:net cw,ddn fmn,fmn square
""".split()
VALUES = [*NUMBERS, *WORDS, "", " ", "\0", "a\0b", "\n", "\ud800"]
# Programs; what makes each fail at the latest before it could begin; what is to be said last; the flags to draw from.
PROGRAMS = [
    (train, BASE, ["--train_size", "999999", "--data_root", "nowhere", "--savepath", "new"], Config),
    *((program, ["--model", "nowhere"], [], cls) for program, cls in EVALUATORS.items()),
    (evaluate_on_transfer, ["nowhere", "elsewhere"], [], evaluate_on_transfer.TransferFlags),
]
MISSPELT = ["--hinge_maxesp", "--épsilon", "--\0", "--modle", "---norm", "--norm-"]


@st.composite
def command_lines(draw):
    """(program, arguments): flags of that program with values that fit, values that do not, and misspelt flags."""
    program, base, last, cls = draw(st.sampled_from(PROGRAMS))
    flag = st.sampled_from([*(f"--{name}" for name in cls.__dataclass_fields__), *MISSPELT])
    value = st.sampled_from(VALUES) | st.text(max_size=8) | st.floats().map(str)
    pair = st.tuples(flag, value)
    part = pair.map(list) | pair.map(lambda p: ["=".join(p)]) | flag.map(lambda f: [f]) | value.map(lambda v: [v])
    words = [word for words in draw(st.lists(part, max_size=5)) for word in words]
    return program, [*base, *words, *last]


@pytest.fixture
def quick_parser(monkeypatch):
    """Each program's parser is made once: making it is what takes the time, and parsing leaves it as it is."""
    made = functools.lru_cache(flags.build_parser)
    for module in (flags, evaluation_flags):
        monkeypatch.setattr(module, "build_parser", made)


def test_random_command_lines_end_in_one_line_and_change_nothing(tmp_path, quick_parser):
    (tmp_path / "metrics.jsonl").write_text("{}")
    before = contents(tmp_path)

    @settings(
        max_examples=200,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(command_lines())
    def tried(drawn):
        program, argv = drawn
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = program.main(argv)
        except SystemExit as error:  # --help
            assert error.code == 0 and "usage" in out.getvalue()
            return
        assert status == 2, (status, err.getvalue())
        assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1, err.getvalue()
        assert contents(tmp_path) == before and not (tmp_path / "new").exists()

    tried()


def test_every_flag_of_training_with_every_odd_value(quick_parser):
    """Refused, or finite settings that survive JSON."""
    refused = 0
    for name in Config.__dataclass_fields__:
        for value in VALUES:
            try:
                config, _ = parse_train([*BASE, f"--{name}={value}"])
            except UserError:
                refused += 1
                continue
            numbers = [value for value in vars(config).values() if isinstance(value, int | float)]
            assert all(math.isfinite(value) and abs(value) <= LARGEST for value in numbers), (name, value)
            assert stored_config(json.loads(json.dumps(config.to_dict()))) == config and config.run_name.encode()
    assert refused > 500


@pytest.mark.parametrize(
    "argv",
    [
        *(["--data_root", "~nobody_of_that_name"], ["--device", "cuda:99999999999999999999"]),
        *(["--savepath", "x" * 5000], ["--savepath", "a\0b"], ["--savepath", "\ud800"], ["--savepath", "file/x"]),
        ["--pretrained", "x" * 5000],
    ],
    ids=lambda argv: ascii(argv)[:40],
)
def test_odd_values_that_parse_end_in_one_line_later(tmp_path, capsys, argv):
    (tmp_path / "file").write_text("")
    fails(capsys, train.main, [*SHORT, "--savepath", "new", *argv])
    assert sorted(files(tmp_path)) == ["file"]
