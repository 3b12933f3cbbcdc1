"""A folder of one's own pictures: what a run keeps of it, and what is refused, said or kept apart where another one comes."""

import json
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

import evaluate_on_pgd_attacks
import evaluate_on_transfer
import hubconf
import train
from command_lines import fails, files, rows
from config import BY_IMAGES, PRESETS, for_so_many
from errors import UserError
from evaluations.results import quoted
from flags import parse_train
from folders import images, pictures
from loading.datasets import load_dataset, load_test
from records import checkpoint
from reports import plots
from reports.model_card import card
from reports.runs import frame, read_run, training_command
from validation import Kind, stored_config

CPU = torch.device("cpu")
SMALL = shlex.split(
    "--dataset imagefolder --norm Linf --method std --network lenet5 --device cpu --batch_size 16 --nb_iter 2 --lr 0.01"
)
FOUND = ("classes", "image_shape", "training_files", "test_files")


def trained(folder, *flags, data="pictures"):
    """The run folder of three steps on these pictures."""
    assert train.main([*SMALL, "--data_root", str(data), "--max_steps", "3", "--savepath", str(folder), *flags]) == 0
    return Path(folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """pictures/ of ants, bees and cats, other/ of as many with the same names, and a network in run/, trained on the first."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, brighter in (("pictures", 0), ("other", 40)):
            for path in sorted(pictures(folder / name, 12, 4, size=16).rglob("*.png")):
                Image.fromarray(np.asarray(Image.open(path)) + np.uint8(brighter)).save(path)
        trained("run")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of them, with a network that was trained on the copy's pictures."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for file in ("model_best.pt", "last.pt"):
        content = checkpoint.load(Path("run", file))
        content["config"]["data_root"] = str(tmp_path / "pictures")
        checkpoint.save(Path("run", file), content)
    return tmp_path


ATTACK = ["--device", "cpu", "--nb_iter", "2", "--nb_restart", "2"]


def attack(*flags, run="run"):
    return evaluate_on_pgd_attacks.main(["--model", str(run), *ATTACK, *map(str, flags)])


def content(run="run"):
    return json.loads(Path(run, "eval_pgd_Linf.json").read_text())


# --- what is kept --------------------------------------------------------------------------------------------------


def test_config_checkpoint_and_state_say_what_the_images_were(made):
    places = (
        json.loads((made / "run/config.json").read_text()),
        *(checkpoint.load(made / "run" / name)["config"] for name in ("model_best.pt", "last.pt")),
    )
    for values in places:
        config = stored_config(values)
        assert config.classes == config.class_names == ("ant", "bee", "cat") and config.image_shape == (3, 16, 16)
        assert Path(config.data_root) == made / "pictures" and all(getattr(config, name) for name in FOUND)
    assert PRESETS["cifar10", "L2"].class_names[:2] == ("airplane", "automobile"), "the data set's name settles them"
    for odd in ({"classes": [1]}, {"classes": 3}, {"image_shape": ["a"]}, {"by_images": [None]}):
        with pytest.raises(UserError, match="mend it"):
            stored_config({**places[0], **odd})


def test_the_digest_of_a_folder_knows_names_and_content(tmp_path):
    def of(folder):
        return load_test("imagefolder", str(folder), test_size=3, device=CPU).folder.content

    first, second = (pictures(tmp_path / name, 2, 4, size=8) for name in ("first", "second"))
    whole = of(first)
    assert whole == of(second), "wherever it lies"
    path = second / "test/bee/002.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert of(second) != whole
    path.write_bytes((first / "test/bee/002.png").read_bytes())
    assert of(second) == whole
    path.rename(path.with_name("0020.png"))
    assert of(second) != whole


def test_names_elsewhere(made, tmp_path, monkeypatch):
    """The hub's attribute, and the metadata of exports."""
    monkeypatch.chdir(tmp_path)
    assert "its classes, in the order of the logits: ant, bee, cat |" in card(made / "run")
    assert hubconf.mma(str(made / "run")).classes == ("ant", "bee", "cat")
    assert hubconf.mma("digits-Linf-MMA-0.3-sd0").classes == tuple("0123456789")
    from scripts import export

    reading = pytest.importorskip("safetensors").safe_open
    assert export.main([str(made / "run"), "--to", "safetensors"]) == 0
    with reading("runs/run.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["ant", "bee", "cat"]
        assert stored_config(json.loads(file.metadata()["config"])).image_shape == (3, 16, 16)
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert export.main([str(made / "run"), "--to", "onnx"]) == 0
    told = {one.key: one.value for one in onnx.load("runs/run.onnx").metadata_props}
    assert json.loads(told["classes"]) == ["ant", "bee", "cat"]


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        (("a", "b"), ("a", "b"), ""),
        (None, ("a", "b"), ""),
        (("a", "b"), ("a", "c"), "other classes (only there: b; only here: c)"),
        (("b", "a"), ("a", "b"), "other classes (the same names in another order)"),
        (("a", "e\u0301"), ("a", "\u00e9"), ""),
        (tuple("abcdefghijkl"), ("z",), "other classes (only there: a, b, c, d, e, f, g, h and 4 more; only here: z)"),
    ],
)
def test_how_classes_differ(there, here, said):
    assert Kind(there, None).unlike(Kind(here, (3, 8, 8))) == said
    sizes = Kind(there, (1, 8, 8)).unlike(Kind(here, (3, 8, 8)))
    assert sizes == (said or "images of 1x8x8, here they are 3x8x8")


def rename_class(folder):
    for part in ("train", "test"):
        (folder / part / "cat").rename(folder / part / "dog")


def add_one(folder):
    shutil.copy(folder / "train/ant/000.png", folder / "train/ant/zz.png")


def enlarge(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).resize((20, 20)).save(path)


def make_grey(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)


@pytest.mark.parametrize(
    ("change", "flags", "parts"),
    [
        (rename_class, "", ["--data_root", "run was trained on other classes (only there: cat; only here: dog)"]),
        (enlarge, "", ["images of 3x16x16, here they are 3x20x20", "give --image_size"]),
        (make_grey, "", ["images of 3x16x16, here they are 1x16x16: name a folder of such images"]),
        (add_one, "--split val", ["--split val", "added, removed or changed", "leave --split out"]),
        (add_one, "--split train", ["--split train", "training images", "restore them"]),
        (lambda folder: shutil.move(folder, "moved"), "", ["pictures/test: not there", "--data_root"]),
        (lambda folder: None, "--dataset digits --image_size 8", ["--image_size 8", "leave it out"]),
    ],
)
def test_what_an_evaluation_refuses(here, capsys, change, flags, parts):
    """In one line, and nothing is written: not the run's images, its classes or its split."""
    change(here / "pictures")
    before = files(here / "run")
    fails(capsys, evaluate_on_pgd_attacks.main, ["--model", "run", *ATTACK, *flags.split()], *parts)
    assert files(here / "run") == before


def test_what_an_evaluation_does_not_refuse(here):
    """A folder that lies elsewhere, and images of another size that are brought to that of training."""
    enlarge(here / "other")
    shutil.move("pictures", "moved")
    assert attack("--data_root", "moved", "--split", "val") == attack("--data_root", "moved") == 0
    assert attack("--data_root", "other", "--image_size", 16) == 0
    assert [row["split"] for row in content()["results"]] == ["test", "other", "val"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_class, "other classes (only there: cat; only here: dog)"),
        (add_one, "images, and there are"),
        (
            lambda folder: (folder / "train/ant/000.png").rename(folder / "train/ant/0.png"),
            "other images than those in --data_root now",
        ),
    ],
)
def test_what_resume_refuses(here, capsys, change, said):
    change(here / "pictures")
    before = files(here / "run")
    going_on = [*SMALL, "--data_root", "pictures", "--savepath", "run", "--resume", "--max_steps", "4"]
    fails(capsys, train.main, going_on, "--resume: run was trained on", said, "restore the data")
    assert files(here / "run") == before


def test_resume_says_that_the_test_images_have_changed(here, capsys):
    going_on = [*SMALL, "--data_root", "pictures", "--savepath", "run", "--resume", "--max_steps"]
    assert train.main([*going_on, "4"]) == 0 and "test images have changed" not in capsys.readouterr().err
    (here / "pictures/test/ant/000.png").unlink()
    assert train.main([*going_on, "5"]) == 0 and "its test images have changed" in capsys.readouterr().err


def test_pretrained_says_that_classes_are_others(here, capsys):
    trained("again", "--pretrained", "run")
    assert "--pretrained" not in capsys.readouterr().out
    rename_class(here / "other")
    trained("further", "--pretrained", "run", data="other")
    assert "--pretrained: trained on other classes (only there: cat; only here: dog)" in capsys.readouterr().out


def test_another_data_set_s_classes_are_said(here, capsys):
    for file in ("model_best.pt", "last.pt"):
        saved = checkpoint.load(Path("run", file))
        checkpoint.save(Path("run", file), {**saved, "config": {**saved["config"], "dataset": "cifar10"}})
    assert attack("--dataset", "imagefolder", "--data_root", "pictures") == 0
    assert "--dataset imagefolder: run was trained on other" not in capsys.readouterr().out, "its own names win"
    saved["config"]["classes"] = None
    checkpoint.save(Path("run/model_best.pt"), saved | {"config": {**saved["config"], "dataset": "cifar10"}})
    assert attack("--dataset", "imagefolder", "--data_root", "pictures") == 0
    assert "--dataset imagefolder: run was trained on other classes (only there: airplane" in capsys.readouterr().out


# --- whose images a result is of ---------------------------------------------------------------------------------------


def figures():
    """What tables say of the run."""
    table = frame([read_run(Path("run"))])
    return [(row.attack, row.eps, row.n, row.robust, row.row["images"]) for row in table.itertuples()]


def test_results_on_another_folder_are_kept_apart(here, capsys):
    """Of as many images with the same names, also when they are attacked harder, and at more radii."""
    assert attack("--eps", 0.02) == 0
    own, whole = figures(), content()["results"]
    assert len(own) == 1
    capsys.readouterr()
    assert attack("--eps", 0.02, 0.1, "--data_root", "other", "--nb_restart", 4) == 0
    assert (
        "--data_root other: not the test images of its training; results on them stand apart" in capsys.readouterr().out
    )
    assert figures() == own and [row for row in content()["results"] if row["split"] == "test"] == whole
    assert {row["images"] for row in quoted(content()["results"], "other")}.isdisjoint({row["images"] for row in whole})
    before = files(here / "run")
    assert attack("--eps", 0.02) == attack("--eps", 0.02, 0.1, "--data_root", "other", "--nb_restart", 4) == 0
    assert files(here / "run") == before, "both are done"


def test_another_working_directory_takes_the_same_pictures(here, tmp_path, monkeypatch):
    """Though other ones lie there under the name that was typed."""
    assert attack() == 0
    (tmp_path / "away").mkdir()
    shutil.move("other", "away/pictures")
    shutil.copytree("away/pictures", "away/data")
    before = files(here / "run")
    monkeypatch.chdir(tmp_path / "away")
    assert attack(run=here / "run") == 0
    assert files(here / "run") == before


def test_of_a_network_that_does_not_say_it_the_first_ones_are_its_own(here, capsys):
    """Written before the names were kept, or by another program: said, and two folders are never mixed."""
    saved = checkpoint.load(Path("run/model_best.pt"))
    del saved["config"]["by_images"]
    before = {**saved, "config": {name: value for name, value in saved["config"].items() if name not in FOUND}}
    checkpoint.save(Path("run/model_best.pt"), before)
    Path("theirs").mkdir()
    torch.save(saved["model"], "theirs/net.pt")
    theirs = ["--dataset", "imagefolder", "--norm", "Linf", "--network", "lenet5", "--eps", 0.02, "--data_root"]
    for run, flags in (("run", ["--eps", 0.02, "--data_root"]), ("theirs/net.pt", theirs)):
        for folder, split in (("pictures", "test"), ("other", "other")):
            capsys.readouterr()
            assert attack(*flags, folder, run=run) == 0
            said = capsys.readouterr().out
            assert f"--model: {run} does not name its classes: they go by position" in said
            assert ("stand apart" in said) == (split == "other")
        found = content(Path(run).parent if run.endswith(".pt") else run)["results"]
        assert [row["split"] for row in found] == ["test", "other"]
        assert attack(*flags, "other", "--test_size", 4, run=run) == 0  # of another number of images too
        found = content(Path(run).parent if run.endswith(".pt") else run)["results"]
        assert [row["split"] for row in found if row["n"] == 4] == ["other"]


def broken(row):
    return {**row, "robust_acc": 0.0, "flags": "0" * row["n"]}


def test_the_run_s_own_data_set_is_quoted_whichever_came_last(here):
    """A network of colour images, evaluated on a folder and on CIFAR-10, say."""
    assert attack() == 0
    own, before = figures(), content()
    head = {**before, "dataset": "cifar10", "results": [broken(row) for row in before["results"]]}
    Path("run/eval_pgd_Linf.json").write_text(json.dumps({**head, "others": [before]}))
    assert figures() == own


def test_transfer_keeps_them_apart(here):
    trained("second", "--seed", "1")
    flags = ["--device", "cpu", "--eps", "0.05", "--nb_iter", "2", "--nb_restart", "2"]
    for data in ([], ["--data_root", "other"]):
        assert evaluate_on_transfer.main(["run", "second", *flags, *data]) == 0
    for run in ("run", "second"):
        found = json.loads(Path(run, "eval_transfer_Linf.json").read_text())["results"]
        assert [row["split"] for row in found] == ["test", "other"]


def test_pictures_name_the_classes(here):
    figure, _ = plots.draw_examples(
        dict.fromkeys(("data_root", "dataset", "norm", "network", "max_eps")) | {"run": "run", "count": 3}
    )
    titles = [panel.get_title() for panel in figure.axes]
    assert titles[:3] == ["label ant", "label bee", "label cat"]
    assert {title.removeprefix("predicted\n") for title in titles[-3:]} <= {"ant", "bee", "cat"}


# --- sizes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unequal(tmp_path, monkeypatch):
    """Pictures of many sizes, one of them grey."""
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / "pictures", 12, 4, size=16)
    draws = np.random.default_rng(0)
    for path in sorted(folder.rglob("*.png")):
        height, width = draws.integers(14, 40, 2)
        Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    images(1, 30, mode="L")[0].save(folder / "test/ant/000.png")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_resized_and_cropped_as_torchvision_does(unequal, streaming):
    data = load_dataset("imagefolder", "pictures", seed=0, device=CPU, val_size=3, image_size=16, streaming=streaming)
    assert data.about.endswith("; the shorter side resized to 16 pixels, then the middle cut out")
    found = data.test.batch(torch.arange(12)).x
    for image, path in zip(found, sorted((unequal / "test").rglob("*.png")), strict=True):
        whole = functional.to_tensor(Image.open(path).convert("RGB"))
        wanted = functional.center_crop(functional.resize(whole, [16], antialias=True), [16])
        assert image.shape == (3, 16, 16) and (image - wanted).abs().max() < 2 / 255


def test_a_run_on_pictures_of_many_sizes(unequal, capsys):
    """The error names the flag; the evaluator takes the size from the checkpoint; a run that goes on must have it."""
    argv = [*SMALL, "--data_root", "pictures", "--max_steps", "3", "--savepath", "run"]
    fails(capsys, train.main, argv, "pixels where", "give --image_size S")
    trained("run", "--image_size", "16")
    assert "then the middle cut out" in capsys.readouterr().out
    assert attack() == attack("--split", "val") == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["image_size"], config["image_shape"]) == (16, [3, 16, 16])
    fails(capsys, train.main, [*argv, "--resume"], "--image_size None here, 16 there")
    digits = [*argv[2:], "--dataset", "digits", "--savepath", "x", "--image_size", "8"]
    fails(capsys, train.main, digits, "--image_size 8", "leave it out")


# --- settings that follow from the number of images ----------------------------------------------------------------------


def config_of(*flags):
    return parse_train(["--dataset", "imagefolder", "--norm", "Linf", "--method", "std", *flags])[0]


@pytest.mark.parametrize("count", [20, 146, 273, 999, 1280, 5000, 39_999])
def test_a_small_folder_has_settings_of_its_own(count):
    """A batch that an epoch has ten of, and no last one of a single image; the rate by the batch, as many epochs as published."""
    usual, fit = config_of(), for_so_many(config_of(), count)
    assert 16 <= fit.batch_size <= 128 and count % fit.batch_size != 1
    assert fit.batch_size < 18 or count // fit.batch_size >= 10
    assert 2000 <= fit.max_steps <= usual.max_steps
    epochs = fit.max_steps * fit.batch_size / count
    assert fit.max_steps == 2000 or epochs == pytest.approx(usual.max_steps * 128 / 45_000, rel=0.05)
    assert [step / fit.max_steps for step, _ in fit.lr] == pytest.approx([0, 0.4, 0.6, 0.8], abs=1e-3)
    for (_, rate), (_, other) in zip(fit.lr, usual.lr, strict=True):
        assert rate == pytest.approx(other * fit.batch_size / 128, rel=1e-3)
    assert {name for name in vars(usual) if getattr(usual, name) != getattr(fit, name)} <= set(BY_IMAGES)
    assert for_so_many(fit, count) == replace(fit, lr=for_so_many(fit, count).lr)


def test_a_large_folder_a_recipe_and_given_flags_keep_theirs():
    usual, fast = config_of(), config_of("--recipe", "fast")
    assert for_so_many(usual, 45_000) == for_so_many(usual, 10**6) == usual
    assert for_so_many(fast, 146) == fast
    assert fast.by_images == parse_train(["--dataset", "digits", *SMALL[2:]])[0].by_images == ()
    given = for_so_many(config_of("--batch_size", "128", "--max_steps", "50000", "--lr", "0.3"), 146)
    assert (given.batch_size, given.max_steps, given.lr) == (128, 50_000, ((0, 0.3),))
    part = for_so_many(config_of("--batch_size", "32"), 146)
    assert (part.batch_size, part.max_steps, part.lr[0]) == (32, 2000, (0, 0.075))
    short = for_so_many(config_of("--max_steps", "3", "--one_cycle"), 146)
    assert (short.batch_size, short.cycle_steps) == (16, 3) and short.lr == ((0, 0.0375),)
    assert for_so_many(config_of("--one_cycle"), 146).cycle_steps == 2000, "which follows from the steps"
    for steps in (1, 2, 7):
        rates = for_so_many(config_of("--max_steps", str(steps)), 146).lr
        assert rates[0] == (0, 0.0375) and all(a < b for (a, _), (b, _) in pairwise(rates))


def test_they_are_said_stored_and_the_same_when_it_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures", 54, 18, size=16)
    argv = shlex.split(
        "--dataset imagefolder --data_root pictures --norm Linf --method std --network lenet5 --device cpu"
    )
    argv += ["--nb_iter", "2", "--savepath", "run", "--max_steps"]
    assert train.main([*argv, "4"]) == 0
    said = capsys.readouterr().out
    assert "--batch_size 16, --lr 0:0.0375,2:0.01125,3:0.001125: from the number of training images, 146" in said
    assert "warning: 16 validation images: an accuracy on them is known to ± 24 points" in said
    assert "docs/your-network.md" in said and "cropped and mirrored; --no-flip or --no-augment where that" in said
    stored = stored_config(json.loads(Path("run/config.json").read_text()))
    assert (stored.batch_size, stored.max_steps, stored.by_images) == (16, 4, ("batch_size", "lr"))
    assert train.main([*argv, "6", "--resume"]) == 0
    again = stored_config(json.loads(Path("run/config.json").read_text()))
    assert again == replace(stored, max_steps=6, resume=True) and rows(Path("run"))[-1]["step"] == 6
    assert "from the number" not in capsys.readouterr().out
    fails(capsys, train.main, [*argv, "8", "--resume", "--batch_size", "128"], "--batch_size 128 here, 16 there")
    large = for_so_many(config_of("--batch_size", "128"), 146)
    assert "--batch_size 128" in training_command(large, "x")
    assert "--batch_size" not in training_command(config_of(), "x")
    Path("large").mkdir()
    Path("large/config.json").write_text(json.dumps(large.to_dict()))
    kept, _ = parse_train(["--config", "large", "--data_root", "pictures"])
    assert for_so_many(kept, 10).batch_size == 128, "the same again, on a folder of any size"
    for command in (training_command(again, "x"), "python train.py --config run --data_root pictures --savepath x"):
        once_more = for_so_many(parse_train(shlex.split(command)[2:])[0], 10)
        assert [getattr(once_more, name) for name in BY_IMAGES] == [getattr(again, name) for name in BY_IMAGES]
