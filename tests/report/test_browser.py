"""Report pages in a real browser: without errors, drawn, fitting, legible, and readable aloud."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from chart_examples import CHARTS, PLANES
from conftest import TINY_SIDE, write_tiny_npz
from curve_runs import done, job
from plot_checks import luminance

from fge.commands.report import joined_page
from fge.report import Page, ReportBuilder, Section, Table, write_pages, write_report
from fge.runs import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

PHONE, DESKTOP = 390, 1280
HEADINGS = ["method", "members", "error", "NLL", "Brier", "ECE", "epochs", "passes"]
CELLS = ["3", "9.43", "0.2599", "0.1367", "0.0143", "100", "3"]
TABLE = Table(
    "Results on the test set",
    HEADINGS,
    [[name, *CELLS] for name in ("single", "fge", "an-ensemble-with-a-long-name")],
    "Error in percent. `fge` averages probabilities; "
    + "a note is as long as it needs to be. " * 5,
)
CONTENT: dict[str, Any] = {
    "command": "fge",
    "config": {"model": "a_package.with.long.names.my_models:build", "epochs": 100, "lr": None},
    "environment": {"platform": "Linux-6.1.0-x86_64-with-glibc2.36-" + "x" * 40, "threads": 2},
    "methods": [],
}


ALL = {**CHARTS, **PLANES}


def page_of(folder: Path, *, interactive: bool = True) -> Page:
    """Draw the figures of a page with everything on it."""
    report = ReportBuilder(RunFolder(folder))
    report.say("The ensemble has 0.20 points lower error.", "It costs more. " * 9)
    report.table(TABLE)
    for name, chart in ALL.items():
        report.chart(f"{name}.png", chart, f"What {name} shows")
    page = report.page(f"convnet on {folder.name}")
    return page if interactive else replace(page, plots={})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    write_report(RunFolder(folder), page_of(folder), CONTENT)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


CONTRASTS = """(() => {
  const parts = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number);
    return numbers.length < 4 ? [...numbers, 1] : numbers;
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const luminance = (colour) => {
    const linear = colour.slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const style = getComputedStyle(element);
    const legend = element.matches("g.legend") && element.querySelector("rect.bg");
    const found = parts(legend ? getComputedStyle(legend).fill : style.backgroundColor);
    if (legend) found[3] *= getComputedStyle(legend).fillOpacity;
    return found[3] === 1 ? found : over(found, behind(element.parentElement));
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const words = texts.currentNode.textContent.trim();
    const box = element.getBoundingClientRect();
    if (!words || !box.width || element.closest("script, style, noscript")) continue;
    // Names of networks lie on colours that are the same in light and dark.
    if (element.closest(".textpoint")) continue;
    const style = getComputedStyle(element);
    const back = behind(element);
    const front = over(parts(element instanceof SVGElement ? style.fill : style.color), back);
    const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    found.push([words, (high + 0.05) / (low + 0.05)]);
  }
  return found;
})()"""
PLOTS = """[...document.querySelectorAll(".plot")].map((place) => {
  const size = (element) => element ? element.getBoundingClientRect() : { width: 0, height: 0 };
  const svg = size(place.querySelector("svg.main-svg"));
  const canvas = size(place.querySelector("canvas"));
  const drawn = "path.js-line, g.contourfill path, .point path, path.point";
  return { id: place.id, width: svg.width, height: svg.height,
    marks: place.querySelectorAll(drawn).length, canvas: canvas.width * canvas.height };
})"""


GALLERY = """[...document.querySelectorAll(".gallery li")].map((item) => {
  const image = item.querySelector("img"), box = image.getBoundingClientRect();
  return { alt: image.alt, caption: item.querySelector("p").textContent, x: box.x,
    natural: image.naturalWidth, width: box.width };
})"""
ROW_HEADERS = """Object.fromEntries([...document.querySelectorAll("table")].map((table) =>
  [table.caption.textContent, [...table.querySelectorAll("th[scope=row]")].map((cell) =>
    cell.textContent)]))"""
INKS = {False: "rgb(28, 32, 36)", True: "rgb(232, 234, 237)"}
DRAWN_IN = """(ink) => [...document.querySelectorAll(".plot .gtitle, .plot .xtitle, .plot .ytitle")]
  .every((title) => getComputedStyle(title).fill === ink)"""


def check_page(browser: Browser, page: Path, *, width: int, plots: int, words: set[str]) -> None:
    """Load a page in light and dark: without errors, drawn, no wider than the window, legible."""
    browser.open(page, width=width)
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    for dark in (False, True):
        browser.dark(dark)
        browser.wait_for(f"({DRAWN_IN})('{INKS[dark]}')")
        assert browser.evaluate("getComputedStyle(document.body).color") == INKS[dark]
        drawn = browser.evaluate(PLOTS)
        assert [plot["id"] for plot in drawn] == [f"run-1-plot-{k}" for k in range(1, plots + 1)]
        for plot in drawn:
            assert 300 < plot["width"] <= width, plot
            assert plot["height"] > 300, plot
            assert plot["marks"] > 0 or plot["canvas"] > 300 * 300, plot
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        contrasts = browser.evaluate(CONTRASTS)
        assert words <= {text for text, _ in contrasts}
        assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
    assert browser.problems == []


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_page_loads_draws_fits_and_has_contrast(browser: Browser, run: Path, width: int) -> None:
    words = {"error", "epochs", "learning rate", "networks", "9.43", "report.json"}
    check_page(browser, run, width=width, plots=len(ALL), words=words)


def test_pages_that_commands_write_pass_the_same_checks(browser: Browser, tmp_path: Path) -> None:
    data = write_tiny_npz(tmp_path / "tiny.npz")
    short = {"epochs": 4, "start_epoch": 0, "cycle_epochs": 2, "sharpness_every": 1}
    page = done("fge", job(data, tmp_path / "fge", **short)) / "report.html"
    words = {"top eigenvalue", "last-snapshot", "confidence", "distance to"}
    check_page(browser, page, width=PHONE, plots=4, words=words)
    shown = browser.evaluate(GALLERY)
    assert len(shown) == 12
    for picture in shown:
        assert picture["alt"] == picture["caption"] != ""
        assert (picture["natural"], picture["width"]) == (TINY_SIDE, 128)
    assert len({picture["x"] for picture in shown}) > 1  # side by side on a phone too
    headers = browser.evaluate(ROW_HEADERS)["Sharpness through the training"]
    assert headers == ["1", "2", "3"]
    short = {"epochs": 2, "eval_points": 3, "ensemble_points": 2}
    page = done("curve-ensemble", job(data, tmp_path / "pair", **short)) / "report.html"
    words = {"curve, test", "segment, train", "distance from the first network"}
    check_page(browser, page, width=DESKTOP, plots=2, words=words)
    zoom(browser, "run-1-plot-1")
    for headers in browser.evaluate(ROW_HEADERS).values():
        assert len(set(headers)) == len(headers)


def zoom(browser: Browser, plot: str) -> None:
    """Drag over the middle of a plot; check that what is drawn is what was dragged over."""
    place = f"document.getElementById('{plot}')"
    browser.evaluate(f"{place}.scrollIntoView()")
    before = browser.evaluate(f"{place}._fullLayout.xaxis.range")
    x, y, width, height = browser.evaluate(
        f"(() => {{ const box = {place}.querySelector('.nsewdrag').getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]; })()"
    )
    start, end = (x + width / 4, y + height / 4), (x + width / 2, y + height / 2)
    browser.drag(start, end)
    browser.wait_for(f"{place}._fullLayout.xaxis.range[0] > {before[0]}")
    after = browser.evaluate(f"{place}._fullLayout.xaxis.range")
    wanted = [before[0] + part * (before[1] - before[0]) for part in (0.25, 0.5)]
    assert after == pytest.approx(wanted, abs=0.02 * (before[1] - before[0]))


SURFACE = """(() => {
  const place = [...document.querySelectorAll(".plot")].find((place) => place.layout.scene);
  const names = place._fullData.find((trace) => trace.mode === "markers+text");
  return { ground: place._fullLayout.scene.bgcolor, ink: names.textfont.color,
    axis: place._fullLayout.scene.xaxis.color,
    bands: place._fullData[0].colorscale.map((stop) => stop[1]) };
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_names_on_a_surface_can_be_read(browser: Browser, run: Path, dark: bool) -> None:
    browser.open(run, width=DESKTOP, dark=dark)
    browser.wait_for(f"({DRAWN_IN})('{INKS[dark]}')")
    found = browser.evaluate(SURFACE)
    for colour in (found["ground"], *found["bands"]):
        for ink in (found["ink"], found["axis"]):
            assert (luminance(colour) + 0.05) / (luminance(ink) + 0.05) >= 4.5, (colour, ink)


def test_series_tell_their_values_and_can_be_put_away_whatever_the_colours(
    browser: Browser, run: Path
) -> None:
    browser.open(run, width=DESKTOP)
    number = list(ALL).index("comparison") + 1
    place = f"document.getElementById('run-1-plot-{number}')"
    browser.evaluate(f"{place}.scrollIntoView()")
    x, y = browser.evaluate(
        f"(() => {{ const box = {place}.querySelector('path.point').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.mouse(x, y)
    browser.wait_for(f"{place}.querySelector('.hovertext')?.textContent.includes('single')")
    x, y = browser.evaluate(
        f"(() => {{ const box = {place}.querySelector('.legendtoggle').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.mouse(x, y, click=True)
    browser.wait_for(f"{place}.data[0].visible === 'legendonly'")
    light = browser.evaluate(f"{place}.layout.font.color")
    browser.dark(True)
    browser.wait_for(f"{place}.layout.font.color !== '{light}'")
    assert browser.evaluate(f"{place}._fullData[0].visible") == "legendonly"
    assert browser.problems == []


SCROLLED = """(() => {
  const frame = document.querySelector(".scroll"), cell = frame.querySelector("tbody th");
  const before = cell.getBoundingClientRect().x;
  frame.scrollLeft = 200;
  const shadow = getComputedStyle(frame).backgroundAttachment;
  return { wider: frame.scrollWidth - frame.clientWidth, scrolled: frame.scrollLeft, shadow,
    moved: cell.getBoundingClientRect().x - before,
    cover: getComputedStyle(cell).backgroundColor,
    share: cell.getBoundingClientRect().width / frame.clientWidth };
})()"""


def test_on_a_phone_a_table_shows_that_it_scrolls(browser: Browser, run: Path) -> None:
    browser.open(run, width=PHONE)
    found = browser.evaluate(SCROLLED)
    assert found["wider"] > 100
    assert found["scrolled"] > 50
    # A shadow at the edge, which a cover takes away at the end; the first column stays.
    assert found["shadow"] == "local, scroll"
    assert found["moved"] == 0
    assert found["cover"] == "rgb(255, 255, 255)"
    assert found["share"] < 0.5


def test_the_verdict_is_one_line_and_the_rest_unfolds(browser: Browser, run: Path) -> None:
    browser.open(run, width=DESKTOP)
    line = "getComputedStyle(document.querySelector('.verdict strong')).fontWeight"
    assert int(browser.evaluate(line)) >= 600
    seen = "document.querySelector('.more p').checkVisibility()"
    assert not browser.evaluate(seen)
    browser.evaluate("document.querySelector('.more summary').click()")
    assert browser.evaluate(seen)


def test_a_screen_reader_finds_its_way(browser: Browser, run: Path) -> None:
    browser.open(run, width=DESKTOP)
    counts = browser.evaluate(
        "Object.fromEntries(['main', 'header', 'h1', 'html[lang]', 'title'].map("
        "(name) => [name, document.querySelectorAll(name).length]))"
    )
    assert set(counts.values()) == {1}
    tables = browser.evaluate(
        "[...document.querySelectorAll('table')].map((table) => ({"
        "caption: table.caption.textContent,"
        "bare: [...table.querySelectorAll('th')].filter((cell) => !cell.scope).length,"
        "note: document.getElementById(table.getAttribute('aria-describedby')).textContent}))"
    )
    assert [(table["caption"], table["bare"]) for table in tables] == [(TABLE.title, 0)]
    assert "averages probabilities" in tables[0]["note"]
    levels = browser.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((heading) => +heading.tagName[1])"
    )
    assert all(later <= level + 1 for level, later in itertools.pairwise(levels))
    named = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map((plot) => plot.getAttribute('aria-label'))"
    )
    captions = browser.evaluate(
        "[...document.querySelectorAll('figcaption')].map((caption) => caption.textContent)"
    )
    assert named == captions == [f"What {name} shows" for name in ALL]
    tree = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in tree if not node["ignored"]}
    assert {"main", "banner", "table", "columnheader", "rowheader", "figure"} <= roles
    # The first thing in focus, which is seen.
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
        )
    found = browser.evaluate(
        "(() => { const style = getComputedStyle(document.activeElement); return ["
        "document.activeElement.textContent, style.outlineStyle, parseFloat(style.outlineWidth),"
        "document.activeElement.getBoundingClientRect().x]; })()"
    )
    assert found[:3] == ["Skip to the results", "solid", 3]
    assert found[3] >= 0


def test_without_scripts_there_are_pictures(browser: Browser, run: Path) -> None:
    browser.open(run, width=PHONE, scripts=False)
    widths = browser.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == len(ALL)
    assert min(widths) > 100


def test_without_webgl_a_surface_is_a_picture(browser: Browser, run: Path) -> None:
    script = "HTMLCanvasElement.prototype.getContext = () => null"
    added = browser.send("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        browser.open(run, width=DESKTOP)
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", **added)
    shown = browser.evaluate("[...document.images].map((image) => image.alt)")
    assert shown == ["What surface shows"]
    assert len(browser.evaluate(PLOTS)) == len(ALL) - 1


def test_several_runs_fit_on_a_page_with_and_without_plots(
    browser: Browser, tmp_path: Path
) -> None:
    sections = []
    for name, interactive in (("fge-001", True), ("fge-002", False)):
        page = page_of(tmp_path / name, interactive=interactive)
        method = {"name": "fge", "members": 3, "error": 9.0, "nll": 0.25}
        sections.append(Section(tmp_path / name, page, {**CONTENT, "methods": [method]}, name))
    write_pages(tmp_path, joined_page(sections), sections)
    browser.open(tmp_path / "report.html", width=DESKTOP, dark=True)
    for width in (DESKTOP, PHONE):
        browser.resize(width)
        widths = "[...document.querySelectorAll('svg.main-svg')].map((s) => s.clientWidth)"
        browser.wait_for(f"Math.max(...{widths}) <= {width}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.problems == []
    assert len(browser.evaluate(PLOTS)) == len(
        browser.evaluate("[...document.images].map(() => 1)")
    )
    captions = browser.evaluate(
        "[...document.querySelectorAll('caption')].map((c) => c.textContent)"
    )
    assert captions == ["Methods of all runs, on their test sets", *[TABLE.title] * 2]
    ids = browser.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].map("
        "(e) => document.querySelectorAll('#' + e.getAttribute('aria-labelledby')).length)"
    )
    assert set(ids) == {1}
    assert [text for text, ratio in browser.evaluate(CONTRASTS) if ratio < 4.5] == []
