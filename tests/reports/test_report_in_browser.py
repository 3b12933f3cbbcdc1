"""The report in a real browser, headless Chromium: no error in its console, and everything one can click does what it says.

Skipped where there is no browser: on Debian `apt-get install chromium chromium-driver`.
"""

import shutil

import pytest

from report_runs import ODD, TRAINED, make_run, result, write_evaluation
from reports import make_report

pytestmark = pytest.mark.slow
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser():
    """One for all tests; a page's errors are collected."""
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
    opened.set_script_timeout(120)
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Four runs, one of which has a name that is HTML; under two norms; one with real images."""
    folder = tmp_path_factory.mktemp("report")
    first = make_run(folder / "digits-Linf-MMA-0.3-sd0", (0.9, 0.7, 0.3), 0.96, seed=0, margins=True)
    write_evaluation(first, "autoattack", "Linf", n=50, results=[result(0.2, 0.6, 50)], settings={"standard": True})
    second = make_run(folder / "digits-Linf-MMA-0.2-sd0", (0.85, 0.75, 0.1), 0.98, seed=1, margins=True, checks=9)
    odd = make_run(folder / ODD, (0.8, 0.2, 0.0), 0.99, seed=2)
    flat = make_run(folder / "mnist-L2-MMA-4.0-sd0", None, norm="L2", dataset="mnist")
    trained = folder / "digits-Linf-MMA-0.3-sd9"  # with weights, and not evaluated
    trained.mkdir()
    for name in ("config.json", "metrics.jsonl", "model_best.pt"):
        shutil.copy(TRAINED / name, trained)
    out = folder / "report.html"
    runs = [str(run) for run in (first, second, odd, flat, trained)]
    assert make_report.main([*runs, "--examples", "10", "--out", str(out)]) == 0
    return out


@pytest.fixture
def page(browser, report):
    """The page, freshly opened at a desktop's size; at the end nothing may have been said on the console."""
    opened = Opened(browser, report)
    opened.open(*DESKTOP)
    yield opened
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


class Opened:
    """A report in the browser, and what the tests ask of it."""

    def __init__(self, browser, report):
        self.browser, self.report = browser, report

    def open(self, width, height, dark=False):
        command = self.browser.execute_cdp_cmd
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.browser.get(self.report.as_uri())
        self.browser.execute_async_script(
            "const done = arguments[0], root = document.documentElement;"
            "const wait = () => root.dataset.ready ? done() : setTimeout(wait, 50); wait();"
        )

    def js(self, code, *values):
        return self.browser.execute_script(f"return {code}", *values)

    def click(self, selector):
        self.browser.execute_script("document.querySelector(arguments[0]).click()", selector)

    def choose(self, selector, value):
        self.browser.execute_script(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.type === 'range' || e.type === 'search' ? 'input' : 'change'))",
            selector,
            value,
        )

    def drawn(self, name):
        """Names of the lines in a plot."""
        return self.js(
            f"(document.getElementById('plot-{name}').data || []).map(t => t.name).filter(n => n !== 'band')"
        )

    def column(self, number):
        """Values down a column of the table in view, as the page sorts them."""
        return self.js(
            "[...tableInView().querySelectorAll('tbody tr')].map(r => r.cells[arguments[0]].dataset.v)", number
        )


def test_the_table_sorts(page):
    """By number from the largest, again from the smallest; what is missing is last both times; names from A."""
    head = "#results [data-benchmark='digits-Linf'] thead tr:last-child th:nth-child(%d)"
    for column, (name, aria) in {
        3: ("clean", "descending"),
        4: ("0.1", "descending"),
        9: ("AutoAttack", "descending"),
    }.items():
        assert page.js(f"document.querySelector({head % column!r}).textContent") == name
        for direction in (aria, "ascending"):
            page.click(f"{head % column} button")
            values = page.column(column - 1)
            known = [float(value) for value in values if value]
            assert known == sorted(known, reverse=direction == "descending") and known
            assert values[: len(known)] == [value for value in values if value]
            assert page.js(f"document.querySelector({head % column!r}).getAttribute('aria-sort')") == direction
    page.click(f"{head % 1} button")
    names = page.column(0)
    assert names[0] == "MMA-0.2 sd0" and names[-1] == ODD
    assert page.js("document.querySelectorAll('#results [aria-sort]').length") == 1


def test_the_table_filters(page):
    shown = "[...tableInView().querySelectorAll('tbody tr:not([hidden])')].map(r => r.dataset.id)"
    assert len(page.js(shown)) == 4
    page.choose("#filter", "mma 0.2")
    assert page.js(shown) == ["r1"] and page.js("document.getElementById('shown').textContent") == "1 of 4 rows"
    page.click("input[name=benchmark][value=mnist-L2]")
    page.choose("#filter", "")
    everything = page.js(shown)
    page.click("#with-published")
    assert page.js(shown) == ["r3"] and len(everything) > 10


def test_ticking_a_run_changes_the_plots(page):
    before = {name: page.drawn(name) for name in ("robustness", "training", "passes", "margins")}
    assert len(before["robustness"]) == 3 and len(before["margins"]) == 2
    bands = page.js("document.getElementById('plot-robustness').data.filter(t => t.name === 'band').length")
    assert bands == 3
    page.click("input[data-run=r1]")
    for name, lines in before.items():
        assert len(page.drawn(name)) == len(lines) - 1, name
    assert page.js("document.getElementById('plot-scatter').data.filter(t => t.showlegend).length") == 2
    assert len(page.drawn("scatter")) == 3  # one point a run, the third in grey
    page.click("#none")
    assert page.drawn("robustness") == [] and "Nothing to draw" in page.js(
        "document.getElementById('curves').textContent"
    )
    page.click("#all")
    assert page.drawn("robustness") == before["robustness"]


def test_curves_are_the_figures(page):
    """Accuracy at each eps in per cent, the clean one at 0; the band is the interval."""
    line = page.js("document.getElementById('plot-robustness').data.find(t => t.name === 'MMA-0.3 sd0')")
    assert line["x"] == [0, 0.1, 0.2, 0.3] and line["y"] == [96, 90, 70, 30]
    band = page.js("document.getElementById('plot-robustness').data[0]")
    assert band["name"] == "band" and min(band["y"]) < 30 < max(band["y"])


def test_the_slider_moves_the_margins(page):
    mean = (
        "(() => { const t = document.getElementById('plot-margins').data[1]; let sum = 0, all = 0;"
        "t.y.forEach((y, i) => { sum += y * t.x[i]; all += y; }); return sum / all; })()"
    )
    assert page.js("document.getElementById('epoch-said').textContent") == "9"
    last = page.js(mean)
    page.choose("#epoch", "0")
    assert page.js("document.getElementById('epoch-said').textContent") == "1" and page.js(mean) < last / 2
    page.click("#play")
    page.browser.execute_async_script("setTimeout(arguments[0], 1200)")
    assert page.js("Number(document.getElementById('epoch').value)") >= 2
    page.click("#play")
    assert page.js("document.getElementById('play').textContent") == "Play"


def test_two_runs_are_compared(page):
    """Turned round the difference changes its sign, p does not."""
    cells = "[...document.querySelectorAll('#pairs tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    page.choose("#first", "r0")
    page.choose("#second", "r2")
    one = page.js(cells)
    page.choose("#first", "r2")
    page.choose("#second", "r0")
    other = page.js(cells)
    assert [row[:4] for row in one] == [
        ["0.1", "90.0", "80.0", "+10.0"],
        ["0.2", "70.0", "20.0", "+50.0"],
        ["0.3", "30.0", "0.0", "+30.0"],
    ]
    assert [row[3] for row in other] == ["−10.0", "−50.0", "−30.0"] and [r[-1] for r in one] == [r[-1] for r in other]
    assert [row[5:7] for row in one] == [row[6:4:-1] for row in other]
    page.choose("#second", "r2")
    assert page.js(cells) == [] and "two different runs" in page.js("document.getElementById('pairs').textContent")


def test_another_benchmark(page):
    page.click("input[name=benchmark][value=mnist-L2]")
    assert page.js("tableInView().dataset.benchmark") == "mnist-L2" and page.drawn("robustness") == []
    assert page.drawn("training") == ["MMA-4.0 sd0"]
    page.click("input[name=benchmark][value=digits-Linf]")
    assert len(page.drawn("robustness")) == 3


def test_images_and_runs_open(page):
    """The run with weights is shown first; a link in the table opens the run it names."""
    images = "[...document.querySelectorAll('[data-gallery]:not([hidden]) img')]"
    assert page.js("document.getElementById('gallery').value") == "r4"
    assert page.js(f"{images}.length") >= 9 and page.js(f"{images}.every(i => i.complete && i.naturalWidth === 8)")
    page.choose("#gallery", "r0")
    assert "model_best.pt" in page.js("document.querySelector('[data-gallery=r0]').textContent")
    assert page.js("document.querySelector('[data-gallery=r4]').hidden")
    assert not page.js("document.getElementById('run-r4').open")
    page.click("tr[data-id=r4] td.none a")
    page.browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert page.js("document.getElementById('run-r4').open")


def test_names_are_shown_as_they_are(page):
    assert page.js("window.hit === undefined") and page.js("document.querySelectorAll('[onerror]').length") == 0
    assert ODD in page.js("document.querySelector('tr[data-id=r2]').textContent")
    legends = page.js("[...document.querySelectorAll('#plot-robustness .legendtext')].map(t => t.textContent)")
    assert ODD in legends


def test_dark_mode(page):
    """By the system's choice and by the button; the pictures follow, and text stays readable on both."""
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        "document.getElementById('plot-robustness').layout.font.color]"
    )
    light = page.js(colours)
    page.open(*DESKTOP, dark=True)
    dark = page.js(colours)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.click("#theme")  # light, whatever the system says
    assert page.js(colours) == light
    page.click("#theme")
    assert page.js(colours) == dark
    soft = "[getComputedStyle(document.querySelector('.lead')).color, getComputedStyle(document.body).backgroundColor]"
    for _ in range(2):
        text, ground = (luminance(colour) for colour in page.js(soft))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5
        page.click("#theme")


def luminance(colour):
    """Of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone(page):
    """Nothing is wider than the screen but what scrolls in itself; the plots fit."""
    page.open(*PHONE)
    assert page.js("document.documentElement.scrollWidth") <= PHONE[0]
    widths = page.js("[...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().right)")
    assert widths and max(widths) <= PHONE[0]
    wide = page.js(
        "(() => { const s = tableInView().querySelector('.scroll'); return s.scrollWidth > s.clientWidth; })()"
    )
    assert wide


def test_the_keyboard_reaches_everything(page):
    """Tab goes through every control in order; Enter on a column sorts, Space on a box ticks, an arrow moves the slider."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    seen = set()
    for _ in range(120):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.add(
            page.js(
                "document.activeElement.id || document.activeElement.dataset.run || document.activeElement.textContent"
            )
        )
    assert {
        "theme",
        "filter",
        "all",
        "none",
        "first",
        "second",
        "scatter-at",
        "play",
        "epoch",
        "quantity",
        "gallery",
    } <= seen
    assert {"r0", "r1", "r2", "AvgRobAcc"} <= seen
    find = page.browser.find_element
    find(By.CSS_SELECTOR, "#results thead tr:last-child th:nth-child(3) button").send_keys(Keys.ENTER)
    assert page.js("document.querySelector('#results [aria-sort]').textContent") == "clean"
    find(By.CSS_SELECTOR, "input[data-run=r0]").send_keys(Keys.SPACE)
    assert "MMA-0.3 sd0" not in page.drawn("robustness")
    before = page.js("document.getElementById('epoch').value")
    find(By.ID, "epoch").send_keys(Keys.ARROW_LEFT)
    assert page.js("document.getElementById('epoch').value") == str(int(before) - 1)
