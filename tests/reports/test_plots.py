"""Pictures: figures against closed forms, names and looks of runs, what cannot be drawn."""

import numpy as np
import pytest
import torch

from command_lines import fails
from evaluations.flags import EvaluationFlags
from evaluations.subject import load_subject
from report_runs import TRAINED, evaluate, make_run, row
from reports import plots
from reports.runs import frame, read_run, read_runs


def is_picture(base):
    for ending, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        content = base.with_name(base.name + ending).read_bytes()
        assert content.startswith(start) and len(content) > 5000


def test_robustness(tmp_path, capsys):
    """The curve begins with the clean images; what has no figure, or is of another data set or norm, is refused."""
    mma = make_run(tmp_path / "mma", {0.2: 0.5, 0.1: 0.8})
    std = make_run(tmp_path / "std", method="std", clean_loss_coeff=1.0, hinge_maxeps=None)
    evaluate(std, "pgd", [row(0.1, 0.3, sanity={"network": {"ok": False}})])
    odd = make_run(tmp_path / "a name with $_$ is no formula", {0.1: 0.8})
    (odd / "config.json").unlink()
    main, out = plots.main, tmp_path / "out" / "MMA-0.3"
    assert main(["robustness", *map(str, (mma, std, odd)), "--out", str(out)]) == 0
    is_picture(out)
    eps, accuracy, low, high = plots.curve(frame([read_run(mma)]))
    assert eps.tolist() == [0, 0.1, 0.2] and accuracy == pytest.approx([98, 80, 50])
    assert (low < accuracy).all() and (accuracy < high).all()
    l2, mnist = make_run(tmp_path / "l2", norm="L2"), make_run(tmp_path / "mnist", {0.1: 0.8}, dataset="mnist")
    evaluate(l2, "pgd", [row(1.0, 0.5)], norm="L2")
    for argv, *parts in (
        ([make_run(tmp_path / "bare")], "eval_pgd_Linf.json", "not there"),
        ([mma, l2], "norm", "two pictures"),
        ([mma, mnist], "data set"),
    ):
        fails(capsys, main, ["robustness", *argv], *parts)


def test_one_colour_a_method_one_line_a_seed(tmp_path):
    """Names are words, and no default name is that of another picture."""
    runs = read_runs([make_run(tmp_path / f"{i}", seed=i % 2, hinge_maxeps=0.3 - i // 2 / 10) for i in range(4)])
    looks = plots.looks(runs)
    assert [look.name for look in looks.values()] == [f"MMA, d_max {d}, seed {s}" for d in (0.3, 0.2) for s in (0, 1)]
    styles = [look.style for look in looks.values()]
    assert len({style["color"] for style in styles}) == 2 and styles[0]["color"] == styles[1]["color"]
    assert styles[0]["linestyle"] == styles[2]["linestyle"] != styles[1]["linestyle"]
    assert plots.looks(runs[:1])[runs[0]].name == "MMA, d_max 0.3"
    (pgd,) = read_runs([make_run(tmp_path / "pgd", method="pgd", hinge_maxeps=None, train_eps=0.1)])
    for order in ([pgd, *runs], [*runs[2:], pgd], [pgd]):
        colours = {run: look.style["color"] for run, look in plots.looks(order).items()}
        assert colours[pgd] == plots.COLOURS[1], "a method has the same colour in every picture"
        assert len(set(colours.values())) == len({run.radius for run in order})
    folders = [run.folder for run in runs]
    names = {plots.default_name("margins", part) for part in (folders, folders[:1], folders[1:])}
    assert len(names) == 3 and plots.default_name("margins", folders[::-1]) in names


def test_margins(tmp_path, capsys, monkeypatch):
    """A run without them is left out, and a line says why."""
    good, none = make_run(tmp_path / "good", margins=True), make_run(tmp_path / "none", seed=1)
    plain = make_run(tmp_path / "pgd", method="pgd", hinge_maxeps=None)
    monkeypatch.chdir(tmp_path)
    assert plots.main(["margins", *map(str, (none, good, plain))]) == 0
    said = capsys.readouterr()
    is_picture(tmp_path / said.out.splitlines()[0].removesuffix(".png"))
    first, second = said.err.splitlines()
    assert f"{none}/margins.npy: not there, this copy of the run is without it" in first
    assert f"{plain}/margins.npy: not there, only MMA and OMMA training record margins" in second
    fails(capsys, plots.main, ["margins", none], none / "margins.npy")


def test_the_end_of_a_search_is_no_margin(tmp_path):
    folder = make_run(tmp_path / "run", margins=True)
    eps = np.linspace(0.1, 0.3, 1200) * np.ones((6, 1))
    eps[-1, -900:] = 0.315 * (1 - 2**-11)  # where ten halvings end
    np.save(folder / "margins.npy", eps.astype(np.float16))
    _, found = read_run(folder).margins()
    assert np.isinf(found).sum() == 900 and np.isinf(found[-1, -900:]).all()
    low, median, high = plots.quantiles(found, 0.315)
    assert low[-1] == pytest.approx(0.12, abs=1e-3) and median[-1] == high[-1] == 0.315
    figure, _ = plots.draw_margins([read_run(folder)])
    (panel,) = figure.subfigs[0].axes
    assert panel.get_title(loc="left").endswith("1200 images, median above 0.315; 75.0% none up to 0.315")
    assert sum(bar.get_height() for bar in panel.patches) == pytest.approx(25)


def test_examples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plots.main(["examples", str(TRAINED), "--count", "3"]) == 0
    is_picture(tmp_path / capsys.readouterr().out.splitlines()[0].removesuffix(".png"))
    for argv, part in (
        ([TRAINED, "--count", "0"], "--count 0"),
        ([TRAINED, "--max_eps", "0"], "max_eps 0: must be above 0"),
    ):
        fails(capsys, plots.main, ["examples", *argv], part)


@pytest.mark.parametrize("max_eps", [None, 0.2])
def test_examples_are_adversarial_at_their_length(max_eps):
    """0 for an image that is wrong as it is, inf where none is found up to max_eps; by default 1.05 d_max."""
    subject = load_subject(EvaluationFlags(model=str(TRAINED)), torch.device("cpu"))
    found = plots.find_examples(subject, 40, max_eps)
    wrong = subject.model(found.x).argmax(1) != found.labels
    near = (found.length > 0) & found.length.isfinite()
    assert found.max_eps == (max_eps or pytest.approx(0.315)) and 0 < near.sum() < 40
    assert torch.equal(found.length == 0, wrong) and torch.equal(found.x_adv[~near], found.x[~near])
    assert ((found.predicted != found.labels) == (near | wrong)).all() and found.length[near].max() <= found.max_eps
    torch.testing.assert_close((found.x_adv - found.x).abs().flatten(1).amax(1)[near], found.length[near])


def test_lengths_in_words():
    assert plots.length_text(0, "mnist", "Linf", 0.3) == "misclassified\nas it is"
    assert plots.length_text(np.inf, "cifar10", "Linf", 8 / 255) == "none up to\n8/255"
    assert plots.length_text(1.25, "cifar10", "L2", 2) == "ℓ2 1.25"
