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
    folder = tournament_run(tmp_path_factory.mktemp("links") / "runs" / "three", trials=6, seeds=4)
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
    chosen = list(winners(opened.state).values())
    recipes = [f"{trial.recipe['learning_rate']}"[:6] for trial in chosen]
    shown = text_once(
        browser,
        opened.addresses["winners"],
        lambda text: all(word in text for word in [*(t.trial for t in chosen), *recipes]),
    )
    assert f"Comparing {len(chosen)} Runs" in shown
    save(browser, f"mlflow-{opened.version}-winners")


def test_finals_are_bars_with_their_test_accuracy(browser: Any, opened: Opened) -> None:
    finals = [trial for trial in opened.state.trials.values() if trial.stage == "final"]
    best = sorted(finals, key=lambda trial: -trial.outcome["test"]["top1"])[:10]
    text_once(
        browser,
        opened.addresses["finals"],
        lambda text: "test_top1" in text and all(trial.trial in text for trial in best),
    )
    bars = "return document.querySelectorAll('.barlayer .point').length"
    assert browser.execute_script(bars) >= len(best)
    save(browser, f"mlflow-{opened.version}-finals")


def test_all_trials_are_there_best_first(browser: Any, opened: Opened) -> None:
    trials = [trial for trial in opened.state.trials.values() if trial.stage == "search"]
    ranked = sorted(trials, key=lambda trial: -(trial.best()[0] or 0.0))
    shown = text_once(
        browser,
        opened.addresses["trials"],
        lambda text: "best_val_top1" in text and all(t.trial in text for t in ranked[:10]),
    )
    places = [shown.index(trial.trial) for trial in ranked[:10]]
    assert places == sorted(places)
    save(browser, f"mlflow-{opened.version}-trials")
