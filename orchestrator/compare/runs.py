"""A run folder as the comparison sees it: header, tables, notes and what the finals measured."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.ledger import events
from orchestrator.ledger.cost import (
    checkpoint_bytes,
    epochs_by_workers,
    node_notes,
    preemptions,
    spent_device_hours,
)
from orchestrator.ledger.state import Record, replay
from orchestrator.ledger.tables import tables
from trainables.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run. ``trials`` and ``reports`` are those of :func:`orchestrator.ledger.tables.tables`.

    ``outcomes`` holds, by trial, the detail of its ``finished`` record; a final's has
    ``{"test": {"top1": fraction, "top5": fraction, "loss": nats}}``. ``correct`` holds, by
    final, one bool an image of the test split, in the split's order: shape (N,). ``frozen`` holds
    what was frozen of each family's winner before its finals, ``winners`` each final's own.
    Times are unix seconds. ``device_hours`` is all that the run has cost, ``checkpoint_bytes`` what
    its checkpoints take on disk.
    """

    name: str
    folder: Path
    header: Mapping[str, Any]
    trials: pa.Table
    reports: pa.Table
    notes: tuple[str, ...] = ()
    outcomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    correct: Mapping[str, np.ndarray] = field(default_factory=dict)
    frozen: Mapping[str, Any] = field(default_factory=dict)
    winners: Mapping[str, str] = field(default_factory=dict)
    test_opened_at: float | None = None
    test_openings: int = 0
    preemptions: int = 0
    epochs_by_workers: Mapping[int, int] = field(default_factory=dict)
    device_hours: float | None = None
    checkpoint_bytes: int | None = None
    created_at: float | None = None
    closed: bool = False
    stopped: bool = False
    verdict: Mapping[str, Any] = field(default_factory=dict)  # on the claim that it tested

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``empty`` or ``in progress``."""
        if not self.trials.num_rows:
            return "empty"
        if self.closed:
            return "complete"
        return "interrupted" if self.stopped else "in progress"


def load(run_folder: Path) -> RunData:
    """Read a run folder. Raises ``UserError`` when it holds no readable ledger."""
    path = run_folder / events.FILE_NAME
    if not path.is_file():
        raise UserError(
            f"a run is a folder with a {events.FILE_NAME}; {str(run_folder)!r} has none. "
            "Fix: name a run that exists under the storage folder, or give --storage"
        )
    # A million small objects that all stay: looking for garbage among them doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        state = replay(_records(path))
        trials, reports = tables(state)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise UserError(
            f"every line of a ledger must be a record this version knows; {str(path)!r} has one "
            f"that is not ({type(error).__name__}: {error}). Fix: restore the file from a backup"
        ) from error
    finally:
        if collecting:
            gc.enable()
    finals = [trial for trial in state.trials.values() if trial.stage == "final"]
    return RunData(
        name=str(state.header.get("run") or run_folder.resolve().name),
        folder=run_folder,
        header=state.header,
        trials=trials,
        reports=reports,
        notes=(*node_notes(state), *state.notes),
        preemptions=preemptions(state),
        epochs_by_workers=epochs_by_workers(state),
        outcomes={trial.trial: trial.outcome for trial in state.trials.values() if trial.outcome},
        correct=_read_correct(run_folder, [trial.trial for trial in finals]),
        frozen=state.frozen.get("winners", {}),
        winners={trial.trial: trial.winner for trial in finals if trial.winner},
        test_opened_at=state.test_opened_at,
        test_openings=state.test_openings,
        device_hours=spent_device_hours(state),
        checkpoint_bytes=checkpoint_bytes(run_folder),
        created_at=state.created_at,
        closed=state.closed,
        stopped=state.stopped,
        verdict=state.verdict.get("detail", {}),
    )


def _records(path: Path) -> list[Record]:
    """Every whole record, decoded at once: half the time of a line at a time."""
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    records: list[Record] = json.loads(b"[" + b",".join(lines) + b"]")
    return records


def _read_correct(run_folder: Path, finals: list[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for trial in finals:
        path = run_folder / "finals" / trial / "test_correct.arrow"
        if path.is_file():
            with pa.memory_map(str(path)) as source:
                column = pa.ipc.open_file(source).read_all()["correct"]
                found[trial] = column.to_numpy(zero_copy_only=False).astype(bool)
    return found
