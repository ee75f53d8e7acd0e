"""The addresses of MLflow's pages on a run; that its UI shows there what they promise is in
tests/browser."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from orchestrator.compare.winners import winners
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import State
from orchestrator.tracking import view
from orchestrator.tracking.links import RecordedRun, links_of
from tests.unit.compare.compare_runs import RunFolder, tournament_run

SERVER = "http://127.0.0.1:5000/"


def recorded(state: State) -> RecordedRun:
    return RecordedRun("7", {trial: f"id-of-{trial}" for trial in state.trials})


def query_of(address: str) -> tuple[str, dict[str, str]]:
    page, _, query = address.removeprefix("http://127.0.0.1:5000/#/").partition("?")
    return page, {name: value for name, (value,) in parse_qs(query, strict_parsing=True).items()}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return state_of(tournament_run(tmp_path_factory.mktemp("runs") / "t", trials=8, seeds=2))


def test_a_tournament_has_pages_of_winners_finals_and_trials(state: State) -> None:
    links = links_of(state, recorded(state), SERVER)
    assert [(link.subject, link.trials) for link in links] == [
        ("winners", 3), ("finals", 6), ("trials", 24),
    ]  # fmt: skip
    page, query = query_of(links[0].address)
    assert page == "compare-runs"
    assert next(iter(query)) == "runs"  # the page does not find them elsewhere
    assert json.loads(query["experiments"]) == ["7"]
    assert set(json.loads(query["runs"])) == {
        f"id-of-{trial.trial}" for trial in winners(state).values()
    }
    for link, metric, operator in zip(
        links[1:], ("test_top1", "best_val_top1"), ("=", "!="), strict=True
    ):
        page, query = query_of(link.address)
        assert page == "experiments/7/runs"
        assert query["orderByKey"] == f"metrics.`{metric}`"
        assert view.run_id(state) in query["searchFilter"]
        assert query["searchFilter"].endswith(f"tags.stage {operator} 'final'")
    assert all("workflowType=machine_learning" in link.address for link in links)


def test_an_address_needs_no_quotes_in_a_shell_or_a_terminal(state: State) -> None:
    for link in links_of(state, recorded(state), SERVER):
        assert not set(link.address) & set(" \"'`<>\\")


def test_what_a_run_has_none_of_has_no_page(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one", ("vit",))
    run.trial("vit", [0.5], end=None)
    running = state_of(run.folder)
    assert [link.subject for link in links_of(running, recorded(running), SERVER)] == ["trials"]
    assert links_of(running, RecordedRun("7", {}), SERVER) == []
    winner = run.trial("vit", [0.5, 0.6])
    (link, _) = links_of(ended := state_of(run.folder), recorded(ended), SERVER)
    assert (link.subject, link.trials) == ("winners", 1)
    assert query_of(link.address)[0] == f"experiments/7/runs/id-of-{winner}"
