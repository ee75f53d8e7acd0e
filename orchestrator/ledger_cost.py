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

from orchestrator.ledger_state import State, TrialState

PURPOSES = ("train_seconds", "eval_seconds", "data_seconds", "checkpoint_seconds")


def epoch_seconds(report: Mapping[str, Any]) -> float:
    """Seconds that a slot spent on a ``reported`` record's epoch."""
    metrics = report["metrics"]
    setup = (report.get("detail") or {}).get("setup_seconds", 0.0)
    return float(sum(metrics.get(name, 0.0) for name in PURPOSES) + setup)


def slot_seconds(trials: Iterable[TrialState]) -> float:
    """Seconds that slots spent on the trials."""
    return sum(
        sum(map(epoch_seconds, trial.reports.values())) + trial.other_seconds for trial in trials
    )


def num_workers(state: State) -> int:
    """Workers of each slot of the run."""
    sweeps = state.header.get("spec", {}).get("sweeps", [])
    return int(sweeps[0]["resources"]["num_workers"]) if sweeps else 1


def worker_seconds(state: State, family: str | None = None) -> float:
    """What the run, or one family of it, has cost so far."""
    trials = [t for t in state.trials.values() if family in (None, t.family)]
    return num_workers(state) * slot_seconds(trials)


def checkpoint_bytes(run_folder: Path) -> int:
    """Bytes of all checkpoints in the run's folder; 0 where there are none."""
    total = 0
    for folder, _, names in os.walk(run_folder / "checkpoints"):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a run in progress replaces them
                total += Path(folder, name).lstat().st_size
    return total
