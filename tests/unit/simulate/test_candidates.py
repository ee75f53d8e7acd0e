"""Several candidates of one family, each with searches, finals and records of its own."""

from __future__ import annotations

import json

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.winners import select_model
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import replay
from orchestrator.simulate.replay import replay_of
from orchestrator.simulate.run import SimulatedRun, simulate
from orchestrator.simulate.worlds import SyntheticWorld, tournament
from orchestrator.tracking import view
from trainables.errors import UserError

NAMES = ("vit", "resnet18", "resnet18.a1_in1k", "small")
# The one that is far ahead is in the middle, and the start of another's name.
WORLD = SyntheticWorld(effect={"resnet18": 0.2}, pace={"small": 2.0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRun:
    spec = tournament(candidates=NAMES, searches=3, trials=4)
    return simulate(spec, WORLD, tmp_path_factory.mktemp("run") / "pool", slots=3)


def test_each_has_its_trials_shares_and_finals(run: SimulatedRun) -> None:
    for name in NAMES:
        own = [trial for trial in run.state.trials.values() if trial.candidate == name]
        assert sum(trial.stage == "search" for trial in own) == 3 * 4
        assert sum(trial.stage == "final" for trial in own) == 3
        assert {trial.family for trial in own} == {"vit" if name == "vit" else "timm"}
        assert all(trial.trial.startswith(f"{name}-") for trial in own)


def test_a_record_names_the_candidate_only_where_it_is_not_its_family(run: SimulatedRun) -> None:
    records = list(read(run.data.folder / FILE_NAME))
    named = {r["trial"]: r.get("candidate") for r in records if r["event"] == "submitted"}
    assert named["vit-0000"] is None
    assert named["resnet18.a1_in1k-s2-0001"] == "resnet18.a1_in1k"
    (created,) = (r["detail"] for r in records if r["event"] == "created")
    labels = [sweep.get("label") for sweep in created["spec"]["sweeps"]]
    assert labels == [None, *NAMES[1:]]
    assert replay(records).spec == run.state.spec


def test_the_comparison_speaks_of_candidates(run: SimulatedRun) -> None:
    made = compare([run.data])
    told = json.loads(json.dumps(made.as_dict()))
    assert [entry["label"] for entry in told["candidates"]] == list(NAMES)
    assert [entry["family"] for entry in told["candidates"]] == ["vit", *["timm"] * 3]
    assert [entry["family"] for entry in told["families"]] == list(NAMES)
    assert len(told["pairs"]) == 6
    assert {
        frozenset((pair["a"], pair["b"]))
        for pair in told["pairs"]
        if pair["verdict"] != "not tested"
    } == {frozenset((a, b)) for a in NAMES for b in NAMES if a != b}
    assert told["inference"]["places"][0]["family"] == "resnet18"
    (kinds,) = (fact for fact in told["differences"] if fact["what"] == "family")
    assert kinds["values"] == dict(zip(NAMES, ["vit", *["timm"] * 3], strict=True))
    page = report_html(made)
    assert all(page.count(name) > 2 for name in NAMES)
    table = view.summary_table(told)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["candidate"]: row["family"] for row in rows} == kinds["values"]


def test_the_best_of_one_candidate_is_exported(run: SimulatedRun) -> None:
    assert select_model(run.state).trial.candidate == "resnet18"
    assert select_model(run.state, "small").trial.candidate == "small"
    with pytest.raises(
        UserError, match=r"--candidate must be one of vit, resnet18, .*; got 'timm'"
    ):
        select_model(run.state, "timm")


def test_a_replay_is_of_every_candidates_search(run: SimulatedRun) -> None:
    replayed = replay_of(run.data.folder, ["resnet18.scheduler.noise_rule=both"], slots=2, orders=2)
    assert replayed.differs_from_record == ()
    searches = {search.family for search in replayed.as_it_ran.families}
    assert searches == {f"{name}{search}" for name in NAMES for search in ("", "-s2", "-s3")}
