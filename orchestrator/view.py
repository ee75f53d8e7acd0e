"""What a run is doing, as plain values: live table, heartbeat and ``status`` all show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator import budget
from orchestrator.epochs import expected_rest
from orchestrator.ledger_cost import epoch_seconds, resources_of, worker_seconds
from orchestrator.ledger_nodes import preemptions
from orchestrator.ledger_state import TERMINAL, State, TrialState
from orchestrator.limits import ResourceSpec, SchedulerSpec

STATUSES = ("queued", "running", "finished", "pruned", "failed")


def view(state: State, *, running: bool) -> dict[str, Any]:
    """The run in ``state`` as JSON; what is not known is ``None``.

    ``running`` says whether a process carries it out: if none does, a trial that has not ended
    is ``queued``, and nothing is expected to end. Seconds are wall time, hours are of devices.
    ``full_epochs`` is what all search trials would take to full length; ``saved_epochs`` is what
    those that ended earlier did not train.
    """
    sweeps = _sweeps(state)
    families = [_family(state, family, running) for family in _names(state, sweeps)]
    spent, resources = worker_seconds(state), resources_of(state)
    prices = state.header.get("spec", {}).get("prices")
    search = [trial for trial in state.trials.values() if trial.stage == "search"]
    finals = [trial for trial in state.trials.values() if trial.stage == "final"]
    return {
        "status": status(state, running),
        "reason": state.stop_reason if state.stopped and not running else None,
        "families": families,
        "trials": len(search),
        "preemptions": preemptions(state),
        "epochs": sum(len(trial.reports) for trial in state.trials.values()),
        "full_epochs": sum(family["full_epochs"] for family in families),
        "saved_epochs": sum(family["saved_epochs"] for family in families),
        "finals": {"trials": len(finals), "ended": sum(t.status in TERMINAL for t in finals)}
        if finals
        else None,
        "device": budget.device(resources),
        "device_hours": budget.device_hours(spent, resources),
        "saved_device_hours": _sum([family["saved_device_hours"] for family in families]),
        "usd": budget.usd(spent, resources, prices),
        "budget": _budget(state, spent, resources),
        "eta_seconds": _eta(state, sweeps, families) if running else None,
    }


def status(state: State, running: bool) -> str:
    """``running``, ``done``, ``stopped`` (in order) or ``interrupted``."""
    if running:
        return "running"
    if state.closed:
        return "done"
    return "stopped" if state.stopped else "interrupted"


def _sweeps(state: State) -> dict[str, SchedulerSpec]:
    listed = state.header.get("spec", {}).get("sweeps", [])
    return {one["backbone"]["family"]: SchedulerSpec(**one["scheduler"]) for one in listed}


def _names(state: State, sweeps: dict[str, SchedulerSpec]) -> list[str]:
    return list(dict.fromkeys([*sweeps, *(trial.family for trial in state.trials.values())]))


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _family(state: State, family: str, running: bool) -> dict[str, Any]:
    trials = [t for t in state.trials.values() if t.family == family and t.stage == "search"]
    shown = [_shown(trial, running) for trial in trials]
    bests = [(value, trial) for trial in trials if (value := trial.best()[0]) is not None]
    value, best = max(bests, key=lambda one: one[0], default=(None, None))
    resources, seconds = resources_of(state), seconds_per_epoch(state, family)
    ended = [trial for trial in trials if trial.status in ("pruned", "finished")]
    saved = sum(_length(trial) - trial.epoch for trial in ended)
    saved_s = None if seconds is None else saved * seconds * resources.num_workers
    return {
        "family": family,
        "trials": len(trials),
        **{one: shown.count(one) for one in STATUSES},
        "preemptions": preemptions(state, family),
        "epochs": sum(len(trial.reports) for trial in trials),
        "full_epochs": sum(map(_length, trials)),
        "saved_epochs": saved,
        "best_val_top1": value,
        "best_trial": None if best is None else best.trial,
        "best_recipe": None if best is None else dict(best.axes or {}),
        "device_hours": budget.device_hours(worker_seconds(state, family), resources),
        "saved_device_hours": None if saved_s is None else budget.device_hours(saved_s, resources),
        "seconds_per_epoch": seconds,
    }


def _length(trial: TrialState) -> int:
    """Epochs that the trial was laid out for."""
    return int(trial.assignment["epochs"])


def _shown(trial: TrialState, running: bool) -> str:
    """The trial's status; one that waits for a slot, or for a process to go on, is queued."""
    if trial.status == "running" and (trial.slot is None or not running):
        return "queued"
    return trial.status


def seconds_per_epoch(state: State, family: str) -> float | None:
    """Mean over the epochs reported, else by the forecast; ``None`` where neither is known."""
    spent = [
        epoch_seconds(report)
        for trial in state.trials.values()
        if trial.family == family
        for report in trial.reports.values()
    ]
    if spent:
        return sum(spent) / len(spent)
    forecast = state.header.get("forecast") or {"families": {}}
    cost = forecast["families"].get(family)
    return None if cost is None else float(cost["epoch_seconds"])


def _budget(state: State, spent: float, resources: ResourceSpec) -> dict[str, Any] | None:
    spec = state.header.get("spec", {})
    for unit, amount in (spec.get("budget") or {}).items():
        so_far = budget.spent_in(unit, spent, resources, spec.get("prices"))
        return {"unit": unit, "amount": amount, "spent": so_far}
    return None


def _eta(
    state: State, sweeps: dict[str, SchedulerSpec], families: Sequence[dict[str, Any]]
) -> dict[str, float] | None:
    """Seconds to go: ``low`` if trials are pruned as expected, ``high`` if none is any more."""
    low: list[float] = []
    high: list[float] = []
    pace = {one["family"]: one["seconds_per_epoch"] for one in families}
    for family, scheduler in sweeps.items():
        seconds, rest = pace[family], _rest(state, family, scheduler)
        if seconds is None and rest:
            return None
        low += [least * (seconds or 0.0) for least, _ in rest]
        high += [most * (seconds or 0.0) for _, most in rest]
    slots = (state.header.get("forecast") or {}).get("slots")
    slots = slots or max(1, sum(trial.slot is not None for trial in state.trials.values()))
    return {
        name: max(sum(each) / slots, max(each, default=0.0))
        for name, each in (("low", low), ("high", high))
    }


def _rest(state: State, family: str, scheduler: SchedulerSpec) -> list[tuple[float, float]]:
    """For each trial that is open or still to come: epochs to go as expected, and at most."""
    found: list[tuple[float, float]] = []
    full = scheduler.max_epochs
    for trial in state.trials.values():
        if trial.family != family or trial.status in TERMINAL:
            continue
        most = float(_length(trial) - trial.epoch)
        if trial.stage == "final":
            found.append((most + 1, most + 1))  # and the test split
        elif "audited" in trial.rungs.values():
            found.append((most, most))
        else:
            found.append((min(most, expected_rest(scheduler, trial.epoch)), most))
    seeds = state.header["spec"].get("final_seeds", 0)
    if not state.frozen:
        found += [(full + 1.0, full + 1.0)] * seeds
    return found
