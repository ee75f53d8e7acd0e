"""MLflow's own UI on a tournament, as its users work: runs of three families are ticked and
compared; the curves, the parallel coordinates and the summary are there without configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from orchestrator.engine.runner import write_results
from orchestrator.tracking import follow
from tests.browser.conftest import SCREENSHOTS
from tests.integration.mlflow_server import Server
from tests.unit.compare.compare_runs import tournament_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.mlflow,
]

FAMILIES = ("resnet", "vit", "hybrid")
PATIENCE_S = 60.0


@dataclass
class Store:
    """A tournament in a served store: the experiment, its parent run, and trials by run id."""

    uri: str
    experiment: str
    parent: str
    trials: dict[str, dict[str, str]]  # run id -> tags

    def page(self, path: str = "runs", **query: str) -> str:
        """An address inside the experiment, of the UI for training."""
        asked = {"workflowType": "machine_learning", **query}
        text = "&".join(f"{key}={quote(value)}" for key, value in asked.items())
        return f"{self.uri}/#/experiments/{self.experiment}/{path}?{text}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    from mlflow.tracking import MlflowClient

    storage = tmp_path_factory.mktemp("ui") / "runs"
    folder = tournament_run(storage / "three", trials=8, seeds=2)
    write_results(folder)
    database = f"sqlite:///{storage / 'mlflow.db'}"
    follow.sync(folder, database)
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("three")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    tags = {run.info.run_id: dict(run.data.tags) for run in runs}
    (parent,) = [run for run, of_run in tags.items() if "trial" not in of_run]
    del tags[parent]
    server = Server(storage, database)
    try:
        server.start()
        yield Store(server.uri, experiment.experiment_id, parent, tags)
    finally:
        server.kill()


def wait(browser: Any, true: Callable[[Any], Any]) -> Any:
    """What ``true`` gives once it gives something; an element that goes meanwhile is no error."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]
    return WebDriverWait(browser, PATIENCE_S, ignored_exceptions=ignored).until(true)


def all_of(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def click(browser: Any, selector: str) -> None:
    """Click the first such element, once there is one that takes it."""
    from selenium.common.exceptions import ElementClickInterceptedException

    def clicked(driver: Any) -> bool:
        try:
            for element in all_of(driver, selector)[:1]:
                element.click()
                return True
        except ElementClickInterceptedException:
            pass
        return False

    wait(browser, clicked)


def save(browser: Any, name: str) -> None:
    assert browser.save_screenshot(str(SCREENSHOTS / f"mlflow-{name}.png"))


def test_runs_of_three_families_are_ticked_and_compared(browser: Any, store: Store) -> None:
    browser.get(store.page(searchFilter="tags.stage = 'search' and tags.status = 'finished'"))
    click(browser, ".ag-row button[data-component-id*=runnamecellrenderer]")  # unfolds the parent
    ticked = {}
    for run, tags in store.trials.items():
        wanted = tags["stage"] == "search" and tags["status"] == "finished"
        if wanted and tags["family"] not in ticked:
            click(browser, f".ag-row[row-id='{run}'] .ag-checkbox-input-wrapper")
            ticked[tags["family"]] = tags["trial"]
    assert set(ticked) == set(FAMILIES)
    wait(browser, lambda driver: len(all_of(driver, ".ag-checkbox-input-wrapper.ag-checked")) == 3)
    save(browser, "runs")

    click(browser, "[data-testid=runs-compare-button]")
    axes = wait(browser, lambda driver: [a.text for a in all_of(driver, ".parcoords .axis-title")])
    assert axes == ["batch_size_per_worker", "learning_rate", "weight_decay", "val_top1"]
    shown = browser.find_element("tag name", "body").text
    assert all(trial in shown for trial in ticked.values())
    save(browser, "parallel-coordinates")

    links = wait(browser, lambda driver: all_of(driver, "a[href*='metric=%22val_top1%22']"))
    browser.get(links[0].get_attribute("href"))
    wait(browser, lambda driver: len(all_of(driver, ".scatterlayer .trace path.js-line")) >= 3)
    wait(
        browser,
        lambda driver: all(
            f"{trial} (val_top1)" in driver.find_element("tag name", "body").text
            for trial in ticked.values()
        ),
    )
    save(browser, "curves")


def test_final_scores_are_bars_without_any_setting(browser: Any, store: Store) -> None:
    browser.get(store.page(searchFilter="tags.stage = 'final'", compareRunsMode="CHART"))
    # three families, two seeds
    wait(browser, lambda driver: len(all_of(driver, ".barlayer .point")) >= 6)
    save(browser, "charts")


def test_the_parent_shows_description_table_and_pictures(browser: Any, store: Store) -> None:
    browser.get(store.page(f"runs/{store.parent}"))
    wait(
        browser,
        lambda driver: "On digits test images" in driver.find_element("tag name", "body").text,
    )
    save(browser, "parent")

    browser.get(store.page(f"runs/{store.parent}/artifacts/summary.json"))
    wait(browser, lambda driver: all_of(driver, "[role=table], table, .ag-root"))
    wait(
        browser,
        lambda driver: all(
            word in driver.find_element("tag name", "body").text
            for word in ("test_top1", "best_val_top1", *FAMILIES)
        ),
    )
    save(browser, "summary")

    browser.get(store.page(f"runs/{store.parent}/artifacts/plots/curve-vit.svg"))
    browser.refresh()  # the page does not follow an address that changes behind its #
    drawn = "return Array.from(document.images).some(image => image.width > 300)"
    wait(browser, lambda driver: driver.execute_script(drawn))
    save(browser, "plot")
