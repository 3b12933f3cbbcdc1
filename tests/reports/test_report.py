"""The report: figures and intervals against closed forms and simulation, what is missing, names that are HTML, bad input."""

import base64
import io
import json
import math
import re
import shlex
import shutil
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import evaluate_on_autoattack
import evaluate_on_minimum_norm
from command_lines import fails
from config import Config
from evaluations.flags import parse_pgd
from flags import parse_train
from records.run_folder import RunFolder
from report_runs import ODD, RADII, TRAINED, flags, make_run, result, write_evaluation
from reports import make_report, published, report_compare, report_examples, report_figures, report_training
from reports.report_data import benchmarks, read_entries
from reports.report_figures import Row
from reports.report_json import in_page
from reports.results import read_run
from support import ROOT

PARSERS = {
    "train.py": parse_train,
    "evaluate_on_pgd_attacks.py": parse_pgd,
    "evaluate_on_autoattack.py": evaluate_on_autoattack.parse,
    "evaluate_on_minimum_norm.py": evaluate_on_minimum_norm.parse,
}


class Page(HTMLParser):
    """What a browser would make of the page: tags, text outside scripts, the cells of each table row by run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.rows, self.inside, self.links = [], [], {}, None, []
        self.row = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.inside = tag if tag in ("script", "style") else None
        if tag == "tr":
            self.row = self.rows.setdefault(attrs["data-id"], []) if "data-id" in attrs else None
        if tag in ("td", "th") and self.row is not None:
            self.row.append([])

    def handle_endtag(self, tag):
        self.inside = None
        if tag == "tr":
            self.row = None

    def handle_data(self, data):
        if self.inside is None:
            self.text.append(data)
            if self.row:
                self.row[-1].append(data)


def made(tmp_path, *argv):
    out = tmp_path / "report.html"
    assert make_report.main([*map(str, argv), "--out", str(out)]) == 0
    return out.read_text()


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)[1])


def report_of(*folders):
    return benchmarks(read_entries([read_run(folder) for folder in folders]))


# --- figures -------------------------------------------------------------------------------------------------------


def test_averages_and_their_intervals():
    """Against each image's own average, written out; clean flags are not stored, their number is."""
    rng = np.random.default_rng(0)
    clean = rng.random(300) < 0.9
    stands = [clean & (rng.random(300) < share) for share in (0.8, 0.5)]
    texts = ["".join("1" if s else "0" for s in flags) for flags in stands]
    rows = [{"eps": e, "robust_acc": t.count("1") / 300, "flags": t} for e, t in zip((0.1, 0.2), texts, strict=True)]
    evaluation = {"n": 300, "clean_acc": clean.mean(), "results": rows}
    avg, robust = report_figures.averages(evaluation, report_figures.quoted(evaluation))
    for figure, each in ((avg, np.mean([clean, *stands], axis=0)), (robust, np.mean(stands, axis=0))):
        half = 1.96 * each.std(ddof=1) / math.sqrt(300)
        assert figure == pytest.approx((each.mean(), each.mean() - half, each.mean() + half), abs=1e-5)
    rows[0]["flags"] = ""
    assert report_figures.averages(evaluation, report_figures.quoted(evaluation))[1] == (robust.value, None, None)


def test_intervals_of_quartiles_cover():
    """Of 400 samples of 80 uniform numbers about 95 % enclose the true quartile; what is not found counts as far away."""
    rng = np.random.default_rng(1)
    for number, q in enumerate(report_figures.QUARTILES):
        found = [report_figures.quartiles_of(rng.random(80))[number] for _ in range(400)]
        assert 0.92 <= np.mean([f.low <= q <= f.high for f in found]) <= 0.995
    low, middle, high = report_figures.quartiles_of([0.1, 0.2, 0.3, None, None, None])
    assert low.value == pytest.approx(0.225) and middle is None and high is None


def test_mcnemar_is_the_binomial_test():
    for b, c in [(0, 0), (3, 0), (7, 7), (10, 24), (150, 90)]:
        exact = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        assert report_compare.mcnemar(b, c) == pytest.approx(exact)


def test_interval_of_the_difference_covers():
    """Of 600 pairs drawn with known discordances about 95 % enclose the true difference."""
    rng = np.random.default_rng(2)
    inside = []
    for b, c in rng.multinomial(300, [0.12, 0.05, 0.83], 600)[:, :2]:
        low, high = report_compare.difference_interval(b, c, 300)
        inside.append(low <= 0.07 <= high)
    assert 0.93 <= np.mean(inside) <= 0.975


def test_pairs_image_by_image():
    """On the images that both saw; not where a smaller set is not the beginning of the larger one."""
    first = [Row(0.1, None, 6, "110110"), Row(0.2, None, 6, "")]
    second = [Row(0.1, None, 4, "0111"), Row(0.2, None, 4, "0000"), Row(0.3, None, 4, "0000")]
    (pair,) = report_compare.compare(first, second, same_order=True)
    assert pair[:6] == (0.1, 4, 0.75, 0.75, 1, 1) and pair.p == 1.0
    assert report_compare.compare(first, second, same_order=False) == []


def test_pairs_only_of_the_same_images():
    row = Row(0.1, None, 4, "1101", "test", "a")
    for other, same in (
        (row._replace(images=None), True),
        (row._replace(images="b"), False),
        (row._replace(split="val"), False),
        (row._replace(n=3, flags="110", images="b"), True),  # a digest is of all of them
    ):
        assert bool(report_compare.compare([row], [other], same_order=True)) is same


def test_rows_say_their_own_images_and_settings(tmp_path):
    """The newer form of the JSON: n, split, digest and settings stand with each row."""
    strong = {"nb_restart": 10, "nb_iter": 100}
    rows = [result(0.1, 0.9, 200) | {"n": 200, "split": "val", "images": "d", "settings": strong}]
    (row,) = report_figures.quoted({"n": 200, "clean_acc": 0.95, "results": rows})
    assert (row.robust.value, row.split, row.images) == (0.9, "val", "d")
    folder = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0", accuracies=None)
    write_evaluation(folder, "pgd", "Linf", results=rows)
    (line,) = report_of(folder)[0].lines
    assert not line.rows, "tables and report quote test images only"


def test_comparison_in_the_page(tmp_path):
    one = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0", (0.9, 0.7, 0.3), seed=0)
    other = make_run(tmp_path / "digits-Linf-PGD-0.2-sd0", (0.8, 0.7, 0.1), seed=1)
    (benchmark,) = report_of(one, other)
    pairs = benchmark.pairs["pgd"]["r0-r1"]
    a, b = (np.array(list(flags(0.9, seed=0))), np.array(list(flags(0.8, seed=1))))
    only = int(((a == "1") & (b == "0")).sum()), int(((a == "0") & (b == "1")).sum())
    eps, n, *_, first, second = pairs[0][:6]
    assert (eps, n, first, second) == (0.1, 200, *only)
    assert pairs[0][8] == pytest.approx(binomtest(only[0], sum(only), 0.5).pvalue, rel=1e-3)


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "each"),
    [("mma", 53), ("omma", 53), ("std", 1), ("pgd", 41), ("pgdls", 41), ("trades", 42), ("own", None)],
)
def test_passes_that_the_settings_ask_for(method, each):
    """53 an example is the paper's: 40 steps, 11 of the search, clean and mixed."""
    config = {"method": method, "nb_iter": 40, "num_search_steps": 10, "batch_size": 50}
    rows = [
        {"kind": "train", "step": 100, "steps_per_second": 2},
        {"kind": "train", "step": 200, "steps_per_second": 4},
    ]
    cost = report_training.cost(config, rows)
    assert cost == (each and 200 * 50 * each, False, pytest.approx((50 + 25) / 60))
    counted = report_training.cost(config, [*rows, {"kind": "train", "step": 200, "passes": 123.0}])
    assert counted[:2] == (123.0, True)


def test_curves_are_thinned_and_keep_their_ends():
    rows = [{"kind": "train", "step": step, "clean_loss": 1 / step, "passes": 53 * step} for step in range(1, 5001)]
    curve = report_training.curves(rows)["train clean_loss"]
    assert len(curve["step"]) == report_training.MOST_POINTS and (curve["step"][0], curve["step"][-1]) == (1, 5000)
    assert curve["passes"][-1] == 53 * 5000 and curve["value"][-1] == 0.0002


def test_margins_by_epoch(tmp_path):
    """Every image is in a bin or wrong; the runs of a benchmark share their axis; every epoch has its median."""
    folders = [
        make_run(tmp_path / f"digits-Linf-MMA-0.3-sd{seed}", margins=True, seed=seed, checks=checks)
        for seed, checks in ((0, 6), (1, 90))
    ]
    entries = read_entries([read_run(folder) for folder in folders])
    found = json.loads(in_page(benchmarks(entries), entries))["margins"]
    for entry, folder in zip(entries, folders, strict=True):
        margins, one = RunFolder(folder)._read_margins(1200), found[entry.id]
        kept = [round(epoch) - 1 for epoch in one["epochs"]]
        assert len(kept) == min(len(margins), report_training.MOST_CHECKS) and kept[-1] == len(margins) - 1
        for shares, wrong, median, check in zip(one["shares"], one["wrong"], one["median"], kept, strict=True):
            assert sum(shares) + wrong == pytest.approx(100, abs=0.3) and wrong == pytest.approx(5, abs=0.3)
            assert median == pytest.approx(np.median(margins[check].astype(float)), rel=1e-2)
        assert one["median"][-1] > one["median"][0]  # outwards
    assert found["r0"]["top"] == found["r1"]["top"]


# --- the page ------------------------------------------------------------------------------------------------------


def test_table_shows_every_figure_with_its_interval(tmp_path):
    folder = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0", margins=True)
    write_evaluation(folder, "autoattack", "Linf", n=50, results=[result(0.2, 0.6, 50)], settings={"standard": True})
    distances = [0.1 * i for i in range(10)]
    write_evaluation(folder, "fmn", "Linf", n=10, mean=0.45, quartiles=[0.225, 0.45, 0.675], distances=distances)
    page = Page(made(tmp_path, folder, "--examples", "0"))
    cells = [" ".join(cell) for cell in page.rows["r0"]]
    assert cells[1] == "200" and cells[2].startswith("96.0 ")
    wilson = binomtest(180, 200).proportion_ci(0.95, method="wilson")
    assert cells[3] == f"90.0 {100 * wilson.low:.1f}–{100 * wilson.high:.1f}"
    assert cells[6].startswith("71.5 ") and cells[7].startswith("63.3 ")  # (96 + 90 + 70 + 30) / 4, (90 + 70 + 30) / 3
    assert cells[8].startswith("60.0 ") and cells[8].endswith("at 0.2, n 50")
    assert cells[9].startswith("0.225") and "FMN, n 10" in cells[10] and cells[11].startswith("0.675")
    assert cells[12].startswith("≤ 166 k") and cells[13].startswith(
        "0.24"
    )  # 144 steps of 50, 23 passes; 10 steps a second
    assert "not evaluated" not in " ".join(cells)


def test_training_margins_stand_in_for_distances(tmp_path):
    folder = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0", margins=True)
    (line,) = report_of(folder)[0].lines
    last = RunFolder(folder)._read_margins(1200)[-1].astype(float)
    assert [f.value for f in line.quartiles.figures] == pytest.approx(np.quantile(last, (0.25, 0.5, 0.75)))
    assert line.quartiles.source == "training images, n 1200"


def test_what_is_missing_has_a_command_that_parses(tmp_path):
    whole = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0")
    bare = make_run(tmp_path / ODD, accuracies=None)
    text = made(tmp_path, whole, bare, "--examples", "0")
    page = Page(text)
    assert [" ".join(cell) for cell in page.rows["r1"]][2:12] == ["not evaluated"] * 10
    part = text[text.index('<details id="run-r1"') :]
    found = [unescape(command) for command in re.findall(r"<code>(.*?)</code>", part)]
    assert len(found) == 4
    for command in found:
        python, program, *argv = shlex.split(command)
        parsed = PARSERS[program.rpartition("/")[2]](argv)
        if program.endswith("pgd_attacks.py"):
            assert parsed.eps == RADII
        place = parsed[0].savepath if program.endswith("train.py") else parsed.model
        assert place == str(bare) and shutil.which(python)


def test_training_command_gives_the_same_config(tmp_path):
    folder = make_run(
        tmp_path / "run", accuracies=None, checks=0, method="pgd", train_eps=0.25, hinge_maxeps=None, seed=3
    )
    (line,) = report_of(folder)[0].lines
    command = next(m.command for m in line.missing if m.key == "training")
    config, _ = parse_train(shlex.split(command)[2:])
    stored = json.loads((folder / "config.json").read_text())
    assert {key: getattr(config, key) for key in ("method", "train_eps", "seed", "max_steps", "dataset", "norm")} == {
        key: stored[key] for key in ("method", "train_eps", "seed", "max_steps", "dataset", "norm")
    }
    assert isinstance(config, Config)


def test_published_rows_stand_beside_ours_and_are_marked(tmp_path):
    folder = make_run(tmp_path / "mnist-Linf-MMA-0.45-sd0", accuracies=None, dataset="mnist")
    page = Page(made(tmp_path, folder, "--examples", "0"))
    said = published.ACCURACIES["mnist", "Linf"]
    assert set(page.rows) == {"r0", *(f"p{i}" for i in range(len(said)))}
    kinds = {attrs["data-id"]: attrs["class"] for tag, attrs in page.tags if "data-id" in attrs}
    assert kinds == {"r0": "ours", **{f"p{i}": "published" for i in range(len(said))}}
    for i, row in enumerate(said):
        cells = [" ".join(cell) for cell in page.rows[f"p{i}"]]
        assert row.method in cells[0] and "published" in cells[0] and "not evaluated" not in " ".join(cells)
        assert cells[2] == f"{row.clean:.1f}"
    assert page.rows["p0"][9][0] == "91.4" and published.DISCUSSION in page.text


def test_names_are_text_and_never_html(tmp_path):
    folder = make_run(tmp_path / ODD, clean=0.9)
    text = made(tmp_path, folder, "--examples", "0")
    page = Page(text)
    assert ("img", {"src": "x", "onerror": "window.hit=1"}) not in page.tags
    assert not [tag for tag, _ in page.tags if tag in ("img", "b") and ODD in tag]
    assert "onerror" not in {key for _, attrs in page.tags for key in attrs}
    assert any(ODD in part for part in page.text) and "<20.0%>" in "".join(page.text)
    assert data_of(text)["benchmarks"][0]["lines"][0]["name"] == ODD
    assert sum(tag == "script" for tag, _ in page.tags) == 3


def test_the_page_asks_no_network_for_anything(tmp_path):
    page = Page(made(tmp_path, make_run(tmp_path / "run"), "--examples", "0"))
    for _, attrs in page.tags:
        for key in ("src", "href", "data", "action"):
            assert attrs.get(key, "#").startswith(("#", "data:")), attrs


def test_failed_checks_and_stale_figures_are_shown(tmp_path):
    folder = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0")
    shutil.copy(TRAINED / "model_best.pt", folder)  # not the checkpoint that was attacked
    text = "".join(Page(made(tmp_path, folder, "--examples", "0")).text)
    assert "✗ failed" in text and "1 failed" in text and "– not run" in text and "⚠ doubtful" in text
    assert "stale: made with another checkpoint" in text


def test_twenty_runs_stay_under_8_mb(tmp_path):
    """With the largest images there are presets for: colour, 32 x 32, noise, which no PNG shrinks."""
    runs = sorted(path for path in (ROOT / "benchmarks" / "digits").iterdir() if path.is_dir())[:20]
    text = made(tmp_path, *runs, "--examples", "0")
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = 20 * 3 * len(report_examples.GROUPS) * report_examples.EACH * len(report_examples.png(noise))
    margins = 20 * report_training.MOST_CHECKS * report_training.BINS * len("99.99,")
    assert len(Page(text).rows) == 20 and len(text.encode()) + pictures + margins < 8e6


# --- images --------------------------------------------------------------------------------------------------------


def test_images_of_a_trained_network(tmp_path):
    """Three groups in order; each image is original + difference / factor, and the network says what stands below it."""
    gallery = report_examples.gallery(read_run(TRAINED), 12, torch.device("cpu"), None)
    pictures = gallery.pictures
    assert [p.group for p in pictures] == [g for g in report_examples.GROUPS for _ in range(report_examples.EACH)]
    assert [p.margin for p in pictures] == sorted(p.margin for p in pictures)
    assert all(p.label != p.predicted and p.margin > 0 for p in pictures)
    for p in pictures:
        original, difference, perturbed = (pixels(uri) for uri in (p.original, p.difference, p.perturbed))
        assert np.abs(original + (difference - 0.5) / p.factor - perturbed).max() <= 0.003 * (1 + 1 / p.factor)
        assert np.abs(perturbed - original).max() == pytest.approx(p.margin, abs=0.005)
    text = "".join(Page(made(tmp_path, TRAINED, "--examples", "12")).text)
    assert f"margin ℓ∞ {pictures[0].margin:.3g}" in text and "smallest margins" in text


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.float64) / 255


def test_no_images_without_weights_or_data_and_no_download(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "model_best.pt" in report_examples.gallery(read_run(folder), 5, torch.device("cpu"), None).why
    mnist = make_run(tmp_path / "mnist", dataset="mnist")
    shutil.copy(TRAINED / "model_best.pt", mnist)
    why = report_examples.gallery(read_run(mnist), 5, torch.device("cpu"), str(tmp_path / "nowhere")).why
    assert "--data_root" in why and not (tmp_path / "nowhere").exists()
    (folder / "model_best.pt").write_text("damaged")
    assert report_examples.gallery(read_run(folder), 5, torch.device("cpu"), None).why
    assert f"Not evaluated: {report_examples.gallery(read_run(folder), 5, torch.device('cpu'), None).why}" in "".join(
        Page(made(tmp_path, folder, "--examples", "5")).text
    )


# --- bad input -----------------------------------------------------------------------------------------------------


def test_folders_that_hold_nothing(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("a file")
    out = tmp_path / "report.html"
    fails(
        capsys,
        make_report.main,
        [tmp_path / "empty", tmp_path / "note.txt", "--out", out],
        "nothing to report",
        "empty",
    )
    fails(capsys, make_report.main, [tmp_path / "none", "--out", out], "none", "not there")
    fails(capsys, make_report.main, [make_run(tmp_path / "run"), "--examples", "9999"], "--examples 9999")
    assert not out.exists()


def test_without_plotly(tmp_path, monkeypatch, capsys):
    make_report.plotly_source.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    folder = make_run(tmp_path / "run")
    fails(
        capsys,
        make_report.main,
        [folder, "--out", tmp_path / "x.html"],
        "plotly",
        "pip install -r",
        "requirements/report.txt",
    )


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = [make_run(tmp_path / "run"), "--examples", "0", "--out", tmp_path / "file" / "x.html"]
    fails(capsys, make_report.main, argv, "--out", "cannot be written")


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "margins.npy", "eval_pgd_Linf.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"step": 1e999, "kind": []}', b"\xff\x00", b"null"])
def test_damaged_files_are_said_and_left_out(tmp_path, capsys, file, content):
    folder = make_run(tmp_path / "digits-Linf-MMA-0.3-sd0", margins=True)
    (folder / file).write_bytes(content)
    page = Page(made(tmp_path, folder, "--examples", "0"))
    assert "r0" in page.rows
    if file != "metrics.jsonl" and not (file == "config.json" and b"step" in content):  # an object, if an odd one
        assert file in capsys.readouterr().err


def test_a_run_named_twice_is_shown_once_and_equal_names_are_told_apart(tmp_path):
    one = make_run(tmp_path / "a" / "digits-Linf-MMA-0.3-sd0")
    other = make_run(tmp_path / "b" / "digits-Linf-MMA-0.3-sd0")
    text = made(tmp_path, one, other, one, "--examples", "0")
    names = [line["name"] for line in data_of(text)["benchmarks"][0]["lines"]]
    assert names == ["MMA-0.3 sd0 (a)", "MMA-0.3 sd0 (b)"]
