"""What a run is doing, as plain values: live table, heartbeat and ``status`` all show them.

A run's view in words: a line that sums it up, and a line for each event worth one.

A run's view while it goes on: a live table in a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.launch.forecast import expected_rest
from orchestrator.ledger.cost import epoch_seconds, preemptions, resources_of, worker_seconds
from orchestrator.ledger.events import tail
from orchestrator.ledger.state import TERMINAL, Record, State, TrialState, apply
from orchestrator.spec import limits
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.wording import duration, span, top1

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
        "device": limits.device(resources),
        "device_hours": limits.device_hours(spent, resources),
        "saved_device_hours": _sum([family["saved_device_hours"] for family in families]),
        "usd": limits.usd(spent, resources, prices),
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
        "device_hours": limits.device_hours(worker_seconds(state, family), resources),
        "saved_device_hours": None if saved_s is None else limits.device_hours(saved_s, resources),
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
        so_far = limits.spent_in(unit, spent, resources, spec.get("prices"))
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


REDRAW_S = 0.5
HEARTBEAT_S = 30.0


class Progress:
    """Follows the ledger in a thread of its own, between ``with`` and its end.

    ``console`` is a terminal to draw in, at most twice a second; without one, ``say`` is given a
    line per event and, every ``HEARTBEAT_S``, the summary. ``clock`` counts seconds.
    """

    def __init__(
        self,
        ledger: Path,
        say: Callable[[str], None],
        *,
        console: Console | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._say, self._clock = ledger, say, clock
        self._state, self._offset = State(), 0
        self._ended = threading.Event()
        self._summed_up_at = self._drawn_at = clock()
        # What others print meanwhile scrolls by above the table.
        self._live = Live(console=console, auto_refresh=False) if console else None
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._read()
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._live:
            self._draw()
            self._live.stop()

    def _follow(self) -> None:
        while not self._ended.wait(REDRAW_S):
            self.catch_up()
        self.catch_up()

    def catch_up(self) -> None:
        """Read what is new; draw or say what is due."""
        lines, now = self._read(), self._clock()
        if self._live:
            if now - self._drawn_at >= REDRAW_S:
                self._draw()
            return
        for line in lines:
            self._say(line)
        if now - self._summed_up_at >= HEARTBEAT_S:
            self._say(summary(view(self._state, running=True)))
            self._summed_up_at = now

    def _read(self) -> list[str]:
        records, self._offset = tail(self._path, self._offset)
        lines = []
        for record in records:
            apply(self._state, record)
            lines.append(event_line(record, self._state))
        return [line for line in lines if line]

    def _draw(self) -> None:
        assert self._live is not None
        self._drawn_at = self._clock()
        self._live.update(drawing(view(self._state, running=True)), refresh=True)


def terminal() -> Console | None:
    """The terminal behind stderr; ``None`` where there is none."""
    if not sys.stderr.isatty():
        return None
    return Console(stderr=True, no_color="NO_COLOR" in os.environ or None)


def drawing(seen: Mapping[str, Any]) -> Group:
    """Families side by side, a column each, and the summary under them."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for family in seen["families"]:
        table.add_column(family["family"], justify="right", overflow="fold")
    rows = [(one, [str(family[one]) for family in seen["families"]]) for one in STATUSES]
    rows += [
        ("epochs", [str(family["epochs"]) for family in seen["families"]]),
        (f"{seen['device']}-hours", [f"{f['device_hours']:.3g}" for f in seen["families"]]),
        ("best val_top1", [top1(family["best_val_top1"]) for family in seen["families"]]),
        ("by trial", [family["best_trial"] or "" for family in seen["families"]]),
    ]
    recipes = [family["best_recipe"] or {} for family in seen["families"]]
    for axis in dict.fromkeys(axis for recipe in recipes for axis in recipe):
        rows.append((axis.removeprefix("recipe."), [_value(recipe, axis) for recipe in recipes]))
    for name, cells in rows:
        table.add_row(name, *cells)
    return Group(table, Text(summary(seen)))


def _value(recipe: Mapping[str, Any], axis: str) -> str:
    value = recipe.get(axis, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_view(seen: Mapping[str, Any], *, width: int | None = None) -> None:
    """The same on stdout, for another shell."""
    Console(no_color="NO_COLOR" in os.environ or None, width=width).print(drawing(seen))
