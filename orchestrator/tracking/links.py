"""MLflow's own pages that compare a run's trials, as addresses, and who finds them. No mlflow here.

The addresses are those that the UI's own buttons lead to, in MLflow 3.17. Without
``workflowType`` it opens an experiment in its view for GenAI. Its table folds trials under their
parent, and charts only the parents, unless it is sorted by a metric: hence the order of each list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from orchestrator.compare.winners import winners
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import Stage, State
from orchestrator.tracking import store, view
from trainables.errors import UserError, one_line

TRAINING = ("workflowType", "machine_learning")


@dataclass(frozen=True)
class Link:
    """The ``address`` of a page that compares the run's ``subject``, so many ``trials``."""

    subject: str
    trials: int
    address: str


@dataclass(frozen=True)
class RecordedRun:
    """A run of ours in MLflow: its experiment's id, and MLflow's run ids by trial."""

    experiment_id: str
    run_ids: Mapping[str, str]


def links_of(state: State, recorded: RecordedRun, server: str) -> list[Link]:
    """Pages of the UI at ``server`` that compare the winners of the searches, the finals, and all
    search trials by the metric they are judged by. What the run has none of has no page."""
    names = [winner.trial for winner in winners(state).values()]
    finals = [trial for trial in state.trials.values() if trial.stage == Stage.FINAL]
    winner_ids = [recorded.run_ids[name] for name in names if name in recorded.run_ids]
    num_finals = sum(trial.trial in recorded.run_ids for trial in finals)
    num_others = len(recorded.run_ids) - num_finals
    links, metric = [], state.spec.metric
    if winner_ids:
        links.append(Link("winners", len(winner_ids), _runs_page(server, recorded, winner_ids)))
    if num_finals:
        page = _list_page(server, state, recorded, "tags.stage = 'final'", metric.test_key)
        links.append(Link("finals", num_finals, page))
    if num_others:
        page = _list_page(
            server, state, recorded, "tags.stage != 'final'", f"best_{metric.val_key}"
        )
        links.append(Link("trials", num_others, page))
    return links


def _runs_page(server: str, recorded: RecordedRun, run_ids: Sequence[str]) -> str:
    """Recipes and metrics side by side; of one run its own page."""
    experiment = recorded.experiment_id
    if len(run_ids) == 1:
        return _address(server, f"experiments/{experiment}/runs/{run_ids[0]}", {})
    lists = {"runs": run_ids, "experiments": [experiment]}
    compact = {name: json.dumps(ids, separators=(",", ":")) for name, ids in lists.items()}
    return _address(server, "compare-runs", compact)


def _list_page(
    server: str, state: State, recorded: RecordedRun, condition: str, metric: str
) -> str:
    """The experiment's runs of this run of ours that meet the ``condition``, best first, and their
    charts."""
    own = f"tags.`{view.RUN_ID_TAG}` = '{view.run_id(state)}'"
    query = {
        "searchFilter": f"{own} and {condition}",
        "orderByKey": f"metrics.`{view.metric_name(metric)}`",
        "orderByAsc": "false" if state.spec.metric.larger_is_better else "true",
        "compareRunsMode": "CHART",
    }
    return _address(server, f"experiments/{recorded.experiment_id}/runs", query)


def _address(server: str, path: str, query: Mapping[str, str]) -> str:
    # The page of compared runs looks for its runs right behind the "?".
    named = (*query.items(), TRAINING)
    pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in named)
    return f"{server.rstrip('/')}/#/{path}?{pairs}"


def comparison_links(run_folder: Path, uri: str, server: str) -> list[Link]:
    """The links of the run in ``run_folder``, as MLflow's store at ``uri`` has it; ``server`` is
    the address of its UI.

    Loads mlflow, which takes seconds. Raises ``UserError`` where the store does not have the run or
    does not answer, and where the ledger cannot be read.
    """
    from orchestrator.tracking.client import Outage, recorded_run, talking

    state = state_of(run_folder)
    name, place = run_folder.name, store.shown(uri)
    try:
        with talking(uri):
            recorded = recorded_run(uri, state.spec.experiment or name, view.run_id(state))
    except Outage as outage:
        raise UserError(f"MLflow at {place} failed: {one_line(outage)}. Fix: try again") from outage
    if recorded is None:
        raise UserError(
            f"the run {name} must be in MLflow for links to it; {place} does not have it. Fix: "
            "--tracking-uri of the store that it is in, or its own command again, which fills one"
        )
    return links_of(state, RecordedRun(*recorded), server)
