"""The report in a real browser: no overflow, no errors, no network, in light and dark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import figures_of, report_html
from orchestrator.compare.runs import load
from tests.browser.conftest import SCREENSHOTS
from tests.unit.compare.compare_runs import RunFolder, search_run, tournament_run

pytestmark = [
    pytest.mark.browser,
]

UNFOLD = "document.querySelectorAll('details').forEach(fold => { fold.open = arguments[0] })"
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
        ("tournament", 360, "light"), ("tournament", 360, "dark"), ("tournament", 1600, "light"),
        ("tournament", 1600, "dark"), ("search", 360, "light"), ("search", 1600, "dark"),
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
    for unfolded in (False, True):
        browser.execute_script(UNFOLD, unfolded)
        wide, seen = browser.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
        assert wide <= seen
        ratio, words = browser.execute_script(LOWEST_CONTRAST)
        assert ratio >= 4.5, words
        if not unfolded:
            resize(browser, width, browser.execute_script(f"return {page}.scrollHeight"))
            assert browser.save_screenshot(str(SCREENSHOTS / f"report-{name}-{width}-{scheme}.png"))


@pytest.mark.parametrize("width", [360, 1600])
def test_the_pictures_letters_are_large_enough(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    show(browser, pages["tournament"], width=width, scheme="light")
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
    assert reached[:14] == ["A"] * 13 + ["DIV"]
    assert "SUMMARY" in reached
