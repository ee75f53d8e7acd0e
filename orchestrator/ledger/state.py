"""What a ledger's records add up to: trials and run as plain values, a fold over the lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TERMINAL = {"pruned": "pruned", "finished": "finished", "failed": "failed"}

Record = dict[str, Any]


@dataclass
class TrialState:
    """Everything the ledger says of one trial."""

    trial: str
    family: str
    stage: str = "search"
    status: str = "queued"  # queued, running, finished, pruned, failed
    attempt: int = 0
    assignment: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] | None = None  # None: not drawn yet, its searched values are missing
    winner: str | None = None  # a final's search trial
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)  # detail of the record that ended it
    reports: dict[int, Record] = field(default_factory=dict)
    rungs: dict[int, str] = field(default_factory=dict)  # rung epoch -> promoted | pruned | audited
    preempted: Record | None = None
    preemptions: int = 0  # attempts that lost a node, or had to leave one
    slot: str | None = None
    nodes: tuple[str, ...] = ()  # of its slot's workers, as the last attempt began
    reason: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    other_seconds: float = 0.0  # of its slots, for what no report counts: lost epochs, the test

    @property
    def epoch(self) -> int:
        """Last epoch reported; 0 when none was."""
        return max(self.reports, default=0)

    @property
    def checkpoints(self) -> list[str]:
        """Checkpoint folders on record, the newest first, be it in the middle of an epoch."""
        written = [self.reports[epoch].get("checkpoint") for epoch in sorted(self.reports)]
        if self.preempted and self.preempted["epoch"] >= self.epoch:
            written.append(self.preempted["checkpoint"])
        return [str(folder) for folder in reversed(written) if folder]

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint folder on record."""
        return next(iter(self.checkpoints), None)

    @property
    def best_checkpoint(self) -> str | None:
        """The folder on record with the best val_top1, the earlier one of a tie."""
        held = {epoch: one for epoch, one in self.reports.items() if one.get("checkpoint")}
        _, epoch = _best(held, "val_top1")
        return None if epoch is None else str(held[epoch]["checkpoint"])

    @property
    def device_seconds(self) -> float:
        """Seconds of training and evaluation, times the workers that spent them."""
        workers = int(self.detail.get("num_workers", 1))
        spent = sum(
            (metrics.get("train_seconds", 0.0) + metrics.get("eval_seconds", 0.0))
            * report.get("workers", workers)
            for report in self.reports.values()
            for metrics in [report["metrics"]]
        )
        return float(spent)

    def best(self, metric: str = "val_top1") -> tuple[float | None, int | None]:
        """Best value of ``metric`` and the epoch it was reached in."""
        return _best(self.reports, metric)


def _best(reports: Mapping[int, Record], metric: str) -> tuple[float | None, int | None]:
    values = [
        (report["metrics"][metric], -epoch)
        for epoch, report in reports.items()
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
    stop_reason: str | None = None
    verdict: Record = field(default_factory=dict)  # the last one on a claim, with its time


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
                axes=detail.get("axes"),
                winner=detail.get("winner"),
            ),
        )
        return
    trial = state.trials.get(name)
    if trial is None:
        return
    trial.other_seconds += record.get("slot_seconds", 0.0)
    if event == "started":
        trial.status = "running"
        trial.attempt = record["attempt"]
        trial.slot = record.get("slot")
        trial.nodes = tuple(record.get("nodes", ()))
        trial.started_at = trial.started_at or record["time"]
        trial.detail.update(record.get("detail", {}))
    elif event == "drawn":
        if trial.axes is None:
            trial.axes, trial.assignment = record["detail"]["axes"], record["detail"]["assignment"]
    elif event == "reported":
        trial.reports.setdefault(record["epoch"], record)
        trial.detail.update(record.get("detail", {}))
    elif event == "noted":
        state.notes.append(record.get("reason", ""))
    elif event == "preempted":
        trial.preempted = record if record.get("checkpoint") else trial.preempted
        trial.preemptions += bool(record.get("nodes"))
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
        state.stop_reason = record.get("reason")
    elif event == "closed":
        state.closed = True
    elif event == "frozen":
        state.frozen, state.sealed = record["detail"], True
    elif event == "test_opened":
        state.sealed = False
        state.test_opened_at = state.test_opened_at or record["time"]
        state.test_openings += 1
    elif event == "verdict":
        state.verdict = record
    elif event == "noted":
        state.notes.append(record.get("reason", ""))
