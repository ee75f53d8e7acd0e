"""The ledger: the append-only record of every report and decision of a run.

One JSON object a line, one writer (the dispatcher). A line is written with a single system
call, so a process killed at any moment leaves whole lines and at most one torn tail, which
the next writer cuts off. Whatever can be asked of a run (what to resume, what MLflow should
show, what to compare) is a pure function of these lines: see :func:`replay`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
FILE_NAME = "ledger.jsonl"

EVENTS = (
    "created",  # first line of a run; detail = header (spec, hash, environment, dataset)
    "extended",  # the same run asked for more trials; detail = the new header
    "submitted",  # a trial's recipe was drawn; detail = assignment and axes
    "started",  # a slot took an attempt of the trial
    "reported",  # one epoch done; metrics, checkpoint
    "promoted",  # passed a rung
    "pruned",  # stopped at a rung; reason holds the cut-off
    "audited",  # would have been pruned at that rung, finished anyway off the books
    "paused",  # waits at a rung, its slot free, until it is promoted or pruned
    "preempted",  # the trial's worker was told to leave; checkpoint, if it could write one
    "finished",  # reached its last epoch
    "failed",  # ended by an error; reason
    "stopped",  # the run was interrupted; resumable
    "resumed",  # an interrupted run went on
    "frozen",  # the search is over; detail = the winners by recipe hash, before any final
    "test_opened",  # the sealed test split is about to be read
    "noted",  # anything else a reader should know; reason
    "closed",  # the run reached its end
)
TERMINAL = {"pruned": "pruned", "finished": "finished", "failed": "failed"}

Record = dict[str, Any]


class Ledger:
    """The one writer. Opening cuts a torn last line off; ``append`` is durable to a crash."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._cut_torn_tail()

    def _cut_torn_tail(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)

    def append(self, event: str, *, trial: str | None = None, **fields: Any) -> Record:
        """Write one record and return it. Raises ``ValueError`` for an unknown event."""
        if event not in EVENTS:
            raise ValueError(f"unknown ledger event {event!r}; valid: {', '.join(EVENTS)}")
        record: Record = {"time": round(time.time(), 6), "event": event}
        if trial is not None:
            record["trial"] = trial
        record.update({key: value for key, value in fields.items() if value is not None})
        line = json.dumps(record, separators=(",", ":"), allow_nan=True)
        self._file.write(line.encode() + b"\n")
        return record

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    """Whole records of a ledger file, in order; a torn last line is left out."""
    yield from tail(path, 0)[0]


def tail(path: Path, offset: int) -> tuple[list[Record], int]:
    """Whole records from byte ``offset`` on, and the offset to go on from."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:whole].splitlines()], offset + whole


@dataclass
class TrialState:
    """Everything the ledger says of one trial."""

    trial: str
    family: str
    stage: str = "search"
    status: str = "queued"  # queued, running, finished, pruned, failed
    attempt: int = 0
    assignment: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    winner: str | None = None  # a final's search trial
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)  # detail of the record that ended it
    reports: dict[int, Record] = field(default_factory=dict)
    rungs: dict[int, str] = field(default_factory=dict)  # rung epoch -> promoted | pruned | audited
    preempted: Record | None = None
    slot: str | None = None
    reason: str | None = None
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def epoch(self) -> int:
        """Last epoch reported; 0 when none was."""
        return max(self.reports, default=0)

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint folder on record, in the middle of an epoch if need be."""
        if self.preempted and self.preempted["epoch"] >= self.epoch:
            return str(self.preempted["checkpoint"])
        for epoch in sorted(self.reports, reverse=True):
            if self.reports[epoch].get("checkpoint"):
                return str(self.reports[epoch]["checkpoint"])
        return None

    @property
    def device_seconds(self) -> float:
        """Seconds of training and evaluation, times the workers that spent them."""
        workers = int(self.detail.get("num_workers", 1))
        spent = sum(
            report["metrics"].get("train_seconds", 0.0) + report["metrics"].get("eval_seconds", 0.0)
            for report in self.reports.values()
        )
        return float(spent * workers)

    def best(self, metric: str = "val_top1") -> tuple[float | None, int | None]:
        """Best value of ``metric`` and the epoch it was reached in."""
        values = [
            (report["metrics"][metric], -epoch)
            for epoch, report in self.reports.items()
            if math.isfinite(report["metrics"].get(metric, math.nan))
        ]
        if not values:
            return None, None
        value, negative_epoch = max(values)
        return value, -negative_epoch


@dataclass
class State:
    """A run as its ledger tells it."""

    header: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, TrialState] = field(default_factory=dict)
    created_at: float | None = None
    closed: bool = False
    stopped: bool = False
    frozen: dict[str, Any] = field(default_factory=dict)  # winners and final_seeds
    sealed: bool = True  # the winners on record have not met the test split
    test_opened_at: float | None = None
    test_openings: int = 0
    notes: list[str] = field(default_factory=list)


def replay(records: Iterable[Record]) -> State:
    """Fold records into a state. Any prefix gives a valid one; a repeated report counts once."""
    state = State()
    for record in records:
        apply(state, record)
    return state


def apply(state: State, record: Record) -> None:
    """Fold one record into ``state``."""
    event = record["event"]
    name = record.get("trial")
    if name is None:
        _apply_run_event(state, event, record)
        return
    if event == "submitted":
        detail = record["detail"]
        state.trials.setdefault(
            name,
            TrialState(
                trial=name,
                family=record["family"],
                stage=record.get("stage", "search"),
                assignment=detail["assignment"],
                axes=detail.get("axes", {}),
                winner=detail.get("winner"),
            ),
        )
        return
    trial = state.trials.get(name)
    if trial is None:
        return
    if event == "started":
        trial.status = "running"
        trial.attempt = record["attempt"]
        trial.slot = record.get("slot")
        trial.started_at = trial.started_at or record["time"]
        trial.detail.update(record.get("detail", {}))
    elif event == "reported":
        trial.reports.setdefault(record["epoch"], record)
        trial.detail.update(record.get("detail", {}))
    elif event == "preempted":
        trial.preempted = record if record.get("checkpoint") else None
        trial.slot = None
    elif event in ("promoted", "audited", "paused"):
        trial.rungs[record["rung"]] = event
        trial.slot = None if event == "paused" else trial.slot
    elif event in TERMINAL:
        if event == "pruned":
            trial.rungs[record["rung"]] = event
        trial.status = TERMINAL[event]
        trial.outcome = record.get("detail", {})
        trial.reason = record.get("reason")
        trial.slot = None
        trial.ended_at = record["time"]


def _apply_run_event(state: State, event: str, record: Record) -> None:
    if event in ("created", "extended"):
        state.header = record["detail"]
        state.created_at = state.created_at or record["time"]
        state.closed = False
    elif event == "resumed":
        state.stopped = False
        state.closed = False
    elif event == "stopped":
        state.stopped = True
    elif event == "closed":
        state.closed = True
    elif event == "frozen":
        state.frozen, state.sealed = record["detail"], True
    elif event == "test_opened":
        state.sealed = False
        state.test_opened_at = state.test_opened_at or record["time"]
        state.test_openings += 1
    elif event == "noted":
        state.notes.append(record.get("reason", ""))
