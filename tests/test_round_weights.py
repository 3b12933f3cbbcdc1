"""Weights rounded to float16 on disk: once, before they are evaluated, and used as float32."""

import json

import pytest
import torch

import evaluate_on_pgd_attacks
from command_lines import ATTACK, fails
from records import checkpoint
from scripts.round_weights import main, rounded


def test_rounded_once_evaluated_as_float32_and_refused_beside_evaluations(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    before = checkpoint.load(run / "model_best.pt")["model"]
    size = (run / "model_best.pt").stat().st_size
    assert main(["run"]) == 0 and (run / "model_best.pt").stat().st_size < 0.6 * size
    after = checkpoint.load(run / "model_best.pt")["model"]
    for name, value in after.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), before[name], rtol=1e-3, atol=1e-7)
    kept = (run / "model_best.pt").read_bytes()
    assert main(["run"]) == 0 and "rounded already" in capsys.readouterr().out
    assert (run / "model_best.pt").read_bytes() == kept
    assert evaluate_on_pgd_attacks.main([*ATTACK, "--model", "run"]) == 0
    result = json.loads((run / "eval_pgd_Linf.json").read_text())
    assert result["model_sha256"] == checkpoint.load_model_file("run").sha256
    checkpoint.save(run / "model_best.pt", {**checkpoint.load(run / "model_best.pt"), "model": before})
    fails(capsys, main, ["run"], "eval_pgd_Linf.json beside it is of the weights as they are")


def test_statistics_stay_and_what_does_not_fit_is_refused():
    weights = {"bn.running_var": torch.ones(2), "bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3)}
    kinds = [value.dtype for value in rounded(weights).values()]
    assert kinds == [torch.float32, torch.float16, torch.int64]
    with pytest.raises(Exception, match="beyond float16's range"):
        rounded({"a": torch.tensor([1e6])})
