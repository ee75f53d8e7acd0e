"""A run's view in words: a line that sums it up, and a line for each event worth one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.ledger_state import Record, State
from orchestrator.view import STATUSES
from orchestrator.words import duration, span, top1

View = Mapping[str, Any]


def summary(seen: View) -> str:
    """Counts, what was spent and saved against full length, and what is to go, in one line."""
    counts = {one: sum(family[one] for family in seen["families"]) for one in STATUSES}
    parts = [", ".join(f"{count} {one}" for one, count in counts.items() if count) or "no trial"]
    if lost := seen["preemptions"]:
        parts.append(f"{lost} preemption{'s' * (lost != 1)}")
    if seen["finals"]:
        parts.append(f"{seen['finals']['ended']} of {seen['finals']['trials']} finals ended")
    parts += [spent(seen), saved(seen)]
    if seen["eta_seconds"] is not None:
        eta = seen["eta_seconds"]
        parts.append(f"{span(duration(eta['low']), duration(eta['high']))} to go")
    return "; ".join(part for part in parts if part)


def spent(seen: View) -> str:
    """Epochs, device-hours and dollars so far, and how much of the budget that is."""
    epochs = f"{seen['epochs']} epoch{'s' * (seen['epochs'] != 1)}"
    said = f"{epochs}, {seen['device_hours']:.3g} {seen['device']}-hours"
    if seen["usd"] is not None:
        said += f", {seen['usd']:.3g} USD"
    if seen["budget"] is not None:
        cap = seen["budget"]
        said += f" spent of the budget's {cap['amount']:g} {cap['unit']}"
    return said


def saved(seen: View) -> str:
    """What pruning saved of the epochs that all trials would take; empty where nothing yet."""
    if not seen["saved_epochs"]:
        return ""
    said = f"{seen['saved_epochs']} of {seen['full_epochs']} epochs saved by pruning"
    hours = seen["saved_device_hours"]
    return said if hours is None else f"{said} ({hours:.3g} {seen['device']}-hours)"


def event_line(record: Record, state: State) -> str | None:
    """The line of a record that ``state`` already knows; ``None`` for one that needs none."""
    event, name = record["event"], record.get("trial")
    if event == "noted":
        return str(record["reason"])
    if event == "frozen":
        chosen = record["detail"]["winners"].values()
        told = ", ".join(f"{one['trial']} ({top1(one['val_top1'])})" for one in chosen)
        return f"winners frozen: {told}"
    if event == "test_opened":
        return "the test split is opened"
    if event == "preempted" and record.get("nodes"):
        return f"{name}: its node is gone; it goes on from its last checkpoint"
    if event in ("pruned", "finished", "failed") and name in state.trials:
        return _end_line(event, name, state)
    return None


def _end_line(event: str, name: str, state: State) -> str:
    trial = state.trials[name]
    why = f" ({trial.reason})" if event == "failed" else ""
    epochs = f"{trial.epoch}/{trial.assignment.get('epochs', trial.epoch)}"
    best = f"best val_top1 {top1(trial.best()[0])}"
    if trial.outcome.get("test"):
        best += f", test top1 {top1(trial.outcome['test']['top1'])}"
    return f"{name:<14} {event:<8} epoch {epochs:<6} {best}{why}"
