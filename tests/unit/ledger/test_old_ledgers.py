"""Ledgers of earlier versions and those in ``examples/``: read, compared, gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.runs import load
from orchestrator.ledger import session
from orchestrator.ledger.cost import cost_of
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import RunStatus, State, TrialStatus, replay, run_status

ROOT = Path(__file__).parents[3]
FOLDERS = (ROOT / "tests" / "ledgers", ROOT / "examples")
LEDGERS = sorted(path for folder in FOLDERS for path in folder.rglob(FILE_NAME))
NEWER = {
    "min_workers": None,
    "remote": None,
    "warm_start": None,
    "test_hash": None,
    "duplicates": None,
    "searches": 1,
    "margin": 0.01,
    "compile_seconds": None,
    "compile_saves_seconds": None,
}  # fields that old ledgers lack, as they are read


@pytest.fixture(params=LEDGERS, ids=[path.parent.name for path in LEDGERS])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def state(path: Path) -> State:
    return replay(read(path))


def same(typed: Any, recorded: Any) -> bool:
    """Whether ``typed``, as JSON, says what was recorded and nothing else but what is newer."""
    if isinstance(typed, Mapping) and isinstance(recorded, Mapping):
        added = typed.keys() - recorded.keys()
        return (
            not recorded.keys() - typed.keys()
            and all(key in NEWER and typed[key] == NEWER[key] for key in added)
            and all(same(typed[key], recorded[key]) for key in recorded)
        )
    if isinstance(typed, list) and isinstance(recorded, list):
        return len(typed) == len(recorded) and all(map(same, typed, recorded))
    return bool(typed == recorded)


def test_there_are_some() -> None:
    assert len(LEDGERS) >= 6


def test_the_header_says_what_it_said(path: Path, state: State) -> None:
    recorded = [r["detail"] for r in read(path) if r["event"] in ("created", "extended")][-1]
    assert same(json.loads(json.dumps(state.header.as_dict())), recorded)
    assert state.spec.hash() == state.header.spec_hash
    assert state.header.datasets.keys() == {sweep.family for sweep in state.spec.sweeps}


def test_every_trial_says_what_it_said(path: Path, state: State) -> None:
    records = list(read(path))
    submitted = {r["trial"]: r["detail"] for r in records if r["event"] == "submitted"}
    for name, trial in state.trials.items():
        assert same(
            json.loads(json.dumps(trial.assignment.as_dict())), submitted[name]["assignment"]
        )
        assert (trial.axes, trial.open_axes) == (submitted[name]["axes"], ())
        assert trial.status.is_final
    reported = [r for r in records if r["event"] == "reported"]
    assert len(reported) == sum(len(trial.reports) for trial in state.trials.values())
    for record in reported:
        report = state.trials[record["trial"]].reports[record["epoch"]]
        assert (report.metrics, report.checkpoint) == (record["metrics"], record["checkpoint"])


def test_its_status_is_the_same_for_all_who_show_it(path: Path, state: State) -> None:
    run = load(path.parent)
    assert run.status == run_status(state, running=False) == RunStatus.DONE
    assert run_status(replace(state, closed=False), running=False) == RunStatus.INTERRUPTED
    assert (
        run_status(replace(state, closed=False, stopped=True), running=False) == RunStatus.STOPPED
    )
    assert run_status(replace(state, closed=False), running=True) == RunStatus.RUNNING
    assert run_status(State(), running=False) == RunStatus.EMPTY
    for trial in state.trials.values():
        trial.status = TrialStatus.FAILED
    assert run_status(state, running=False) == RunStatus.FAILED


def test_it_is_compared_and_its_costs_add_up(path: Path, state: State) -> None:
    comparison = compare([load(path.parent)]).as_dict()
    for entry in comparison["families"]:
        parts = entry["device_seconds_parts"]
        assert sum(parts.values()) == pytest.approx(entry["device_seconds"])
        assert "gpu_seconds" not in entry  # they are of CPUs
    hours = comparison["runs"][0]["device_hours"]
    assert cost_of(state.trials.values()).total == pytest.approx(3600 * hours)


def test_the_same_spec_goes_on_under_its_name(path: Path, state: State, tmp_path: Path) -> None:
    folder = tmp_path / state.spec.name
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(path.read_bytes())
    spec = replace(state.spec, storage=str(tmp_path))
    assert session.name_mistakes(spec) == []
    assert session.searched(spec, state)
    after = session.begin(spec, folder, "s", datasets={}, geometry={}, forecast=None)
    assert (after.closed, after.header) == (False, state.header)  # resumed, not begun anew
    sweeps = tuple(replace(sweep, seed=sweep.seed + 1) for sweep in spec.sweeps)
    assert "seed: was" in session.name_mistakes(replace(spec, sweeps=sweeps))[0]
