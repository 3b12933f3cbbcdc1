"""Results of one checkpoint side by side: whatever the order of commands, of other checkpoints; which is quoted; whose
images; and that nothing stored is lost or made weaker."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import evaluate_on_pgd_attacks
from command_lines import fails, found_in
from errors import UserError
from evaluations import pgd_attacks
from evaluations.flags import PgdFlags, parse_flags
from evaluations.results import accuracy_of, add_rows, effort, joined_checks, merged, quoted, read_file, way
from evaluations.subject import load_subject
from folders import pictures
from linear import ATTACK, CPU, SMALL, attack, save_run, subject_of
from loading.datasets import load_dataset
from records import checkpoint
from validation import stored_config

HEAD = {"attack": "pgd", "model_sha256": "abc", "dataset": "digits", "norm": "Linf"}


def content(run):
    return json.loads((run / "eval_pgd_Linf.json").read_text())


def without_checks(run):
    """Rows less the sanity checks, which are of the radius that a command attacks nearest to the training's."""
    return [{key: value for key, value in row.items() if key != "sanity"} for row in found_in(run)]


# --- commands on one folder ----------------------------------------------------------------------------------------


def test_the_order_of_commands_does_not_matter(run, tmp_path):
    """Flags included: what fell at a smaller radius is fallen, whichever came first."""
    together = shutil.copytree(run, tmp_path / "together")
    assert attack(together, "--eps", 0.05, 0.1, 0.12, "--nb_restart", 1) == 0
    expected = without_checks(together)
    for number, order in enumerate(itertools.permutations((0.05, 0.1, 0.12))):
        folder = shutil.copytree(run, tmp_path / f"order{number}")
        assert [attack(folder, "--eps", eps, "--nb_restart", 1) for eps in order] == [0, 0, 0]
        assert without_checks(folder) == expected
    flags = [row["flags"] for row in expected]
    assert all(a >= b for less, more in itertools.pairwise(flags) for a, b in zip(less, more, strict=True))


def test_stored_flags_of_another_protocol_are_not_taken(run, tmp_path):
    alone = shutil.copytree(run, tmp_path / "alone")
    assert attack(alone, "--eps", 0.1) == 0
    for more in (["--seed", 3], ["--nb_iter", 6], ["--nb_restart", 3], ["--precision", "bf16"], ["--test_size", 30]):
        assert attack(run, "--eps", 0.099, *more) == 0
    assert attack(run, "--eps", 0.1) == 0
    assert [row for row in without_checks(run) if row["eps"] == 0.1] == without_checks(alone)
    assert sorted(row["eps"] for row in found_in(run)) == [*[0.099] * 5, 0.1]


def test_nothing_is_replaced_by_a_result_in_which_fewer_images_fell(run, capsys):
    assert attack(run, "--eps", 0.1) == 0
    stronger = content(run)
    stronger["results"][0] |= {"flags": "0" * 40, "robust_acc": 0.0}
    (run / "eval_pgd_Linf.json").write_text(json.dumps(stronger))
    assert attack(run, "--eps", 0.1, "--overwrite") == attack(run, "--eps", 0.12) == 0
    assert [row["robust_acc"] for row in content(run)["results"]] == [0, 0]
    assert re.search(r"accuracy at 0.1 +0.00%", capsys.readouterr().out), "what is said is what stands there"


def test_only_what_is_missing_is_attacked(run, capsys, monkeypatch):
    begun, original = [], pgd_attacks.repeated_pgd

    def counted(*args, eps, state, **more):
        begun.extend([] if state.restart else [eps])
        return original(*args, eps=eps, state=state, **more)

    monkeypatch.setattr(pgd_attacks, "repeated_pgd", counted)
    assert attack(run, "--eps", 0.1) == attack(run, "--eps", 0.05, 0.1, 0.15) == 0
    assert begun == [0.1, 0.05, 0.15]
    figures = re.findall(r"robust accuracy at.*|sanity.*", capsys.readouterr().out)
    before = (run / "eval_pgd_Linf.json").read_bytes()
    assert attack(run, "--eps", 0.1, "--save_adv") == 0 and begun[3:] == [0.1], "for its images"
    for flags in ([0.1], [0.05, 0.1], [0.1, "--batch_size", 10], [0.1 * (1 + 1e-9)], [0.1, "--save_adv"]):
        capsys.readouterr()
        assert attack(run, "--eps", *flags) == 0 and "already done" in capsys.readouterr().out and len(begun) == 4
    assert (run / "eval_pgd_Linf.json").read_bytes() == before
    assert attack(run, "--eps", 0.05, 0.1, 0.15) == 0 and len(figures) == 6
    assert re.findall(r"robust accuracy at.*|sanity.*", capsys.readouterr().out) == figures[2:], "those that are stored"
    older = content(run)
    for row in older["results"]:  # of which fewer things were kept
        for name in ("device", "processes"):
            del row["settings"][name]
        del row["seconds"]
    (run / "eval_pgd_Linf.json").write_text(json.dumps(older))
    assert attack(run, "--eps", 0.05, 0.1, 0.15) == 0 and figures[2] in capsys.readouterr().out
    assert attack(run, "--eps", 0.1, "--overwrite") == 0 and begun[4:] == [0.1], "anew, and only what was asked for"


def test_results_of_another_checkpoint_stay(run):
    """`last.pt` beside `model_best.pt`."""
    assert attack(run, "--eps", 0.1) == 0
    best = content(run)
    other = checkpoint.load(run / "model_best.pt")
    weights = {key: 0.5 * tensor for key, tensor in other["model"].items()}
    checkpoint.save(run / "last.pt", {**other, "model": weights, "epoch": 2})
    assert attack(run / "last.pt", "--eps", 0.1) == 0
    last = content(run)
    assert last["model_sha256"] != best["model_sha256"] and last["others"] == [best]
    assert attack(run, "--eps", 0.05) == 0
    both = read_file(run / "eval_pgd_Linf.json")
    assert [[row["eps"] for row in one["results"]] for one in both] == [[0.05, 0.1], [0.1]]
    assert both[0]["model_sha256"] == best["model_sha256"]


def test_another_code_of_the_network_is_another_network(run, capsys):
    """Same weights, and a file of the same name: its rows and saved images lie beside, and are not taken for, the first's."""
    named = "--network", "net.py:net"

    def evaluated(kind, eps):
        Path("net.py").write_text(f"from linear import {kind}\n\ndef net(*shape):\n    return {kind}(*shape)\n")
        assert attack(run, "--eps", eps, *named, "--save_adv") == 0
        return capsys.readouterr().out

    assert "done" not in evaluated("Linear", 0.05) and "already done" in evaluated("Linear", 0.05)
    (first,) = found_in(run)
    out = evaluated("Negative", 0.05)
    assert "instead of the checkpoint's linear:Linear" in out and "done" not in out
    (second,) = subject_of(run, *named).rows("pgd")
    assert first in found_in(run) and second["clean_acc"] < 0.5 < first["clean_acc"]
    with Path("net.py").open("a") as file:
        file.write("from helper import FACTOR\n")
    for factor in (1, -1):  # nor with another code of what it imports
        Path("helper.py").write_text(f"FACTOR = {factor}\n")
        for done in (False, True):
            assert attack(run, "--eps", 0.05, *named) == 0 and ("already done" in capsys.readouterr().out) is done
    evaluated("Linear", 0.06)
    assert list(checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"]) == [0.06], "the other's images are not added to"
    assert attack(run, "--eps", 0.07, *named, "--standardise", "image", "--save_adv") == 0
    assert list(checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"]) == [0.07], "nor those of another standardisation"


def test_saved_images_break_what_their_flags_say(run):
    """Also what a smaller radius had broken before: it is attacked again."""
    assert attack(run, "--eps", 0.05) == attack(run, "--eps", 0.06, "--save_adv") == 0
    subject, (less, more) = subject_of(run), found_in(run)
    (x_adv,) = checkpoint.load(run / "adv_pgd_Linf.pt")["x_adv"].values()
    broken, before = (torch.tensor([flag == "0" for flag in row["flags"]]) for row in (more, less))
    assert (broken & before).sum() > 3
    assert (subject.model(x_adv).argmax(1) != subject.test.labels)[broken].all()


# --- whose images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "train"])
@pytest.mark.parametrize("changes", [{}, {"val_size": 100, "train_size": 300, "seed": 4}])
def test_images_are_those_of_the_training_run(tmp_path, changes, split):
    folder = save_run(tmp_path / "changed", **changes)
    stored = stored_config(checkpoint.load(folder / "model_best.pt")["config"])
    sizes = {"train_size": stored.train_size, "val_size": stored.val_size, "test_size": 0}
    data = load_dataset("digits", **sizes, seed=stored.seed, device=CPU)
    subject = load_subject(parse_flags(PgdFlags, ["--model", str(folder), *ATTACK, "--split", split]), CPU)
    assert torch.equal(subject.test.images, getattr(data, split).images)
    assert torch.equal(subject.test.numbers, getattr(data, split).numbers)
    assert attack(folder, "--eps", 0.1) == attack(folder, "--eps", 0.1, "--split", split) == 0
    rows = content(folder)["results"]
    assert [(row["split"], row["n"]) for row in rows] == [("test", 40), (split, 40)] and quoted(rows) == rows[:1]


@pytest.mark.parametrize("dataset", ["digits", "imagefolder"])
def test_validation_images_are_those_of_the_check(dataset, tmp_path):
    """With `check_size` the first so many, in the order of training: also in an image folder, where it is no selection."""
    pictures(tmp_path / "pictures", 20, 3, ("ant", "bee"), size=8)
    changes = {"dataset": dataset, "data_root": "pictures", "val_size": 12, "check_size": 5}
    run = save_run(tmp_path / "run")
    saved = checkpoint.load(run / "model_best.pt")
    config = stored_config({**saved["config"], **changes})
    if dataset == "imagefolder":
        saved["model"] = {"linear.weight": torch.zeros(2, 3 * 64), "linear.bias": torch.zeros(2)}
    checkpoint.save(run / "model_best.pt", {**saved, "config": config.to_dict()})
    val = load_dataset(dataset, "pictures", val_size=12, test_size=0, seed=config.seed, device=CPU).val
    for flags, count in (([], 5), (["--test_size", "3"], 3), (["--test_size", "9"], 9)):
        subject = load_subject(parse_flags(PgdFlags, ["--model", "run", *ATTACK, "--split", "val", *flags]), CPU)
        assert torch.equal(subject.test.numbers, val.numbers[:count])
        assert torch.equal(subject.test.images, val.images[:count])


def test_images_that_nobody_knows(run, capsys):
    for flags, parts in (
        (["--split", "val", "--test_size", 201], ["--test_size 201", "200"]),
        (["--split", "val", "--dataset", "mnist"], ["--split val", "trained on"]),
        (["--split", "train", "--dataset", "mnist"], ["training images", "trained on"]),
    ):
        fails(capsys, evaluate_on_pgd_attacks.main, ["--model", run, *SMALL[:-2], *flags], *parts)
    assert not list(run.glob("eval_*"))


# --- rows ----------------------------------------------------------------------------------------------------------


def row(eps=0.1, n=4, split="test", flags="0011", **settings):
    settings = {"nb_iter": 10, "nb_restart": 2, **settings}
    found = {"clean_acc": 1.0, "robust_acc": flags.count("1") / len(flags), "flags": flags, "images": "abc"}
    found |= {"clean_ci95": [0.5, 1.0], "ci95": [0.0, 1.0], "settings": settings}
    return {"eps": eps, "n": n, "split": split, "seed": 0, **found}


def test_the_row_to_quote():
    most_images, hardest = row(n=1000), row(nb_restart=5)
    assert quoted([most_images, hardest]) == quoted([hardest, most_images]) == [most_images]
    assert quoted([row(), hardest, row(nb_iter=20)]) == [hardest]
    assert quoted([row(nb_iter=30), hardest]) == [row(nb_iter=30)]
    assert quoted([row(eps=0.2), row(eps=0.1 + 1e-9), row(eps=0.1)]) == [row(eps=0.1), row(eps=0.2)]
    assert quoted([row(n=9999, split="val"), row()]) == [row()] and quoted([row(split="val")]) == []
    assert quoted([row(standard=False, nb_restart=99), row(standard=True)]) == [row(standard=True)]
    useless = row(nb_restart=99, eps_iter=1e-5, flags="0111")
    assert quoted([useless, row()]) == quoted([row(), useless]) == [row()], "many steps that are too short hide nothing"
    assert effort(row(attacks=["a", "b"])) == (True, 40)
    assert way(row(eps_iter=0.025)) == way(row(eps=0.2, eps_iter=0.05, device="cuda"))


PAPER = [  # radii, and their step in units of the radius
    ("mnist", "Linf", [0.1, 0.2, 0.3, 0.4], 1 / 40),
    ("mnist", "L2", [1, 2, 3, 4], 1 / 4),
    ("cifar10", "Linf", [4 * k / 255 for k in range(1, 9)], 1 / 4),
    ("digits", "Linf", [0.05, 0.1, 0.15, 0.2, 0.25, 0.3], 1 / 4),
]


@pytest.mark.parametrize(("dataset", "norm", "radii", "step"), PAPER)
def test_the_papers_radii_and_steps(run, dataset, norm, radii, step):
    subject = subject_of(run)
    there = replace(subject, dataset=dataset, norm=norm)
    rows, _ = pgd_attacks.rows_asked(parse_flags(PgdFlags, ["--model", "run", "--eps", "grid"]), there, [])
    assert [row["eps"] for row in rows] == pytest.approx(radii, abs=0 if dataset == "digits" else 1e-12)
    assert [row["settings"]["eps_iter"] / row["eps"] for row in rows] == pytest.approx([step] * len(radii))
    assert sum(rows[0]["settings"]["losses"].values()) == rows[0]["settings"]["nb_restart"] == 10
    few, _ = pgd_attacks.rows_asked(parse_flags(PgdFlags, ["--model", "run", "--nb_iter", "5"]), there, [])
    assert few[0]["settings"]["eps_iter"] == pytest.approx(few[0]["eps"] / 2), "five steps that cross the ball"


def test_one_is_not_the_whole_range_beside_255ths(run):
    there = replace(subject_of(run), dataset="cifar10", norm="Linf")
    with pytest.raises(UserError, match=r"--eps 1: .* write 1/255"):
        there.radii([1.0, 2.0, 8.0])
    assert there.radii([2.0, 8.0])[0] == [2 / 255, 8 / 255] and there.radii([1.0])[0] == [1.0]


def test_pgd_that_is_done_still_says_what_another_attack_found(run, capsys):
    assert attack(run, "--eps", 0.1) == 0
    (row,) = found_in(run)
    subject_of(run).add_rows(
        "autoattack", [{**row, **accuracy_of("0" * row["n"]), "settings": {"overrides": row["settings"]["overrides"]}}]
    )
    capsys.readouterr()
    assert attack(run, "--eps", 0.1) == 0
    assert re.search(r"already done[\s\S]*PGD overestimates by .* AutoAttack leaves 0.0%", capsys.readouterr().out)


def test_checks_of_several_rows():
    good, bad = {"a": {"ok": True, "value": ""}}, {"a": {"ok": False, "value": "bad"}}
    assert joined_checks([row(), row() | {"sanity": good}, row() | {"sanity": bad}]) == bad


def test_warnings_that_differ_in_numbers_are_said_once():
    square = "on one shard: Square took {} % # more."
    assert merged([square.format(3.06), "2 odd", square.format("1.00"), square.format(10)]) == [
        "on one shard: Square took 1.00 to 10 % # more. (3 such warnings)",
        "2 odd",
    ]
    assert merged(["5 of 5", "5 of 5"]) == ["5 of 5 (2 such warnings)"] and merged([]) == []


def test_rows_replace_their_own_kind_alone_and_never_a_stronger_one(tmp_path):
    path = tmp_path / "eval_pgd_Linf.json"
    first = [row(), row(eps=0.2), row(nb_iter=11), row(device="cuda", eps=0.3)]
    first[1].pop("images")  # as of earlier versions
    assert add_rows(path, HEAD, first) == json.loads(path.read_text())["results"]
    more = [row(flags="0001"), row(eps=0.2 * (1 + 1e-9), flags="0111"), row(eps=0.3, flags="0101")]
    again = add_rows(path, HEAD, more)
    assert [(one["eps"], one["flags"]) for one in again] == [(0.1, "0001"), (0.1, "0011"), (0.2, "0011"), (0.3, "0101")]
    far = {"n": 2, "distances": [1.0, None], "mean": None, "quartiles": [None] * 3, "mean_of_found": 1.0}
    search = {key: value for key, value in row().items() if key not in ("eps", "robust_acc", "flags")} | far
    nearer = search | {"mean_of_found": 0.5}
    for new, kept in ((search, search), (nearer, nearer), (search, nearer)):
        assert add_rows(tmp_path / "eval_ddn_Linf.json", HEAD, [new]) == [kept]


DAMAGED = [{"format": 1}, {"norm": 3}, {"results": 5}, {"results": [{}]}, {"others": 3}]


@pytest.mark.parametrize("damage", [*DAMAGED, {"results": [row() | {"robust_acc": 0.75}]}], ids=str)  # by hand
def test_a_json_that_is_not_ours_is_not_overwritten(run, capsys, damage):
    path, ours = run / "eval_pgd_Linf.json", {**HEAD, "format": 2, "results": [row()]}
    path.write_text(json.dumps(ours))
    assert read_file(path) == [ours]
    path.write_text(json.dumps(ours | damage))
    assert attack(run, "--eps", 0.1) == 2 and "move it away first" in capsys.readouterr().err
    assert path.read_text() == json.dumps(ours | damage)
