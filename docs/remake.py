"""Make the reports of the committed runs anew from their ledgers, and the README's picture.

    python docs/remake.py

For whoever changes what a report says. The picture, the first screen of the tournament's report,
needs selenium with the distribution's chromium and chromedriver; without them it is kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import load

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
PICTURED = EXAMPLES / "cifar10-tournament" / "report.html"
PICTURE = DOCS / "report.png"
WIDTH, HEIGHT = 1200, 720  # CSS pixels


def remake(folder: Path) -> None:
    """Write what of ``report.html`` and ``comparison.json`` is in ``folder``, from its ledger."""
    comparison = compare([load(folder)])
    for name, text in (
        ("report.html", report_html(comparison)),
        ("comparison.json", json.dumps(comparison.as_dict(), indent=1) + "\n"),
    ):
        if (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)


def take_picture(page: Path, picture: Path) -> bool:
    """Write the first screen of ``page`` as PNG; ``False`` where there is no browser."""
    binaries = shutil.which("chromium"), shutil.which("chromedriver")
    if None in binaries:
        return False
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(binaries[0])
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless", "--no-sandbox", "--hide-scrollbars",
                     f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}"):  # fmt: skip
            options.add_argument(flag)
        service = webdriver.ChromeService(executable_path=binaries[1])
        driver = webdriver.Chrome(options=options, service=service)
        try:
            metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            driver.get(page.resolve().as_uri())
            return bool(driver.save_screenshot(str(picture)))
        finally:
            driver.quit()


if __name__ == "__main__":
    for ledger in sorted(EXAMPLES.rglob("ledger.jsonl")):
        remake(ledger.parent)
    if take_picture(PICTURED, PICTURE):
        print(PICTURE)
    else:
        print("no chromium with chromedriver: docs/report.png is as it was")
