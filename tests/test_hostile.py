"""Files that were made or damaged to do harm, given to every command: nothing in them runs, one line, status 2."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import evaluate_on_autoattack
import evaluate_on_gradient_free_attacks
import evaluate_on_minimum_norm
import evaluate_on_pgd_attacks
import evaluate_on_transfer as transfer
import train
from benchmarks import compare_with_advertorch
from command_lines import ATTACK, SMALL, fails, files
from errors import UserError
from records import checkpoint
from records.checkpoint import STATE_KEYS
from records.reading import parse_json, read_margins
from reports import make_tables, plots
from validation import stored_config

EVALUATORS = {
    "pgd": evaluate_on_pgd_attacks,
    "autoattack": evaluate_on_autoattack,
    "gradient_free": evaluate_on_gradient_free_attacks,
    "minimum_norm": evaluate_on_minimum_norm,
}
SHORT = [*SMALL, "--train_size", "60", "--max_steps", "2"]
FAST_ATTACK = ["--device", "cpu", "--test_size", "20", "--nb_iter", "2", "--nb_restart", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps with an evaluation, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "digits-Linf-MMA-0.3-sd0"
    assert train.main([*SHORT, "--savepath", str(folder)]) == 0
    assert evaluate_on_pgd_attacks.main(["--model", str(folder), *FAST_ATTACK, "--save_adv"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


# --- pickles -------------------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_torch(content, path):
    torch.save(content, path)


def write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_script(content, path):
    """What torch.jit saves holds code by itself."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def at_model_best(program, *flags):
    def given(run, write):
        write(run / "model_best.pt")
        return program.main, [flag.format(run=run) for flag in flags]

    return given


def at_pretrained(run, write):
    write(run / "model_best.pt")
    return train.main, [*SHORT, "--pretrained", str(run), "--savepath", "new"]


def at_resume(run, write):
    (run / "last.prev.pt").unlink()
    (run / "model_best.pt").unlink()
    write(run / "last.pt")
    return train.main, [*SHORT, "--max_steps", "3", "--resume", "--savepath", str(run)]


def at_previous(run, write):
    (run / "model_best.pt").unlink()
    (run / "last.pt").write_bytes(b"")
    write(run / "last.prev.pt")
    return train.main, [*SHORT, "--max_steps", "3", "--resume", "--savepath", str(run)]


def at_transfer(run, write):
    other = shutil.copytree(run, run.with_name("other"))
    write(other / "model_best.pt")
    return transfer.main, [str(run), str(other), *FAST_ATTACK]


def at_wheel(run, write, monkeypatch):
    """The networks inside advertorch's wheel, if somebody had changed that."""
    (run / "trained_models").mkdir()
    write(run / "trained_models" / "mnist_lenet5_advtrained.pt")
    monkeypatch.setattr(compare_with_advertorch.advertorch_examples, "__file__", str(run / "__init__.py"))

    def main(argv):
        return compare_with_advertorch.exits_on_user_error(
            lambda: compare_with_advertorch.wheel_network("advtrained")
        )()

    return main, []


COMMANDS = {
    **{name: at_model_best(program, "--model", "{run}", "--device", "cpu") for name, program in EVALUATORS.items()},
    "file": at_model_best(evaluate_on_pgd_attacks, "--model", "{run}/model_best.pt", "--device", "cpu"),
    "plots examples": at_model_best(plots, "examples", "{run}"),
    "pretrained": at_pretrained,
    "resume": at_resume,
    "resume from the previous one": at_previous,
    "transfer": at_transfer,
    "compare_with_advertorch": at_wheel,
}


@pytest.mark.parametrize("write", [write_torch, write_legacy, write_pickle, write_script])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_pickle_asks_for(run, tmp_path, capsys, monkeypatch, command, write):
    marker = tmp_path / "pwned"
    content = {"epoch": 1, "model": Hostile(marker), **dict.fromkeys(set(STATE_KEYS) - {"model", "epoch"}, 1)}
    more = [monkeypatch] if command == "compare_with_advertorch" else []
    main, argv = COMMANDS[command](run, lambda path: write(content, path), *more)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    fails(capsys, main, argv, ".pt", "not tensors and plain values")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert not marker.exists() and before == after


def test_the_pickles_above_would_do_harm(tmp_path):
    for write in (write_torch, write_legacy, write_pickle):
        write({"x": Hostile(tmp_path / write.__name__)}, tmp_path / "x.pt")
        if write is write_pickle:
            pickle.loads((tmp_path / "x.pt").read_bytes())
        else:
            torch.load(tmp_path / "x.pt", weights_only=False)
        assert (tmp_path / write.__name__).exists()


def test_hostile_files_beside_the_model_are_not_used(run, tmp_path):
    """adv_*.pt and partial_*.pt are made again."""
    marker = tmp_path / "pwned"
    other = shutil.copytree(run, tmp_path / "other")
    content = {"x_adv": Hostile(marker), "labels": 1, "numbers": 1, "model_sha256": ""}
    torch.save(content, run / "adv_pgd_Linf.pt")
    assert transfer.main([str(run), str(other), *FAST_ATTACK]) == 0
    assert not marker.exists() and checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"]


def test_resume_after_a_hostile_last_pt_goes_on_from_the_previous_one(run, tmp_path, capsys):
    marker = tmp_path / "pwned"
    torch.save({"model": Hostile(marker)}, run / "last.pt")
    assert train.main([*SHORT, "--max_steps", "3", "--resume", "--savepath", str(run)]) == 0
    assert "warning" in capsys.readouterr().err and not marker.exists()


# --- checkpoints of the right form with the wrong content ----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"step": "2"},
        {"eps": [0.1]},
        {"eps": torch.zeros(3)},
        {"config": []},
        {"config": {}},
        {"config": {"lr": 3}},
        {"sums": [1.0]},
        {"sums": ["x"]},
        {"optimizer": {}},
        {"optimizer": {"state": 1, "param_groups": 2}},
        {"model": {1: 2}},
        {"model": {"a": "b"}},
    ],
    ids=str,
)
def test_a_state_of_the_wrong_types_is_one_line(run, capsys, change):
    (run / "last.prev.pt").unlink()
    checkpoint.save(run / "last.pt", {**checkpoint.load(run / "last.pt"), **change})
    before = files(run)
    fails(capsys, train.main, [*SHORT, "--max_steps", "3", "--resume", "--savepath", run])
    assert {**before, ".lock": b""} == files(run)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": [[0, 1e999]]},
        {"lr": [[1e999, 1]]},
        {"lr": [[0, -1]]},
        {"lr": {}},
        {"seed": -1},
        {"seed": 10**40},
        {"test_eps": float("nan")},
        {"hinge_maxeps": 10**400},
        {"dataset": ["digits"]},
        {"network": "x:y"},
        {"data_root": "a" * 5000},
        {"num_search_steps": 10**9},
        {"norm": None},
        {"augment": 1},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_stored_config_of_wrong_values_is_one_line(run, capsys, change):
    stored = checkpoint.load(run / "model_best.pt")
    if "network" in change or "data_root" in change:
        checkpoint.save(run / "model_best.pt", {**stored, "config": {**stored["config"], **change}})
        if "network" in change:
            fails(capsys, evaluate_on_pgd_attacks.main, ["--model", run, *ATTACK], "--network x:y")
        else:
            assert evaluate_on_pgd_attacks.main(["--model", str(run), *FAST_ATTACK]) == 0
        return
    with pytest.raises(UserError, match=r"stored config|--"):
        stored_config({**stored["config"], **change})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **change}))
    argv = [*SHORT, "--max_steps", "3", "--resume", "--savepath", run]
    fails(capsys, train.main, argv, f"error: {run / 'config.json'}: ")
    if change == {"augment": 1}:
        fails(capsys, train.main, argv, "(augment is 1)", "mend it")
    (run / "config.json").write_text(json.dumps(config))
    checkpoint.save(run / "model_best.pt", {**stored, "config": {**stored["config"], **change}})
    fails(
        capsys, evaluate_on_pgd_attacks.main, ["--model", run, *ATTACK], f"error: checkpoint {run / 'model_best.pt'}: "
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(run, capsys, bad):
    for name in ("model_best.pt", "last.pt"):
        content = checkpoint.load(run / name)
        content["model"]["linear2.bias"][3] = bad
        checkpoint.save(run / name, content)
    (run / "last.prev.pt").unlink()
    said = ("linear2.bias is not finite", ".pt")
    for program in EVALUATORS.values():
        fails(capsys, program.main, ["--model", run, "--device", "cpu"], *said)
    fails(capsys, train.main, [*SHORT, "--pretrained", run, "--savepath", "new"], *said)
    fails(capsys, train.main, [*SHORT, "--max_steps", "3", "--resume", "--savepath", run], *said)


def test_odd_tensors_are_refused(run, capsys):
    content = checkpoint.load(run / "model_best.pt")
    bias = content["model"]["linear2.bias"]
    for odd in (bias.to_sparse(), bias.to(torch.complex64), bias.long(), bias.double() * 1e300, bias.to("meta")):
        torch.save({**content, "model": {**content["model"], "linear2.bias": odd}}, run / "model_best.pt")
        fails(capsys, evaluate_on_pgd_attacks.main, ["--model", run, *ATTACK], "model_best.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_understood_everywhere(run, tmp_path, prefix):
    """As DataParallel and torch.compile save: evaluators, --pretrained and --resume."""

    def results():
        rows = json.loads((run / "eval_pgd_Linf.json").read_text())["results"]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    expected = results()
    for name in ("model_best.pt", "last.pt", "last.prev.pt"):
        content = checkpoint.load(run / name)
        content["model"] = {f"{prefix}{key}": value for key, value in content["model"].items()}
        checkpoint.save(run / name, content)
    assert evaluate_on_pgd_attacks.main(["--model", str(run), *FAST_ATTACK]) == 0
    assert results() == expected
    assert (
        evaluate_on_minimum_norm.main(["--model", str(run), "--attacks", "fmn", "--steps", "2", *FAST_ATTACK[:4]]) == 0
    )
    square = ["--attacks", "square", "--square_queries", "3", *FAST_ATTACK[:4]]
    assert evaluate_on_gradient_free_attacks.main(["--model", str(run), *square]) == 0
    tuned = [*SHORT, "--max_steps", "1", "--lr", "1e-12", "--pretrained", str(run), "--savepath", "tuned"]
    assert train.main(tuned) == 0
    weights = {checkpoint.CHECKSUM: 0} | checkpoint.load(run / "model_best.pt")["model"]
    after = checkpoint.load(tmp_path / "tuned" / "last.pt")["model"]["linear2.weight"]
    assert torch.allclose(after, weights[f"{prefix}linear2.weight"], rtol=0, atol=1e-6)
    assert train.main([*SHORT, "--max_steps", "3", "--resume", "--savepath", str(run)]) == 0
    assert not any(key.startswith(prefix) for key in checkpoint.load(run / "last.pt")["model"])


# --- JSON and .npy -------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000


def one_line_or_fine(capsys, main, argv):
    """Whether it was refused; never a traceback."""
    capsys.readouterr()
    status = main([str(a) for a in argv])
    error = capsys.readouterr().err
    assert status in (0, 2)
    if status:
        assert error.startswith("error: ") and error.count("\n") == 1, error
    return status == 2


def small_evaluation(run, attack="pgd"):
    content = json.loads((run / "eval_pgd_Linf.json").read_text())
    return {**content, "attack": attack, "sanity": {"network": content["sanity"]["network"]}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        DEEP,
        '{"a": ' * 50 + "1" + "}" * 50,
        '{"n": 1e999}',
        "\ud800".encode("utf-8", "replace"),
        b"\xff\xfe",
    ],
    ids=lambda text: str(text)[:12],
)
@pytest.mark.parametrize("name", ["eval_pgd_Linf.json", "config.json", "metrics.jsonl"])
def test_broken_json_is_one_line_everywhere(run, capsys, name, text):
    raw = text if isinstance(text, bytes) else text.encode()
    (run / name).write_bytes(raw if name != "metrics.jsonl" else raw + b"\n" + (run / name).read_bytes())
    commands = {
        "eval_pgd_Linf.json": [
            (evaluate_on_pgd_attacks.main, ["--model", run, *FAST_ATTACK]),
            (plots.main, ["robustness", run]),
        ],
        "config.json": [
            (train.main, [*SHORT, "--resume", "--savepath", run]),
            (plots.main, ["margins", run]),
        ],
        "metrics.jsonl": [(train.main, [*SHORT, "--max_steps", "3", "--resume", "--savepath", run])],
    }[name]
    before = files(run)
    for main, argv in commands:
        harmless = text == '{"n": 1e999}' and main is not train.main  # says nothing of this checkpoint
        if name == "metrics.jsonl" and text == "":
            continue
        if not harmless:
            assert one_line_or_fine(capsys, main, argv), argv
            assert files(run) | {".lock": b""} == before | {".lock": b""}


def test_odd_results_beside_the_model_are_one_line_for_the_evaluators(run, capsys):
    content = small_evaluation(run)
    path = run / "eval_pgd_Linf.json"
    odd = [
        {**content, **change}
        for change in (
            {"n": "x"},
            {"n": 1e999},
            {"n": None},
            {"results": {}},
            {"results": [1]},
            {"results": [{"eps": "x"}]},
            {"settings": []},
            {"distances": ["x"]},
            {"seed": [0]},
        )
    ]
    for changed in odd:
        path.write_text(json.dumps(changed))
        fails(
            capsys, evaluate_on_pgd_attacks.main, ["--model", run, *FAST_ATTACK, "--resume"], path.name, "move it away"
        )
        other = {**changed, "attack": "fmn"}
        (run / "eval_fmn_Linf.json").write_text(json.dumps(other))
        flags = ["--model", run, "--device", "cpu", "--test_size", "20", "--steps", "2"]
        fails(capsys, evaluate_on_minimum_norm.main, flags, "eval_fmn_Linf.json", "move it away")
        assert json.loads(path.read_text(), parse_constant=str) == json.loads(json.dumps(changed), parse_constant=str)


@pytest.mark.parametrize(
    "line",
    [
        "1",
        '"kind step"',
        '["kind", "step"]',
        '{"kind": "eval", "step": 1}',
        '{"kind": 1, "step": 1}',
        '{"kind": "train", "step": "1"}',
        '{"kind": "train", "step": 1e999}',
        DEEP,
    ],
)
def test_odd_rows_are_one_line(run, capsys, line):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"{line}\n{lines}")
    argv = [*SHORT, "--max_steps", "3", "--resume", "--savepath", run]
    fails(capsys, train.main, argv, "metrics.jsonl: line 1 is damaged")
    one_line_or_fine(capsys, plots.main, ["margins", run, "--out", "p"])
    assert make_tables.main([str(run)]) == 0


class Boom:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def npy(path, array, **options):
    with path.open("wb") as file:
        np.save(file, array, **options)


def test_hostile_margins_are_one_line(run, tmp_path, capsys):
    path = run / "margins.npy"
    good = np.load(path)
    argv = [*SHORT, "--max_steps", "3", "--resume", "--savepath", run]
    cases = [
        np.array([Boom()], dtype=object),
        good[0],
        good.astype(complex),
        good.astype("U4"),
        np.full_like(good, np.nan),
        np.full_like(good, np.inf),
        -1 - good,
    ]
    for array in cases:
        npy(path, array)
        fails(capsys, train.main, argv, "margins.npy")
        fails(capsys, plots.main, ["margins", run], "margins.npy")
    npy(path, good[:, :5])
    fails(capsys, train.main, argv, "margins.npy", "5 training images instead of 60")
    head = b"\x93NUMPY\x01\x00v\x00"
    for shape in ("(1000000000, 1000000000)", "(" * 40 + ")" * 40, "(-1, 2)", "'x'"):
        text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        path.write_bytes(head[:8] + len(text).to_bytes(2, "little") + text + b"\0" * 64)
        fails(capsys, train.main, argv, "margins.npy")
        fails(capsys, plots.main, ["margins", run], "margins.npy")
    assert not (tmp_path / "pwned").exists()


def test_reading():
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}
    assert parse_json("[" * 20 + "]" * 20) and read_margins
    for text in ("[" * 25 + "]" * 25, DEEP, "{", ""):
        with pytest.raises(ValueError):
            parse_json(text)
