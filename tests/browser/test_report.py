"""The report in a real browser: no overflow, no errors, no network, in light and dark."""

from __future__ import annotations

import base64
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import figures_of, report_html
from orchestrator.compare.runs import load
from tests.browser.conftest import SCREENSHOTS
from tests.unit.compare.compare_runs import RunFolder, search_run, tournament_run
from tests.unit.compare.predicted_runs import gallery_run

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.browser,
]

UNFOLD = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
# The lowest contrast of each element that holds text with the nearest background painted
# behind it (WCAG 2.2, relative luminance).
LOWEST_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgba(css) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
}
function luminance(color) {
  const [r, g, b] = Array.from(color).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function background(node) {
  for (; node; node = node.parentElement) {
    const color = rgba(getComputedStyle(node).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255];
}
let worst = [99, ''];
for (const node of document.querySelectorAll('body *')) {
  const words = Array.from(node.childNodes).some(n => n.nodeType === 3 && n.textContent.trim());
  if (!words || !node.checkVisibility()) continue;
  const style = getComputedStyle(node);
  const ink = node instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [luminance(rgba(ink)), luminance(background(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, node.textContent.trim()];
}
return worst;
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a whole tournament, of a search alone, of awkward names, and of nothing at all."""
    folder = tmp_path_factory.mktemp("runs")
    run = RunFolder(folder / "finals", ("resnet", "vit", "timm:vit_small_r26_s32_224.augreg"))
    draw = np.random.default_rng(0)
    for place, family in enumerate(run.counts):
        run.trial(family, [0.4, 0.7 + 0.1 * place], learning_rate=0.0001)
        run.trial(family, [0.2], end="failed", reason=f"out of memory: {'batch_of_512_' * 30}")
        for seed in range(3):
            run.final(family, draw.random(400) < 0.7 + 0.1 * place, seed=seed)
    run.ledger.append("noted", reason="a/very/long/path/" * 20)
    folders = {
        "tournament": tournament_run(folder / "tournament"),
        "search": search_run(folder / "search", trials=24),
        "finals": run.close(),
        "gallery": gallery_run(folder / "gallery"),
        "empty": RunFolder(folder / "empty").close(None),
    }
    made = {}
    for name, run_folder in folders.items():
        loaded = [load(run_folder)]
        made[name] = run_folder / "report.html"
        made[name].write_text(report_html(compare(loaded)))
    return made


def show(browser: Any, page: Path, *, width: int, scheme: str) -> list[str]:
    """Open the page and return the addresses that were asked for."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    resize(browser, width, 900)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def resize(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("tournament", 400, "light"), ("tournament", 400, "dark"), ("tournament", 1280, "light"),
        ("tournament", 1280, "dark"), ("search", 360, "light"), ("search", 1600, "dark"),
        ("gallery", 400, "light"), ("gallery", 1280, "dark"),
        ("finals", 360, "dark"), ("finals", 1600, "light"), ("empty", 360, "light"),
    ],
)  # fmt: skip
def test_the_page_reads_well(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    asked = show(browser, pages[name], width=width, scheme=scheme)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert asked
    assert browser.get_log("browser") == []
    page = "document.documentElement"
    for state in ("as it opens", "unfolded"):
        if state == "unfolded":
            browser.execute_script(UNFOLD)
        wide, seen = browser.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
        assert wide <= seen
        ratio, words = browser.execute_script(LOWEST_CONTRAST)
        assert ratio >= 4.5, words
        assert serious_findings(browser, bulk=name in ("finals", "empty")) == []
        if state == "as it opens":
            resize(browser, width, browser.execute_script(f"return {page}.scrollHeight"))
            assert browser.save_screenshot(str(SCREENSHOTS / f"report-{name}-{width}-{scheme}.png"))


AXE_TIMEOUT_S = 200  # on a busy machine it takes a hundred times as long as on an idle one


def serious_findings(browser: Any, *, bulk: bool = False) -> list[str]:
    """What axe-core (WCAG 2.1 A and AA, and its best practices) calls serious or critical; with
    ``bulk`` of the tables behind figures too, whose thousands of cells are all alike."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is missing").Axe()
    browser.set_script_timeout(AXE_TIMEOUT_S)
    context = {"include": [["html"]], "exclude": [] if bulk else [[".bulk"]]}
    findings = axe.run(browser, context=context, options={"resultTypes": ["violations"]})
    assert len(findings["passes"]) > 10
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in findings["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_axe_would_find_something(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["tournament"], width=1280, scheme="light")
    assert serious_findings(browser) == []
    browser.execute_script("document.querySelector('svg').removeAttribute('aria-label')")
    browser.execute_script("document.querySelector('.answer').style.color = '#bbb'")
    assert [finding.split()[0] for finding in serious_findings(browser)] == [
        "color-contrast", "svg-img-alt",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [400, 1280])
def test_the_first_screen_holds_the_answer(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    show(browser, pages["tournament"], width=width, scheme="light")
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    inside = [".answer", ".beside"] if width == 400 else [".answer", ".facts", ".first figure"]
    for part in inside:
        assert browser.execute_script(bottom, part) <= 900, part
    assert browser.save_screenshot(str(SCREENSHOTS / f"report-first-screen-{width}.png"))


def test_a_link_unfolds_what_it_leads_to(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["tournament"], width=1280, scheme="light")
    is_open = "return document.querySelector('#differences').parentElement.open"
    assert not browser.execute_script(is_open)
    browser.execute_script("document.querySelector('a[href=\"#differences\"]').click()")
    assert browser.execute_script(is_open)
    assert browser.execute_script("return document.querySelector('#differences').checkVisibility()")


def test_the_readmes_picture_is_of_todays_report(browser: Any, tmp_path: Path) -> None:
    """To the eye from afar: letters differ from machine to machine."""
    remake = runpy.run_path(str(ROOT / "docs" / "remake.py"))
    assert remake["take_picture"](remake["PICTURED"], tmp_path / "now.png")
    seen = []
    for file in (remake["PICTURE"], tmp_path / "now.png"):
        with Image.open(file) as picture:
            assert picture.size == (remake["WIDTH"], remake["HEIGHT"])
            seen.append(np.asarray(picture.convert("L").resize((60, 36)), dtype=float))
    assert np.abs(seen[0] - seen[1]).mean() < 4  # of 255


# A4 less the browser's usual margins of 1 cm, in CSS pixels.
PAPER_WIDTH = 718
CUT = """
return Array.from(document.querySelectorAll('body *'))
  .filter(node => node.checkVisibility() && !(node instanceof SVGElement)
    && node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(node => node.tagName + ' ' + node.textContent.trim().slice(0, 60));
"""
UNSEEN = """
document.body.offsetHeight;  // the layout on paper, before anything is asked of it
return Array.from(document.querySelectorAll('section, table, figure, pre'))
  .filter(node => !node.closest('.bulk') && !node.checkVisibility({contentVisibilityAuto: true}))
  .map(node => node.id || node.textContent.trim().slice(0, 60));
"""


@pytest.mark.parametrize("name", ["tournament", "search", "finals", "empty", "gallery"])
def test_it_prints_whole(browser: Any, pages: dict[str, Path], name: str) -> None:
    show(browser, pages[name], width=PAPER_WIDTH, scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.execute_script(UNSEEN) == []
        assert browser.execute_script(CUT) == []
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    size = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", size)["data"])
    (SCREENSHOTS / f"report-{name}.pdf").write_bytes(printed)
    pages_printed = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert (1 if name == "empty" else 4) <= pages_printed <= 40


@pytest.mark.parametrize("width", [360, 1600])
def test_the_pictures_letters_are_large_enough(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    show(browser, pages["tournament"], width=width, scheme="light")
    browser.execute_script(UNFOLD)
    heights = browser.execute_script(
        "return Array.from(document.querySelectorAll('svg')).map(svg =>"
        " parseFloat(getComputedStyle(svg.querySelector('text')).fontSize) * svg.getScreenCTM().a)"
    )
    made = figures_of(compare([load(pages["tournament"].parent)]))
    assert len(heights) == sum(map(len, made.values())) > 20
    assert min(heights) >= 9
    assert max(heights) <= 20


def test_the_keyboard_reaches_links_data_and_wide_tables(
    browser: Any, pages: dict[str, Path]
) -> None:
    show(browser, pages["search"], width=360, scheme="light")
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    chain = pytest.importorskip("selenium.webdriver.common.action_chains").ActionChains(browser)
    reached = []
    for _ in range(26):
        chain.send_keys(keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.tagName"))
    assert reached[:2] == ["A", "SUMMARY"]  # what else differed, then the first section
    assert "DIV" in reached  # a wide table
    while browser.execute_script("return document.activeElement.tagName") != "SUMMARY":
        chain.send_keys(keys.TAB).perform()
    is_open = "return document.activeElement.parentElement.open"
    before = browser.execute_script(is_open)
    chain.send_keys(keys.ENTER).perform()
    assert browser.execute_script(is_open) is not before
