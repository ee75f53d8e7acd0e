"""What a run has cost, from its ledger, in device seconds and in bytes on disk.

A device second is a second of one worker of a slot, whatever it holds: a GPU, or CPUs where there
is none. Report, compare JSON, MLflow and budget all mean the same sum by it.

What a run's nodes did to it, from its ledger: preemptions, and how many workers there were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.ledger.retention import FOLDER
from orchestrator.ledger.state import ReportedEpoch, State, TrialState
from orchestrator.spec import limits
from orchestrator.spec.limits import ResourceSpec
from trainables.storage import object_storage


@dataclass(frozen=True, kw_only=True)
class DeviceSeconds:
    """Seconds of devices by what they went into. ``setup`` is building a trial, in its first report
    of an attempt; ``unreported`` what no report counts: epochs lost with their worker, the finals'
    test evaluation, and measuring their speed."""

    train: float = 0.0
    eval: float = 0.0
    data: float = 0.0
    checkpoint: float = 0.0
    setup: float = 0.0
    unreported: float = 0.0

    @property
    def total(self) -> float:
        """What is charged."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """By purpose, in seconds."""
        return vars(self).copy()

    def __add__(self, other: DeviceSeconds) -> DeviceSeconds:
        return DeviceSeconds(**{k: v + getattr(other, k) for k, v in self.parts().items()})


def epoch_cost(report: ReportedEpoch, num_workers: int) -> DeviceSeconds:
    """Of one epoch; ``num_workers`` trained it where the report does not say how many."""
    workers = report.workers or num_workers
    return DeviceSeconds(
        setup=workers * report.detail.get("setup_seconds", 0.0),
        **{
            purpose: workers * report.metrics.get(f"{purpose}_seconds", 0.0)
            for purpose in ("train", "eval", "data", "checkpoint")
        },
    )


def cost_of(trials: Iterable[TrialState]) -> DeviceSeconds:
    """Of all that the trials took, so far."""
    cost = DeviceSeconds()
    for trial in trials:
        cost += DeviceSeconds(unreported=trial.num_workers * (trial.unreported_s + trial.held_s))
        for report in trial.reports.values():
            cost += epoch_cost(report, trial.num_workers)
    return cost


def epoch_seconds(report: ReportedEpoch, num_workers: int) -> float:
    """Seconds of a slot of ``num_workers`` that an epoch is charged: of a slot that had fewer
    workers, those that all of them would have spent for as much."""
    return epoch_cost(report, num_workers).total / num_workers


def device_seconds(state: State, candidate: str | None = None) -> float:
    """What the run, or one candidate of it, has cost so far."""
    return cost_of(t for t in state.trials.values() if candidate in (None, t.candidate)).total


def checkpoint_bytes(run_folder: Path) -> int:
    """Bytes of all checkpoints in the run's folder, or in object storage where it is kept there;
    0 where there are none. Raises ``StorageError``."""
    place = object_storage.origin(run_folder) or f"file://{run_folder.resolve()}"
    return sum(file.size for file in object_storage.list_files(f"{place}/{FOLDER}"))


def resources_of(state: State) -> ResourceSpec:
    """What a slot of the run takes."""
    sweeps = state.spec.sweeps
    return sweeps[0].resources if sweeps else ResourceSpec()


def spent_device_hours(state: State) -> float:
    """Hours of GPUs, or of CPUs without any, that the run has cost so far."""
    return limits.device_hours(device_seconds(state), resources_of(state))


def preemptions(state: State, candidate: str | None = None) -> int:
    """Attempts of trials that lost a node; none of them is a failure."""
    return sum(t.preemptions for t in state.trials.values() if candidate in (None, t.candidate))


def epochs_by_workers(state: State) -> dict[int, int]:
    """Epochs by the workers that trained them, the most workers first; empty where slots are not
    elastic: then all have as many as the spec says."""
    reports = (report for trial in state.trials.values() for report in trial.reports.values())
    epochs = Counter(report.workers for report in reports if report.workers is not None)
    return dict(sorted(epochs.items(), reverse=True))


def node_notes(state: State) -> list[str]:
    """Both, in a sentence each where there is something to say."""
    notes = []
    if lost := preemptions(state):
        hit = sum(bool(trial.preemptions) for trial in state.trials.values())
        notes.append(
            f"{lost} preemption{'s' * (lost != 1)} of {hit} trial{'s' * (hit != 1)}: nodes went "
            "away, and the trials went on from their last checkpoints; none counts as a failure"
        )
    if trained := epochs_by_workers(state):
        full = resources_of(state).num_workers
        shares = ", ".join(
            f"{epochs} epoch{'s' * (epochs != 1)} by {workers}"
            for workers, epochs in trained.items()
        )
        notes.append(f"workers: {shares}, at the global batch of {full} workers throughout")
    return notes
