"""A trial's recipe, drawn when it starts from what the ledger knows of the others by then."""

from __future__ import annotations

from typing import Any

from orchestrator import sampling
from orchestrator.ledger import State, TrialState
from orchestrator.spec import SweepSpec


def prepare(state: State) -> None:
    """Load what drawing takes before any slot waits for it, where a trial is still to be drawn."""
    if any(trial.axes is None for trial in state.trials.values()):
        sampling.load()


def drawn(state: State, trial: TrialState) -> dict[str, Any]:
    """The ``drawn`` record's detail, a function of ``state``: ``axes`` and ``assignment``."""
    plain = state.header["spec"]["sweeps"]
    sweep = next(made for one in plain if (made := SweepSpec.from_dict(one)).family == trial.family)
    others = (t for t in state.trials.values() if t.family == trial.family and t.stage == "search")
    past = [_past(other) for other in others if other.axes is not None]
    axes = sweep.axes(int(trial.trial.rpartition("-")[2]), past)
    return {"axes": axes, "assignment": sampling.completed(trial.assignment, axes)}


def _past(trial: TrialState) -> sampling.Past:
    values = {
        epoch: float(report["metrics"]["val_top1"])
        for epoch, report in trial.reports.items()
        if "val_top1" in report["metrics"]
    }
    return sampling.Past(axes=trial.axes or {}, values=values, status=trial.status)
