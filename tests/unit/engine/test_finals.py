"""Who wins, what is frozen, and when the sealed test may be opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.winners import winners
from orchestrator.engine import finals
from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.ledger import session
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import Record, State, replay
from orchestrator.spec.run import RunSpec
from tests.unit.crashes import killed, order_for
from trainables.config import EpochReport
from trainables.errors import UserError
from trainables.worker.dispatcher_client import SlotCommand


def searched(folder: Path, values: dict[str, tuple[str, float]], seeds: int = 2) -> RunSpec:
    """A run whose search is over: trial -> (how it ended, validation accuracy)."""
    spec = spec_of(["vit", "resnet"], RunOptions(storage=str(folder), name="r"))
    spec = replace(spec, final_seeds=seeds)
    sweeps = {sweep.family: sweep for sweep in spec.sweeps}
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={"spec": spec.as_dict()})
    for name, (status, value) in values.items():
        family, index = name.split("-")
        sweep = sweeps[family]
        detail = {"assignment": sweep.assignment(int(index)).as_dict(), "axes": {}}
        ledger.append("submitted", trial=name, family=family, stage="search", detail=detail)
        ledger.append("started", trial=name, attempt=1, slot="s-0")
        ledger.append("reported", trial=name, epoch=1, metrics={"val_top1": value})
        if status == "audited":
            ledger.append("audited", trial=name, rung=1, epoch=1, reason="low")
        ledger.append("pruned" if status == "pruned" else "finished", trial=name, rung=1, epoch=1)
    ledger.close()
    return spec


def state(folder: Path) -> State:
    return replay(read(folder / "ledger.jsonl"))


def records_due(spec: RunSpec, state: State, *, reopen: bool = False) -> list[Record]:
    due = finals.due(spec, state, reopen=reopen)
    assert due is not None
    return due.records()


VALUES = {
    "vit-0000": ("finished", 0.4),
    "vit-0001": ("pruned", 0.9),
    "vit-0002": ("audited", 0.8),
    "vit-0003": ("finished", 0.5),
    "resnet-0000": ("pruned", 0.7),
}


def test_only_finished_trials_of_the_race_win(tmp_path: Path) -> None:
    searched(tmp_path, VALUES)
    assert {f: t.trial for f, t in winners(state(tmp_path)).items()} == {"vit": "vit-0003"}


def test_finals_differ_from_their_winner_by_seed_and_carve_alone(tmp_path: Path) -> None:
    spec = searched(tmp_path, VALUES | {"resnet-0001": ("finished", 0.3)})
    records = records_due(spec, state(tmp_path))
    assert [record["event"] for record in records] == ["frozen"] + ["submitted"] * 4
    by_name = {record["trial"]: record["detail"] for record in records[1:]}
    won = state(tmp_path).trials["vit-0003"].assignment.as_dict()
    first, second = (by_name[f"vit-final-0{i}"]["assignment"] for i in range(2))
    assert first["seed"] != second["seed"] != won["seed"]
    # Paired over families: the same seed and the same carve of validation images.
    assert first["seed"] == by_name["resnet-final-00"]["assignment"]["seed"]
    assert first["data"] == by_name["resnet-final-00"]["assignment"]["data"]
    mine = {"trial_id", "seed", "data", "checkpoint", "checkpoint_folder"}
    assert {k: v for k, v in first.items() if k not in mine} == {
        k: v for k, v in won.items() if k not in mine
    }
    assert {**first["data"], "val_seed": None} == won["data"]


def test_the_same_winners_are_frozen_once(tmp_path: Path) -> None:
    spec = searched(tmp_path, VALUES)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for record in records_due(spec, state(tmp_path)):
        ledger.append(**record)
    assert finals.due(spec, state(tmp_path), reopen=False) is None


def started(folder: Path, **options: Any) -> DispatcherState:
    asked = SessionOptions(session="s", max_failures_per_trial=1, **options)
    return DispatcherState(folder / "ledger.jsonl", asked)


def test_the_test_split_is_opened_once_and_again_only_on_demand(tmp_path: Path) -> None:
    spec = searched(tmp_path, VALUES)
    dispatcher = started(tmp_path, more_to_come=True)
    # Nothing waits, but finals are to come: an idle slot stays.
    assert order_for(dispatcher, "s-0", "life", None) is None
    dispatcher.submit(records_due(spec, dispatcher.state))
    for name in ("vit-final-00", "vit-final-01"):
        dispatcher.want(name, 1)
        order = order_for(dispatcher, "s-0", "life", None)
        assert order is not None
        assert order.command == SlotCommand.TRAIN
        for epoch in range(1, dispatcher.state.trials[name].assignment.epochs + 1):
            assert dispatcher.reported("s-0", name, 1, EpochReport(epoch, {"val_top1": 0.5}))
        assert dispatcher.state.trials[name].status == "running"
        order = order_for(dispatcher, "s-0", "life", name)
        assert order is not None
        assert order.command == SlotCommand.EVALUATE_TEST
        dispatcher.end("finished", name, detail={"test": {"top1": 0.45}})
    after = state(tmp_path)
    assert after.test_openings == 1
    assert after.trials["vit-final-01"].outcome == {"test": {"top1": 0.45}}
    with pytest.raises(UserError, match="opened once"):
        finals.due(replace(spec, final_seeds=3), after, reopen=False)
    again = records_due(replace(spec, final_seeds=3), after, reopen=True)
    assert [r["trial"] for r in again[1:]] == [f"vit-final2-0{i}" for i in range(3)]


def test_a_final_that_lost_its_worker_after_training_is_examined_not_trained(
    tmp_path: Path,
) -> None:
    spec = searched(tmp_path, VALUES, seeds=1)
    dispatcher = started(tmp_path, more_to_come=True)
    dispatcher.submit(records_due(spec, dispatcher.state))
    dispatcher.want("vit-final-00", 1)
    order_for(dispatcher, "s-0", "life-1", None)
    epochs = dispatcher.state.trials["vit-final-00"].assignment.epochs
    for epoch in range(1, epochs + 1):
        at = tmp_path / "checkpoints" / "vit-final-00" / "attempt-1" / f"epoch-{epoch:04d}"
        at.mkdir(parents=True)
        report = EpochReport(epoch, {"val_top1": 0.5}, str(at))
        dispatcher.reported("s-0", "vit-final-00", 1, report)
    killed(dispatcher)
    dispatcher = started(tmp_path)
    order = order_for(dispatcher, "s-0", "life-2", None)
    assert order is not None
    assert order.command == SlotCommand.EVALUATE_TEST
    assert order.assignment.checkpoint == str(at)


def test_finals_that_were_interrupted_go_on_and_a_longer_search_is_refused(tmp_path: Path) -> None:
    spec = searched(tmp_path, dict.fromkeys(("vit-0000", "resnet-0000"), ("finished", 0.4)))
    spec = replace(spec, sweeps=tuple(replace(sweep, trials=1) for sweep in spec.sweeps))
    dispatcher = started(tmp_path)
    dispatcher.submit(records_due(spec, dispatcher.state))
    dispatcher.record("test_opened")
    assert session.searched(spec, state(tmp_path))
    assert session.open_trials(state(tmp_path)) != []
    assert finals.due(spec, state(tmp_path), reopen=False) is None
    longer = replace(spec, sweeps=tuple(replace(sweep, trials=2) for sweep in spec.sweeps))
    assert not session.searched(longer, state(tmp_path))
