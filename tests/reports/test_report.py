"""The page: its figures, names that are HTML, images, bad input; and in a browser, headless Chromium, where there is one
(`apt-get install chromium chromium-driver`)."""

import base64
import html
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from command_lines import fails
from evaluations.results import wilson
from report_runs import ODD, SANITY, TRAINED, distances, evaluate, make_run, row
from reports import make_report, plots
from reports.runs import frame, read_run


def tags(page):
    """Without what stands in its scripts and styles."""
    return re.sub(r"<(script|style)[ >].*?</\1>", "", page, flags=re.DOTALL)


def text(page):
    """What a browser shows of it."""
    return html.unescape(re.sub(r"<[^>]*>", "", tags(page)))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two seeds, another method, a run of another norm, a folder without a config whose name is HTML, a trained network."""
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder / str(s), {0.1: 0.9, 0.2: 0.7 - s / 10}, margins=True, seed=s) for s in (0, 1)]
    evaluate(runs[0], "autoattack", [row(0.2, 0.6, n=50)])
    evaluate(runs[0], "fmn", [distances([0.1 * i for i in range(10)])])
    runs.append(make_run(folder / "pgd", {0.1: 0.95, 0.2: 0.1}, method="pgd", train_eps=0.2))
    runs.append(make_run(folder / ODD))
    evaluate(runs[-1], "pgd", [row(0.1, 0.5, sanity=SANITY)])
    (runs[-1] / "config.json").unlink()
    runs.append(make_run(folder / "flat", norm="L2", dataset="mnist", hinge_maxeps=4.0))
    runs.append(make_run(folder / "wide", {4 * k / 255: 0.5 for k in range(1, 9)}, dataset="cifar10", hinge_maxeps=0.1))
    evaluate(runs[-1], "autoattack", [row(8 / 255, 0.5, n=50)])
    out = folder / "report.html"
    assert make_report.main([*map(str, (*runs, TRAINED)), "--examples", "12", "--out", str(out)]) == 0
    return out


def test_the_page_shows_figures_doubts_and_commands(report):
    shown = text(report.read_text())
    for part in (
        *("MMA, d_max 0.3, max_steps 144, 2 seeds", "± 7.1", "PGD, ε 0.2", "MNIST, ℓ2", "⚠ 50.0"),
        *("Robust accuracy against ε", "there is no model_best.pt in the folder"),
        "sanity check failed: falls with steps (10.0% at 5 steps, <20.0%> at 20)",
        "python train.py --dataset digits --norm Linf --method pgd",
    ):
        assert part in shown


def test_smallest_distances_are_a_step_curve_beside_pgd(tmp_path):
    """And its band; an image that PGD breaks at a smaller radius has fallen there."""
    run = make_run(tmp_path / "run")
    evaluate(run, "fmn", [distances([0.0, 0.1, 0.25, 0.3])])
    evaluate(run, "pgd", [row(0.1, 0, flags="0111"), row(0.2, 0, flags="0010")])
    run = read_run(run)
    pgd, curve, band = make_report.robustness(frame([run]), plots.looks([run])).data
    assert "smallest distances (n 4)" in curve.name.replace("<br>", " ") and curve.legendgroup == pgd.legendgroup
    assert list(curve.x) == pytest.approx([0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    assert list(curve.y) == pytest.approx([75, 75, 50, 50, 25, 25, 0])
    low, high = np.split(np.array(band.y), 2)
    assert (low <= curve.y).all() and (high[::-1] >= curve.y).all() and low[0] == pytest.approx(100 * wilson(3, 4)[0])


def test_a_run_attacked_as_two_networks_is_two_lines(tmp_path):
    run, overrides = make_run(tmp_path / "run"), {"overrides": {"standardise": "image"}}
    found = [row(eps, share) for eps, share in ((0.1, 0.9), (0.2, 0.8))]
    evaluate(run, "pgd", found + [row(eps, 0.3, settings={"nb_iter": 100} | overrides) for eps in (0.1, 0.2)])
    run = read_run(run)
    lines = make_report.robustness(frame([run]), plots.looks([run])).data
    assert [list(line.x) for line in lines] == [[0, 0.1, 0.2]] * 2
    assert "standardise image" in {line.name.replace("<br>", " ").rpartition(", ")[2] for line in lines}


def test_names_are_text_and_nothing_is_fetched(report):
    page = report.read_text()
    assert ODD in text(page) and 'onerror="' not in tags(page)
    for key, value in re.findall(r'\b(src|href|data|action)="([^"]*)', tags(page)):
        assert value.startswith(("#", "data:")), (key, value)
    assert report.stat().st_size < 8e6


def test_cells_are_sorted_by_their_figure():
    texts = ["⚠ 93.2 [92.7, 93.7]", "≤ 0.17 ± 0.01", "1000, 10000 of 10000", "1000 of 10000", "–", "PGD, ε 8/255 [1]"]
    cells = make_report.cells("abcdef", texts)
    assert [cell["sorted_by"] for cell in cells] == ["93.2", "0.17", texts[2], "1000", "", texts[5]]
    assert cells[0]["main"] == "⚠ 93.2" and cells[0]["small"] == "[92.7,\u00a093.7]" and cells[1]["small"] == "± 0.01"


def test_images_of_a_trained_network():
    """From the smallest margin to the largest; each image is original + difference / factor."""
    shown, said = make_report.pictures(read_run(TRAINED), 12, None)
    margins = [float(picture["margin"].rpartition(" ")[2]) for picture in shown]
    assert len(shown) == make_report.SHOWN and margins == sorted(margins) and "12 test images" in said
    for picture, margin in zip(shown, margins, strict=True):
        original, difference, perturbed = (pixels(uri) for uri, _ in picture["parts"])
        factor = float(picture["parts"][1][1].partition("×")[2])
        assert np.abs(original + (difference - 0.5) / factor - perturbed).max() <= 0.01
        assert np.abs(perturbed - original).max() == pytest.approx(margin, abs=0.005)


def test_no_code_is_run_that_nobody_named(tmp_path):
    run = make_run(tmp_path / "run", network="mine.py:net")
    shutil.copy(TRAINED / "model_best.pt", run)
    shown, why = make_report.pictures(read_run(run), 5, None)
    assert not shown and "reports/plots.py examples" in why and why.endswith("--network mine.py:net")


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.float64) / 255


def test_no_images_without_data_and_no_download(tmp_path):
    mnist = make_run(tmp_path / "mnist", dataset="mnist")
    shutil.copy(TRAINED / "model_best.pt", mnist)
    shown, why = make_report.pictures(read_run(mnist), 5, str(tmp_path / "nowhere"))
    assert not shown and "--data_root" in why and not (tmp_path / "nowhere").exists()
    digits = make_run(tmp_path / "digits")
    (digits / "model_best.pt").write_text("damaged")
    assert "model_best.pt" in make_report.pictures(read_run(digits), 5, None)[1]


def test_bad_input_is_one_line(tmp_path, capsys):
    run, out = make_run(tmp_path / "run"), tmp_path / "report.html"
    (tmp_path / "empty").mkdir()
    fails(capsys, make_report.main, [tmp_path / "empty", "--out", out], "holds no run")
    beyond = run / "config.json" / "x.html"
    fails(capsys, make_report.main, [run, "--examples", "0", "--out", beyond], "config.json: File exists")
    assert not out.exists()


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium with its chromedriver here")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browser, report, width, dark):
    """Nothing is said on the console, nothing cut off; figures are drawn in the theme's ink; the table sorts; a click in the
    legend hides a method's runs."""
    js = browser.execute_script
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(report.as_uri())
    browser.execute_async_script("setTimeout(arguments[0], 500)")
    right = "return Math.max(...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"
    assert js("return document.documentElement.scrollWidth") <= width and js(right) <= width
    beyond = "e => e.getBoundingClientRect().right - e.closest('figure, section').getBoundingClientRect().right"
    widest = f"return Math.max(...[...document.querySelectorAll('.main-svg, table')].map({beyond}))"
    for _ in range(20):  # plotly fits its figures to the page when it comes to it
        if js(widest) > 0:
            browser.execute_async_script("setTimeout(arguments[0], 500)")
    assert js(widest) <= 0
    drawn = "[p.querySelectorAll('.scatterlayer .trace').length, p.layout.font.color.trim()]"
    plots = js(f"return [...document.querySelectorAll('.js-plotly-plot')].map(p => {drawn})")
    ink = {"#e8eaed"} if dark else {"#1b1f24"}
    assert len(plots) >= 10 and all(traces for traces, _ in plots) and {colour for _, colour in plots} == ink
    names = js("return [...document.querySelectorAll('#digits-Linf .legendtext')].map(t => t.textContent)")
    for name in ("MMA, d_max 0.3, max_steps 144, seed 0", "PGD, ε 0.2", ODD):
        assert name.replace(" ", "") in [shown.replace(" ", "") for shown in names]
    for event in ("mousedown", "mouseup"):
        js(f"document.querySelector('.legendtoggle').dispatchEvent(new MouseEvent('{event}'))")
    browser.execute_async_script("setTimeout(arguments[0], 800)")
    hidden = "return document.querySelector('.js-plotly-plot').data.filter(t => t.visible === 'legendonly').length"
    assert js(hidden) == 1
    number = js("return [...document.querySelectorAll('th')].findIndex(th => th.textContent === 'ε = 0.2')")
    for direction in ("descending", "ascending"):
        js(f"document.querySelectorAll('th button')[{number}].click()")
        column = f"[...document.querySelector('tbody').rows].map(r => r.cells[{number}].dataset.v)"
        values = js(f"return {column}")
        known = [float(value) for value in values if value]
        assert len(known) == 4 and known == sorted(known, reverse=direction == "descending") and not values[-1]
        assert js(f"return document.querySelectorAll('th')[{number}].getAttribute('aria-sort')") == direction
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
