"""Results of one checkpoint side by side: whatever the order of commands, in old files, of other checkpoints; which is
quoted; validation images; the clock."""

import itertools
import json
import shutil

import pytest
import torch

import evaluate_on_pgd_attacks
from command_lines import fails, found_in
from config import PRESETS
from evaluations import white_box_attack
from evaluations.findings import merged
from evaluations.flags import eval_grid, parse_eval
from evaluations.pgd_partial import Partial
from evaluations.results import Head, checkpoint_rows, content_of
from evaluations.rows import quoted
from evaluations.subject import load_subject
from linear_networks import fitted
from loading.datasets import load_dataset
from records import checkpoint
from records.commands import command
from reports.results import read_evaluation, read_run
from validation import stored_config

CPU = torch.device("cpu")
ATTACK = [*("--device", "cpu", "--network", "linear_networks:Linear", "--nb_iter", "5", "--nb_restart", "2")]
SMALL = [*ATTACK, "--test_size", "40"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with a linear network of the digits, which is the current folder's `run`."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return make_run(tmp_path / "run")


def make_run(folder, **changes):
    values = {
        **PRESETS["digits", "Linf"].to_dict(),
        "network": "linear_networks:Linear",
        "hinge_maxeps": 0.3,
        **changes,
    }
    config = stored_config(values)
    data = load_dataset("digits", val_size=config.val_size, test_size=0, seed=config.seed, device=CPU)
    model = fitted(data.train.images, data.train.labels)
    folder.mkdir()
    checkpoint.save(folder / "model_best.pt", {"epoch": 1, "model": model.state_dict(), "config": config.to_dict()})
    return folder


def attack(run, *flags, small=True):
    argv = ["--model", str(run), *(SMALL if small else ATTACK), *map(str, flags)]
    return evaluate_on_pgd_attacks.main(argv)


def content(run):
    return json.loads((run / "eval_pgd_Linf.json").read_text())


def without_checks(run):
    """Rows less the sanity checks, which are of the radius that a command attacks nearest to the training's."""
    return [{key: value for key, value in row.items() if key != "sanity"} for row in found_in(run)]


def test_the_order_of_commands_does_not_matter(run, tmp_path):
    """Flags included: what fell at a smaller radius is fallen, whichever came first."""
    together = shutil.copytree(run, tmp_path / "together")
    assert attack(together, "--eps", 0.05, 0.1, 0.12, "--nb_restart", 1) == 0
    expected = without_checks(together)
    for number, order in enumerate(itertools.permutations((0.05, 0.1, 0.12))):
        folder = shutil.copytree(run, tmp_path / f"order{number}")
        assert [attack(folder, "--eps", eps, "--nb_restart", 1) for eps in order] == [0, 0, 0]
        assert without_checks(folder) == expected
        assert content(folder)["avg_acc"] == content(together)["avg_acc"]
    flags = [row["flags"] for row in expected]
    assert all(a >= b for less, more in itertools.pairwise(flags) for a, b in zip(less, more, strict=True))


def test_stored_flags_of_another_protocol_are_not_taken(run, tmp_path):
    alone = shutil.copytree(run, tmp_path / "alone")
    assert attack(alone, "--eps", 0.1) == 0
    for more in (["--seed", 3], ["--nb_iter", 6], ["--nb_restart", 3], ["--precision", "bf16"], ["--test_size", 30]):
        assert attack(run, "--eps", 0.099, *more) == 0
    assert attack(run, "--eps", 0.1) == 0
    at = [row for row in without_checks(run) if row["eps"] == 0.1]
    assert at == without_checks(alone)
    assert sorted(row["eps"] for row in found_in(run)) == [*[0.099] * 5, 0.1]


def test_many_images_then_few_and_the_other_way_round(run, tmp_path):
    few_first = shutil.copytree(run, tmp_path / "few")
    for folder, sizes in ((run, (80, 30)), (few_first, (30, 80))):
        assert [attack(folder, "--eps", 0.1, "--test_size", size) for size in sizes] == [0, 0]
    assert found_in(run) == found_in(few_first)
    assert [row["n"] for row in content(run)["results"]] == [80, 30] and content(run)["n"] == 80
    assert read_evaluation(run / "eval_pgd_Linf.json")["results"] == content(run)["results"][:1]
    assert content(run)["results"][0]["flags"][:30] == content(run)["results"][1]["flags"]


def test_the_same_command_again_is_done_and_overwrite_computes_it_anew(run, capsys):
    assert attack(run, "--eps", 0.05, 0.1) == 0
    before = (run / "eval_pgd_Linf.json").read_bytes()
    for flags in ([0.1], [0.05, 0.1], [0.1, "--batch_size", 10], [0.1, "--resume"]):
        capsys.readouterr()
        assert attack(run, "--eps", *flags) == 0 and "already done" in capsys.readouterr().out
    assert (run / "eval_pgd_Linf.json").read_bytes() == before
    damaged = content(run)
    for row in damaged["results"]:
        row["flags"], row["robust_acc"] = "1" * 40, 1.0
    (run / "eval_pgd_Linf.json").write_text(json.dumps(damaged))
    assert attack(run, "--eps", 0.1, "--overwrite") == 0 and "already done" not in capsys.readouterr().out
    first, second = content(run)["results"]
    assert first["robust_acc"] == 1 > second["robust_acc"], "only what was asked for"


def test_only_what_is_missing_is_attacked(run, monkeypatch):
    begun, go_on = [], white_box_attack.go_on

    def counted(model, images, protocol, *rest):
        begun.append(protocol.eps)
        return go_on(model, images, protocol, *rest)

    monkeypatch.setattr(white_box_attack, "go_on", counted)
    assert attack(run, "--eps", 0.1) == attack(run, "--eps", 0.05, 0.1, 0.15) == 0
    assert begun == [0.1, 0.05, 0.15]
    assert attack(run, "--eps", 0.1, "--save_adv") == 0 and begun[3:] == [0.1], "for its images"
    assert attack(run, "--eps", 0.1, "--save_adv") == 0 and len(begun) == 4


def old_format(run):
    """The file as it was before: what all rows share at its top."""
    found = content(run)
    rows = [{k: row[k] for k in ("eps", "robust_acc", "ci95", "flags")} for row in found["results"]]
    settings = {**found["settings"], "eps_iter": [row["settings"]["eps_iter"] for row in found["results"]]}
    del settings["precision"]
    return {k: v for k, v in found.items() if k not in ("format", "split", "images")} | {
        "results": rows,
        "settings": settings,
    }


def test_old_json_is_read_and_kept(run, capsys):
    assert attack(run, "--eps", 0.05, 0.1) == 0
    new, old = without_checks(run), old_format(run)
    path = run / "eval_pgd_Linf.json"
    path.write_text(json.dumps(old))
    assert [row["robust_acc"] for row in read_evaluation(path)["results"]] == [row["robust_acc"] for row in new]
    assert read_run(run).evaluations[0]["sanity"] == old["sanity"]
    capsys.readouterr()
    assert attack(run, "--eps", 0.1) == 0 and "already done" in capsys.readouterr().out
    assert json.loads(path.read_text()) == old
    assert attack(run, "--eps", 0.05, 0.15) == 0
    rows = content(run)["results"]
    assert [row["eps"] for row in rows] == [0.05, 0.1, 0.15]
    for row, before in zip(rows, new, strict=False):
        assert row["flags"] == before["flags"] and row["settings"]["eps_iter"] == before["settings"]["eps_iter"]
        assert (row["n"], row["split"], row["seed"]) == (40, "test", 0)
    fallen = [flag == "0" for flag in rows[1]["flags"]]
    assert all(row == "0" for row, gone in zip(rows[2]["flags"], fallen, strict=True) if gone)


def test_warnings_that_differ_in_numbers_are_said_once():
    square = "on one shard: Square took {} % # more."
    assert merged([square.format(3.06), "2 odd", square.format("1.00"), square.format(10)]) == [
        "on one shard: Square took 1.00 to 10 % # more. (3 such warnings)",
        "2 odd",
    ]
    assert merged(["5 of 5", "5 of 5"]) == ["5 of 5 (2 such warnings)"] and merged([]) == []


def test_results_of_another_checkpoint_stay_and_are_stale_to_nobody(run):
    """`last.pt` beside `model_best.pt`, and a checkpoint that is no longer there."""
    assert attack(run, "--eps", 0.1) == 0
    best = content(run)
    other = checkpoint.load(run / "model_best.pt")
    weights = {key: 0.5 * tensor for key, tensor in other["model"].items()}
    checkpoint.save(run / "last.pt", {**other, "model": weights, "epoch": 2})
    assert attack(run / "last.pt", "--eps", 0.1) == 0
    last = content(run)
    assert last["model_sha256"] != best["model_sha256"] and last["others"][0]["results"] == best["results"]
    assert attack(run, "--eps", 0.05) == 0
    both = content(run)
    assert both["model_sha256"] == best["model_sha256"] and [row["eps"] for row in both["results"]] == [0.05, 0.1]
    assert [row["eps"] for row in both["others"][0]["results"]] == [0.1]
    head = Head("pgd", "Linf", last["model_sha256"], "digits")
    assert [row["eps"] for row in checkpoint_rows(run / "eval_pgd_Linf.json", head)] == [0.1]
    assert read_run(run).doubts(read_run(run).evaluations[0]) == []
    (run / "model_best.pt").unlink()
    assert "stale" in read_run(run).doubts(read_run(run).evaluations[0])[0]


@pytest.mark.parametrize("changes", [{}, {"train_size": 300}])
def test_training_images_are_those_of_the_training_run(tmp_path, changes):
    folder = make_run(tmp_path / "changed", **changes)
    stored = stored_config(checkpoint.load(folder / "model_best.pt")["config"])
    sizes = {"train_size": stored.train_size, "val_size": stored.val_size, "test_size": 0}
    data = load_dataset("digits", **sizes, seed=stored.seed, device=CPU)
    subject = load_subject(parse_eval(["--model", str(folder), *ATTACK, "--split", "train"]), CPU)
    assert torch.equal(subject.test.images, data.train.images)
    assert torch.equal(subject.test.numbers, data.train.numbers)
    assert attack(folder, "--eps", 0.1, "--split", "train") == 0
    row = content(folder)["results"][0]
    assert (row["split"], row["n"]) == ("train", 40) and read_run(folder).evaluations == []


@pytest.mark.parametrize("changes", [{}, {"val_size": 100}, {"seed": 4}])
def test_validation_images_are_those_of_the_training_run(run, tmp_path, changes):
    folder = make_run(tmp_path / "changed", **changes)
    stored = stored_config(checkpoint.load(folder / "model_best.pt")["config"])
    data = load_dataset("digits", val_size=stored.val_size, test_size=0, seed=stored.seed, device=CPU)
    subject = load_subject(parse_eval(["--model", str(folder), *ATTACK, "--split", "val"]), CPU)
    assert torch.equal(subject.test.images, data.val.images) and torch.equal(subject.test.numbers, data.val.numbers)
    assert len(subject.test) == stored.val_size and not set(data.val.numbers.tolist()) & set(
        data.train.numbers.tolist()
    )
    assert attack(folder, "--eps", 0.1) == attack(folder, "--eps", 0.1, "--split", "val", small=False) == 0
    assert [(row["split"], row["n"]) for row in content(folder)["results"]] == [("test", 40), ("val", stored.val_size)]
    assert content(folder)["n"] == 40, "test images at the top"
    assert [row["split"] for row in read_evaluation(folder / "eval_pgd_Linf.json")["results"]] == ["test"]


def test_validation_images_that_nobody_knows(run, capsys):
    main = evaluate_on_pgd_attacks.main
    fails(capsys, main, ["--model", run, *ATTACK, "--split", "val", "--test_size", 201], "--test_size 201", "200")
    fails(capsys, main, ["--model", run, *ATTACK, "--split", "val", "--dataset", "mnist"], "--split val", "trained on")
    fails(
        capsys,
        main,
        ["--model", run, *ATTACK, "--split", "train", "--dataset", "mnist"],
        "training images",
        "trained on",
    )
    fails(capsys, main, ["--model", run, *ATTACK, "--split", "valid"], "--split")
    assert not list(run.glob("eval_*"))


def test_a_folder_with_validation_results_only_is_not_quoted(run):
    assert attack(run, "--eps", 0.1, "--split", "val") == 0
    assert read_run(run).evaluations == [] and read_run(run).damaged == []


def test_stopped_by_the_clock_at_any_batch_is_the_same_bit_for_bit(run, tmp_path, capsys, monkeypatch):
    """Also with the images; each start does one batch at least."""
    whole = shutil.copytree(run, tmp_path / "whole")
    argv = ["--eps", 0.05, 0.1, "--batch_size", 15, "--save_adv"]
    assert attack(whole, *argv) == 0
    statuses, capsys_out = [], []
    while not statuses or statuses[-1] == 75:
        assert not (run / "eval_pgd_Linf.json").exists()
        statuses.append(attack(run, *argv, "--max_minutes", "0.001"))
        capsys_out.append(capsys.readouterr().out)
    assert statuses[-1] == 0 and len(statuses) >= 8
    assert f"this goes on: {command('evaluate_on_pgd_attacks.py', '--model')}" in capsys_out[0]
    assert all("going on with an evaluation that was stopped" in said for said in capsys_out[1:])
    assert found_in(run) == found_in(whole) and not list(run.glob("partial_*"))
    images = [checkpoint.load(folder / "adv_pgd_Linf.pt")["x_adv"] for folder in (run, whole)]
    assert all(torch.equal(images[0][eps], images[1][eps]) for eps in (0.05, 0.1))


def test_what_was_stopped_goes_on_with_other_flags_of_no_account(run, capsys):
    assert attack(run, "--eps", 0.1, "--batch_size", 15, "--max_minutes", 0.001) == 75
    assert attack(run, "--eps", 0.1, "--batch_size", 15, "--overwrite", "--quiet") == 0
    assert not list(run.glob("partial_*")) and len(found_in(run)) == 1


def test_saved_images_break_what_is_broken_also_after_a_stop_without_them(run):
    """Without `--save_adv` what fell at a smaller radius is not attacked again, so that it is begun anew with it."""
    assert attack(run, "--eps", 0.05) == 0
    assert attack(run, "--eps", 0.06, "--batch_size", 15, "--max_minutes", 0.001) == 75
    assert attack(run, "--eps", 0.06, "--batch_size", 15, "--save_adv") == 0
    subject = load_subject(parse_eval(["--model", str(run), *SMALL]), CPU)
    (x_adv,) = checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"].values()
    broken = torch.tensor([flag == "0" for flag in found_in(run)[1]["flags"]])
    broken_at_once = torch.tensor([flag == "0" for flag in found_in(run)[0]["flags"]])
    assert (broken & broken_at_once).sum() > 3, "a smaller radius has broken some"
    assert (subject.model(x_adv).argmax(1) != subject.test.labels)[broken].all()


def test_another_code_of_the_network_is_another_network(run, capsys):
    """Same weights: its rows and saved images lie beside, and are not taken for, those of the first."""
    assert attack(run, "--eps", 0.05, "--save_adv") == 0
    (first,) = found_in(run)
    capsys.readouterr()
    other = ["--network", "linear_networks:Negative"]
    assert attack(run, "--eps", 0.05, *other, "--save_adv") == 0
    said = capsys.readouterr()
    assert "linear_networks:Negative instead of the checkpoint's linear_networks:Linear" in said.out + said.err
    assert "already done" not in said.out
    second = next(row for row in found_in(run) if row["settings"]["overrides"])
    assert first in found_in(run) and second["clean_acc"] < 0.5 < first["clean_acc"]
    for flags, row in (((), first), (other, second)):
        (found,) = load_subject(parse_eval(["--model", str(run), *SMALL, *flags]), CPU).rows("pgd")
        assert found["clean_acc"] == row["clean_acc"]
    assert attack(run, "--eps", 0.06, "--save_adv") == 0  # the other's file of images is not added to
    assert list(checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"]) == [0.06]
    for flags, name in (((), "Linear"), (other, "Negative")):
        assert attack(run, "--eps", 0.05, *flags) == 0
        assert "already done" in capsys.readouterr().out, name


def test_progress_is_of_this_very_evaluation(run):
    subject = load_subject(parse_eval(["--model", str(run), *SMALL]), CPU)

    def identity(*flags):
        plan, _ = white_box_attack_plan(parse_eval(["--model", str(run), *SMALL, *flags]), subject)
        return Partial(plan, plan.radii).identity

    plain = identity()
    assert identity("--resume", "--max_minutes", "3") == plain
    for flags in (("--seed", "1"), ("--eps", "0.1"), ("--nb_iter", "6"), ("--eps_iter", "0.1"), ("--batch_size", "7")):
        assert identity(*flags) != plain


def white_box_attack_plan(flags, subject):
    from evaluations.white_box_plan import make_plan

    return make_plan(flags, subject)


def row(eps=0.1, n=100, split="test", **settings):
    settings = {"nb_iter": 10, "nb_restart": 2, **settings}
    return {"eps": eps, "n": n, "split": split, "seed": 0, "clean_acc": 1.0, "robust_acc": 0.5, "settings": settings}


def test_the_row_to_quote():
    most_images, hardest = row(n=1000), row(nb_restart=5)
    assert quoted([most_images, hardest]) == quoted([hardest, most_images]) == [most_images]
    assert quoted([row(), hardest, row(nb_iter=20)]) == [hardest]
    assert quoted([row(nb_iter=30), hardest]) == [row(nb_iter=30)]
    assert quoted([row(eps=0.2), row(eps=0.1 + 1e-9), row(eps=0.1)]) == [row(eps=0.1), row(eps=0.2)]
    assert quoted([row(n=9999, split="val"), row()]) == [row()] and quoted([row(split="val")]) == []
    custom = row(standard=False, nb_restart=99)
    assert quoted([custom, row(standard=True)]) == [row(standard=True)]
    useless = row(nb_restart=99, eps_iter=1e-5) | {"robust_acc": 0.9}
    assert quoted([useless, row()]) == quoted([row(), useless]) == [row()], "many steps that are too short hide nothing"


def test_radii_of_the_grid_are_those_that_are_typed(run, capsys):
    """No tail of digits, and a row whose step size differs by rounding only is the same evaluation."""
    assert eval_grid("digits", "Linf", 0.3) == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    assert attack(run, "--eps", 0.1 + 2e-9) == attack(run, "--eps", 0.1) == 0
    assert "already done" in capsys.readouterr().out and len(found_in(run)) == 1


def test_a_json_that_is_not_ours_is_not_overwritten(run, capsys):
    path = run / "eval_pgd_Linf.json"
    path.write_text('{"results": 5, "format": 2}')
    assert attack(run, "--eps", 0.1) == 2 and "names no attack" in capsys.readouterr().err
    assert path.read_text() == '{"results": 5, "format": 2}'


def test_the_top_is_of_what_is_quoted():
    head = Head("pgd", "Linf", "abc", "digits")
    checks = {"a": {"ok": True, "value": ""}}, {"a": {"ok": False, "value": "bad"}}
    rows = [row(n=100) | {"sanity": checks[0]}, row(n=100, eps=0.2) | {"sanity": checks[1]}, row(n=50)]
    found = content_of(head, rows)
    assert (found["n"], found["avg_rob_acc"], found["sanity"]) == (100, 0.5, checks[1])
    assert found["results"] == rows and "eps_iter" not in found["settings"]


def test_a_failed_check_counts_for_all_radii_attacked_in_that_way():
    """Though the row that carries it is not the one that is quoted at its radius."""
    failed = {"a": {"ok": False, "value": "bad"}}
    weak = {"nb_iter": 1, "nb_restart": 1}
    rows = [
        row(eps=0.1, **weak, eps_iter=0.025),
        row(eps=0.2, **weak, eps_iter=0.05) | {"sanity": failed, "robust_acc": 0.9},
    ]
    strong = row(eps=0.2, eps_iter=0.05) | {"sanity": {"a": {"ok": True, "value": ""}}}
    head = Head("pgd", "Linf", "abc", "digits")
    assert content_of(head, [*rows, strong])["sanity"] == failed
    assert content_of(head, [row(eps=0.1, eps_iter=0.025), rows[1], strong])["sanity"]["a"]["ok"]
