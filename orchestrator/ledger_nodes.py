"""What a run's nodes did to it, from its ledger: preemptions, and how many workers there were."""

from __future__ import annotations

from collections import Counter

from orchestrator.ledger_cost import resources_of
from orchestrator.ledger_state import State


def preemptions(state: State, family: str | None = None) -> int:
    """Attempts of trials that lost a node; none of them is a failure."""
    return sum(t.preemptions for t in state.trials.values() if family in (None, t.family))


def epochs_by_workers(state: State) -> dict[int, int]:
    """Epochs by the workers that trained them, the most workers first; empty where slots are not
    elastic: then all have as many as the spec says."""
    epochs = Counter(
        int(report["workers"])
        for trial in state.trials.values()
        for report in trial.reports.values()
        if "workers" in report
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
