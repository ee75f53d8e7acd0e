"""What a run has cost, from its ledger, in worker-seconds and in bytes on disk.

Charged are, times the workers of a slot, the seconds that reports name (training, evaluation,
data, checkpoints, and the building of a trial in its first report of an attempt) and what no
report counts: epochs lost with their worker, and the finals' meeting with the test split.

What a run's nodes did to it, from its ledger: preemptions, and how many workers there were.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from orchestrator.ledger.retention import FOLDER
from orchestrator.ledger.state import ReportedEpoch, State, TrialState
from orchestrator.spec import limits
from orchestrator.spec.limits import ResourceSpec
from trainables.storage import object_storage

PURPOSES = ("train_seconds", "eval_seconds", "data_seconds", "checkpoint_seconds")


def epoch_seconds(report: ReportedEpoch) -> float:
    """Seconds that a slot spent on an epoch; of an elastic slot, those that all its workers would
    have spent for as much."""
    setup = report.detail.get("setup_seconds", 0.0)
    spent = float(sum(report.metrics.get(name, 0.0) for name in PURPOSES) + setup)
    return spent * (report.workers or 1) / (report.of_workers or 1)


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
    if remote := object_storage.origin(run_folder):
        return sum(one.size for one in object_storage.list_files(f"{remote}/{FOLDER}"))
    total = 0
    for folder, _, names in os.walk(run_folder / FOLDER):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a run in progress replaces them
                total += Path(folder, name).lstat().st_size
    return total


def resources_of(state: State) -> ResourceSpec:
    """What a slot of the run takes."""
    sweeps = state.spec.sweeps
    return sweeps[0].resources if sweeps else ResourceSpec()


def spent_device_hours(state: State) -> float:
    """Hours of GPUs, or of CPUs without any, that the run has cost so far."""
    return limits.device_hours(worker_seconds(state), resources_of(state))


def preemptions(state: State, family: str | None = None) -> int:
    """Attempts of trials that lost a node; none of them is a failure."""
    return sum(t.preemptions for t in state.trials.values() if family in (None, t.family))


def epochs_by_workers(state: State) -> dict[int, int]:
    """Epochs by the workers that trained them, the most workers first; empty where slots are not
    elastic: then all have as many as the spec says."""
    epochs = Counter(
        report.workers
        for trial in state.trials.values()
        for report in trial.reports.values()
        if report.workers is not None
    )
    return dict(sorted(epochs.items(), reverse=True))


def node_notes(state: State) -> list[str]:
    """Both, in a sentence each where there is something to say."""
    found = []
    if lost := preemptions(state):
        hit = sum(bool(trial.preemptions) for trial in state.trials.values())
        found.append(
            f"{lost} preemption{'s' * (lost != 1)} of {hit} trial{'s' * (hit != 1)}: nodes went "
            "away, and the trials went on from their last checkpoints; none counts as a failure"
        )
    if trained := epochs_by_workers(state):
        full = resources_of(state).num_workers
        told = ", ".join(
            f"{epochs} epoch{'s' * (epochs != 1)} by {workers}"
            for workers, epochs in trained.items()
        )
        found.append(f"workers: {told}, at the global batch of {full} workers throughout")
    return found
