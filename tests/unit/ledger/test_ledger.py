"""The ledger: any prefix replays, a torn tail is cut, a repeated report counts once."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger import events, session
from orchestrator.ledger.events import Ledger, read, tail
from orchestrator.ledger.state import replay
from trainables.errors import UserError

TRIALS = ("vit-0000", "vit-0001", "resnet-0000")


def history(path: Path) -> bytes:
    """A run of three trials: one finished, one pruned, one failed after a preemption."""
    ledger = Ledger(path)
    ledger.append("created", detail={"spec_hash": "x", "run": "r"})
    for name in TRIALS:
        family = name.partition("-")[0]
        detail = {"assignment": {"epochs": 3, "seed": 1}, "axes": {}}
        ledger.append("submitted", trial=name, family=family, stage="search", detail=detail)
    for name, end, last in zip(TRIALS, ("finished", "pruned", "failed"), (3, 1, 2), strict=True):
        ledger.append("started", trial=name, attempt=1, slot="s-0")
        for epoch in range(1, last + 1):
            metrics = {"val_top1": epoch / 10, "images_seen": 100 * epoch}
            ledger.append("reported", trial=name, epoch=epoch, metrics=metrics, checkpoint="c")
        if end == "failed":
            ledger.append("preempted", trial=name, epoch=2, checkpoint="mid")
            ledger.append("started", trial=name, attempt=2, slot="s-1")
        ledger.append(end, trial=name, epoch=last, rung=1 if end == "pruned" else None, reason="r")
    ledger.append("closed")
    ledger.close()
    return path.read_bytes()


@settings(deadline=None)  # a busy machine is no failure
@given(share=st.floats(0, 1))
def test_any_prefix_cut_anywhere_replays_to_a_valid_state(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    whole = history(folder / "whole.jsonl")
    cut = round(share * len(whole))
    (folder / "cut.jsonl").write_bytes(whole[:cut])
    state = replay(read(folder / "cut.jsonl"))
    for trial in state.trials.values():
        assert sorted(trial.reports) == list(range(1, trial.epoch + 1))
        assert (trial.ended_at is not None) == trial.status.is_final
        assert trial.status != "finished" or trial.epoch == 3
    # Going on from the cut loses nothing and leaves no torn line in the middle.
    Ledger(folder / "cut.jsonl").append("resumed")
    lines = (folder / "cut.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["event"] for line in lines][-1] == "resumed"
    assert len(lines) == whole[:cut].count(b"\n") + 1


def test_replaying_a_report_twice_counts_it_once(tmp_path: Path) -> None:
    history(tmp_path / "l.jsonl")
    records = list(read(tmp_path / "l.jsonl"))
    again = [record for record in records for _ in range(2 if record["event"] == "reported" else 1)]
    assert replay(again) == replay(records)


def test_tail_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = history(tmp_path / "l.jsonl")
    seen, offset = [], 0
    for cut in (10, 200, 777, len(whole)):
        (tmp_path / "l.jsonl").write_bytes(whole[:cut])
        records, offset = tail(tmp_path / "l.jsonl", offset)
        seen += records
    assert seen == [json.loads(line) for line in whole.splitlines()]


def test_newest_checkpoint_is_the_one_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    history(tmp_path / "l.jsonl")
    trials = replay(read(tmp_path / "l.jsonl")).trials
    assert trials["resnet-0000"].checkpoint == "mid"
    assert trials["vit-0000"].checkpoint == "c"


def test_an_unknown_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid: created"):
        Ledger(tmp_path / "l.jsonl").append("pruneed")


def test_a_ledger_has_one_writer_and_the_next_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.jsonl"
    orphan = Ledger(path)
    monkeypatch.setattr(events, "WRITER_PATIENCE_S", 0.1)
    with pytest.raises(UserError, match=r"another one still writes .*l\.jsonl.*--name OTHER"):
        Ledger(path)
    monkeypatch.setattr(events, "WRITER_PATIENCE_S", 60.0)
    last = threading.Timer(0.2, lambda: (orphan.append("noted", reason="last"), orphan.close()))
    last.start()
    Ledger(path).append("resumed")
    assert [record["event"] for record in read(path)] == ["noted", "resumed"]


def test_a_run_is_running_while_its_lock_is_taken_and_asking_leaves_no_trace(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    assert not session.is_running(folder)
    assert not folder.exists()
    folder.mkdir()
    assert not session.is_running(folder)
    assert list(folder.iterdir()) == []
    with FileLock(folder / ".lock"):
        assert session.is_running(folder)
    assert not session.is_running(folder)
    with (folder / ".lock").open("rb") as lock:  # somebody else who asks
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not session.is_running(folder)
