"""What a browser shows behind the links of ``orchestrator ui``: names of runs and metric values.

With the MLflow that is installed and, where ``OTHER_MLFLOW_PYTHON`` names the Python of an
environment with another one (the oldest that is supported, the newest that there is), with that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.winners import winners
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import State
from orchestrator.tracking import follow, links
from tests.browser.conftest import SCREENSHOTS
from tests.integration.mlflow_server import Server
from tests.unit.compare.compare_runs import tournament_run

pytestmark = [pytest.mark.browser, pytest.mark.mlflow]

PATIENCE_S = 90.0
VARIABLE = "OTHER_MLFLOW_PYTHON"
VERSION = "import mlflow; print(mlflow.__version__)"


@dataclass(frozen=True)
class Opened:
    """A run in a served store: its links by what they compare, and the MLflow that serves them."""

    state: State
    addresses: dict[str, str]
    version: str


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tournament's folder, MLflow's database beside it."""
    folder = tournament_run(tmp_path_factory.mktemp("links") / "runs" / "three", trials=6, seeds=3)
    follow.sync(folder, f"sqlite:///{folder.parent / 'mlflow.db'}")
    return folder


@pytest.fixture(scope="module", params=["installed", "other"])
def opened(
    request: pytest.FixtureRequest, recorded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    python = sys.executable if request.param == "installed" else os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} names no Python with another MLflow")
    copy = tmp_path_factory.mktemp(request.param) / "mlflow.db"
    shutil.copy(recorded.parent / "mlflow.db", copy)
    uri = f"sqlite:///{copy}"
    if request.param == "other":
        upgrade = [python, "-m", "mlflow", "db", "upgrade", uri]
        subprocess.run(upgrade, check=True, capture_output=True)
    version = subprocess.run([python, "-c", VERSION], check=True, capture_output=True, text=True)
    server = Server(copy.parent, uri, python)
    try:
        server.start()
        found = links.comparison_links(
            recorded, f"sqlite:///{recorded.parent / 'mlflow.db'}", server.uri
        )
        addresses = {link.subject: link.address for link in found}
        yield Opened(state_of(recorded), addresses, version.stdout.strip())
    finally:
        server.kill()


def text_once(browser: Any, address: str, true: Callable[[str], bool]) -> str:
    """The page's text once it is as it should be."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    def text(driver: Any) -> str:
        return str(driver.execute_script("return document.body.innerText"))

    browser.get("about:blank")  # the page does not follow an address that changes behind its #
    browser.get(address)
    try:
        WebDriverWait(browser, PATIENCE_S).until(lambda driver: true(text(driver)))
    except TimeoutException:
        pytest.fail(f"the page never shows what it should, but: {text(browser)[:2000]}")
    return text(browser)


def save(browser: Any, name: str) -> None:
    file = SCREENSHOTS / f"{name}.png"
    assert browser.save_screenshot(str(file))
    print(f"kept {file}")


def test_winners_stand_side_by_side(browser: Any, opened: Opened) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    chosen = list(winners(opened.state).values())
    recipes = [f"{trial.recipe['learning_rate']}"[:6] for trial in chosen]
    shown = text_once(
        browser,
        opened.addresses["winners"],
        lambda text: all(word in text for word in [*(t.trial for t in chosen), *recipes]),
    )
    assert f"Comparing {len(chosen)} Runs" in shown
    for trial in chosen:
        assert f"{round(trial.best()[0] or 0.0, 3):g}" in shown  # as MLflow rounds
    axes = (
        "return Array.from(document.querySelectorAll('.parcoords .axis-title'), a => a.textContent)"
    )
    names = ["batch_size_per_worker", "learning_rate", "weight_decay", "val_top1"]
    WebDriverWait(browser, PATIENCE_S).until(lambda driver: driver.execute_script(axes) == names)
    save(browser, f"mlflow-{opened.version}-winners")


# The card of a metric's chart, once it has bars: a chart is drawn when it comes into view.
CHART = """
const titles = Array.from(document.querySelectorAll("*")).filter(
    element => !element.childElementCount && element.textContent === arguments[0]);
for (const title of titles) {
    title.scrollIntoView();
    let card = title;
    while (card && !card.querySelector(".barlayer .point")) {
        card = card.parentElement;
        if (card && card.querySelectorAll(".js-plotly-plot").length > 1) break;
    }
    if (card && card.querySelectorAll(".js-plotly-plot").length === 1) return card.innerText;
}
return "";
"""


def chart_once(browser: Any, metric: str, true: Callable[[str], bool]) -> None:
    """Wait until the metric's chart shows what it should."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        WebDriverWait(browser, PATIENCE_S).until(
            lambda driver: true(str(driver.execute_script(CHART, metric)))
        )
    except TimeoutException:
        pytest.fail(f"{metric} shows {browser.execute_script(CHART, metric)!r}")


# Of the table's rows, from top to bottom, the text: its elements stand in another order.
ROWS = """
return Array.from(document.querySelectorAll(".ag-row"))
    .filter(row => row.innerText.trim())
    .sort((a, b) => a.getAttribute("row-index") - b.getAttribute("row-index"))
    .map(row => row.innerText);
"""


def rows_once(browser: Any, values: dict[str, float], first: list[float]) -> None:
    """Wait until the first rows are of runs with these values; of equal ones any comes first."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(driver: Any) -> list[float]:
        rows = driver.execute_script(ROWS)
        return [values[trial] for row in rows for trial in values if trial in row.split()]

    try:
        WebDriverWait(browser, PATIENCE_S).until(
            lambda driver: shown(driver)[: len(first)] == first
        )
    except TimeoutException:
        pytest.fail(f"the rows are {shown(browser)}, not {first}")


def check_list(
    browser: Any,
    opened: Opened,
    subject: str,
    metric: str,
    values: dict[str, float],
    drawn: tuple[str, dict[str, float]],
) -> None:
    """Behind the link the runs are rows of their own, best first by ``metric``, and the ten best
    have bars with their values of the metric that is ``drawn`` without scrolling."""
    ranked = sorted(values, key=lambda trial: -values[trial])
    best = ranked[:10]
    shown = text_once(
        browser,
        opened.addresses[subject],
        lambda text: f"Sort: {metric}" in text and all(trial in text for trial in best),
    )
    assert f"{len(values)} matching runs" in shown
    rows_once(browser, values, [values[trial] for trial in best])
    name, heights = drawn
    texts = {f"{heights[trial]:.2f}" for trial in best}
    chart_once(
        browser, name, lambda text: texts <= set(text.split()) and all(t in text for t in best)
    )
    save(browser, f"mlflow-{opened.version}-{subject}")


def test_finals_are_bars_and_best_first(browser: Any, opened: Opened) -> None:
    finals = [trial for trial in opened.state.trials.values() if trial.stage == "final"]
    values = {trial.trial: trial.outcome["test"]["top1"] for trial in finals}
    errors = {trial.trial: trial.probes["calibration"]["ece"] for trial in finals}
    check_list(browser, opened, "finals", "test_top1", values, ("calibration_ece", errors))


def test_all_trials_are_there_best_first(browser: Any, opened: Opened) -> None:
    trials = [trial for trial in opened.state.trials.values() if trial.stage == "search"]
    values = {trial.trial: trial.best()[0] or 0.0 for trial in trials}
    check_list(browser, opened, "trials", "best_val_top1", values, ("best_val_top1", values))
