"""What a run has cost, from its ledger, in worker-seconds and in bytes on disk.

Charged are, times the workers of a slot, the seconds that reports name (training, evaluation,
data, checkpoints, and the building of a trial in its first report of an attempt) and what no
report counts: epochs lost with their worker, and the finals' meeting with the test split.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator import budget
from orchestrator.ledger_state import State, TrialState
from orchestrator.limits import ResourceSpec
from orchestrator.retention import FOLDER
from trainables import storage

PURPOSES = ("train_seconds", "eval_seconds", "data_seconds", "checkpoint_seconds")


def epoch_seconds(report: Mapping[str, Any]) -> float:
    """Seconds that a slot spent on a ``reported`` record's epoch; of an elastic slot, those that
    all its workers would have spent for as much."""
    metrics = report["metrics"]
    setup = (report.get("detail") or {}).get("setup_seconds", 0.0)
    spent = float(sum(metrics.get(name, 0.0) for name in PURPOSES) + setup)
    return spent * float(report.get("workers", 1) / report.get("of_workers", 1))


def slot_seconds(trials: Iterable[TrialState]) -> float:
    """Seconds that slots spent on the trials."""
    return sum(
        sum(map(epoch_seconds, trial.reports.values())) + trial.other_seconds for trial in trials
    )


def worker_seconds(state: State, family: str | None = None) -> float:
    """What the run, or one family of it, has cost so far."""
    trials = [t for t in state.trials.values() if family in (None, t.family)]
    return resources_of(state).num_workers * slot_seconds(trials)


def checkpoint_bytes(run_folder: Path) -> int:
    """Bytes of all checkpoints in the run's folder, or in object storage where it is kept there;
    0 where there are none. Raises ``StorageError``."""
    if remote := storage.origin(run_folder):
        return sum(one.size for one in storage.listed(f"{remote}/{FOLDER}"))
    total = 0
    for folder, _, names in os.walk(run_folder / FOLDER):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a run in progress replaces them
                total += Path(folder, name).lstat().st_size
    return total


def resources_of(state: State) -> ResourceSpec:
    """What a slot of the run takes."""
    sweeps = state.header.get("spec", {}).get("sweeps", [])
    return ResourceSpec(**sweeps[0]["resources"]) if sweeps else ResourceSpec()


def spent_device_hours(state: State) -> float:
    """Hours of GPUs, or of CPUs without any, that the run has cost so far."""
    return budget.device_hours(worker_seconds(state), resources_of(state))
