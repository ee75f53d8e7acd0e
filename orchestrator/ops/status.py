"""What a run is doing: a :class:`RunView` of its ledger, and that in one line.

``orchestrator status --json`` prints its fields; ``live.py`` draws it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.launch.forecast import expected_rest
from orchestrator.ledger.cost import device_seconds, epoch_seconds, preemptions, resources_of
from orchestrator.ledger.state import RunStatus, State, TrialStatus, run_status
from orchestrator.spec import limits
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.wording import duration, span
from trainables.metrics import TOP1


@dataclass(frozen=True, kw_only=True)
class CandidateView:
    """One candidate's search trials. Epochs that a pruned trial did not train are ``saved``.
    ``best_value`` is what ``best_trial`` reached by ``metric``, ``best_val_top1`` the best accuracy
    of any trial."""

    family: str
    trials: int
    queued: int
    running: int
    finished: int
    pruned: int
    failed: int
    preemptions: int
    epochs: int
    full_epochs: int
    saved_epochs: int
    metric: str
    best_value: float | None
    best_val_top1: float | None
    best_trial: str | None
    best_recipe: Mapping[str, object] | None
    device_hours: float
    saved_device_hours: float | None
    seconds_per_epoch: float | None


@dataclass(frozen=True, kw_only=True)
class FinalsView:
    """How many finals there are, and how many of them have ended."""

    trials: int
    ended: int


@dataclass(frozen=True, kw_only=True)
class BudgetView:
    """The run's cap in its ``unit``; ``spent`` is ``None`` where a price is missing."""

    unit: str
    amount: float
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class ScreenView:
    """A screen's ``candidates``, how many of them have been ``screened``, and how many of those
    ``failed``."""

    candidates: int
    screened: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in a slot: since unix second ``since`` it trains ``epoch`` of ``epochs``, which takes
    about ``epoch_seconds``; after the last one it is evaluated."""

    trial: str
    family: str
    epoch: int
    epochs: int
    best_value: float | None
    best_val_top1: float | None
    since: float | None
    epoch_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class TimeToGo:
    """Seconds: ``low`` if trials are pruned as expected, ``high`` if none is any more."""

    low: float
    high: float

    @property
    def text(self) -> str:
        """Both, as a person reads them."""
        return span(duration(self.low), duration(self.high))


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as ``status --json`` prints its fields, schema 1; what is not known is ``None``.

    Seconds are wall time, hours are of devices. ``full_epochs`` is what all search trials would
    take to full length; ``saved_epochs`` is what those that ended earlier did not train.
    ``share_done`` is of all epochs that are planned, those of the finals too: trained, or no longer
    to come.
    """

    status: RunStatus
    reason: str | None
    families: list[CandidateView]
    trials: int
    preemptions: int
    epochs: int
    full_epochs: int
    saved_epochs: int
    finals: FinalsView | None
    device: str
    device_hours: float
    saved_device_hours: float | None
    usd: float | None
    budget: BudgetView | None
    eta_seconds: TimeToGo | None
    screen: ScreenView | None = None
    metric: str = TOP1.name
    share_done: float | None = None
    running: list[RunningTrial] = field(default_factory=list)


def view(state: State, *, running: bool) -> RunView:
    """The run in ``state``.

    ``running`` says whether a process carries it out: if none does, a trial that has not ended
    is ``queued``, and nothing is expected to end.
    """
    trials = state.trials.values()
    names = [
        *(sweep.candidate for sweep in state.spec.sweeps),
        *(trial.candidate for trial in trials),
    ]
    candidates = [_candidate_view(state, candidate, running) for candidate in dict.fromkeys(names)]
    spent, resources, prices = device_seconds(state), resources_of(state), state.spec.prices
    saved_hours = [candidate.saved_device_hours for candidate in candidates]
    finals = [trial for trial in trials if trial.stage == "final"]
    ended = sum(trial.status.is_final for trial in finals)
    budgets = [
        BudgetView(unit=unit, amount=amount, spent=limits.spent_in(unit, spent, resources, prices))
        for unit, amount in (state.spec.budget or {}).items()
    ]
    return RunView(
        status=run_status(state, running=running),
        reason=state.stop_reason if state.stopped and not running else None,
        families=candidates,
        trials=len(trials) - len(finals),
        preemptions=preemptions(state),
        epochs=sum(len(trial.reports) for trial in trials),
        full_epochs=sum(candidate.full_epochs for candidate in candidates),
        saved_epochs=sum(candidate.saved_epochs for candidate in candidates),
        finals=FinalsView(trials=len(finals), ended=ended) if finals else None,
        device=limits.device(resources),
        device_hours=limits.device_hours(spent, resources),
        saved_device_hours=None if None in saved_hours else sum(filter(None, saved_hours)),
        usd=limits.usd(spent, resources, prices),
        budget=budgets[0] if budgets else None,
        eta_seconds=_time_to_go(state, candidates) if running else None,
        screen=_screen_view(state),
        metric=state.spec.metric.name,
        share_done=_share_done(state),
        running=_running_trials(state, candidates) if running else [],
    )


def _share_done(state: State) -> float | None:
    trials = state.trials.values()
    planned = sum(trial.assignment.epochs for trial in trials)
    if not state.frozen:
        finals = state.spec.final_seeds * state.spec.searches
        planned += sum(finals * sweep.scheduler.max_epochs for sweep in state.spec.sweeps)
    if not planned:
        return None
    done = sum(t.assignment.epochs if t.status.is_final else t.epoch for t in trials)
    return done / planned


def _running_trials(state: State, candidates: Sequence[CandidateView]) -> list[RunningTrial]:
    pace = {candidate.family: candidate.seconds_per_epoch for candidate in candidates}
    trials = [t for t in state.trials.values() if t.slot is not None and not t.status.is_final]
    return [
        RunningTrial(
            trial=trial.trial,
            family=trial.candidate,
            epoch=min(trial.epoch + 1, trial.assignment.epochs),
            epochs=trial.assignment.epochs,
            best_value=trial.best()[0],
            best_val_top1=trial.best(TOP1)[0],
            since=max(
                [report.time for report in trial.reports.values()]
                + ([trial.started_at] if trial.started_at else []),
                default=None,
            ),
            epoch_seconds=pace[trial.candidate],
        )
        for trial in trials
    ]


def _screen_view(state: State) -> ScreenView | None:
    asked = state.header.screen
    if asked is None:
        return None
    screened = asked.candidates.keys() & state.screen.screened.keys()
    return ScreenView(
        candidates=len(asked.candidates),
        screened=len(screened),
        failed=len(screened & state.screen.failed().keys()),
    )


def _candidate_view(state: State, candidate: str, running: bool) -> CandidateView:
    trials = [t for t in state.trials.values() if t.candidate == candidate and t.stage == "search"]
    # All others wait for a slot, or for a process to go on.
    settled = [t for t in trials if t.status.is_final or (running and t.slot is not None)]
    counts = Counter(trial.status for trial in settled)
    counts[TrialStatus.QUEUED] += len(trials) - len(settled)
    bests = [(score, trial) for trial in trials if (score := trial.best_score) is not None]
    _, best = max(bests, key=lambda pair: pair[0], default=(None, None))
    top1s = [value for trial in trials if (value := trial.best(TOP1)[0]) is not None]
    resources, seconds = resources_of(state), _seconds_per_epoch(state, candidate)
    ended = [t for t in trials if t.status in (TrialStatus.PRUNED, TrialStatus.FINISHED)]
    saved = sum(trial.assignment.epochs - trial.epoch for trial in ended)
    saved_s = None if seconds is None else saved * seconds * resources.num_workers
    return CandidateView(
        family=candidate,
        trials=len(trials),
        **{status: counts[status] for status in TrialStatus},
        preemptions=preemptions(state, candidate),
        epochs=sum(len(trial.reports) for trial in trials),
        full_epochs=sum(trial.assignment.epochs for trial in trials),
        saved_epochs=saved,
        metric=state.spec.metric.name,
        best_value=None if best is None else best.best()[0],
        best_val_top1=max(top1s, default=None),
        best_trial=None if best is None else best.trial,
        best_recipe=None if best is None else dict(best.axes or {}),
        device_hours=limits.device_hours(device_seconds(state, candidate), resources),
        saved_device_hours=None if saved_s is None else limits.device_hours(saved_s, resources),
        seconds_per_epoch=seconds,
    )


def _seconds_per_epoch(state: State, candidate: str) -> float | None:
    """Mean over the epochs reported, else by the forecast; ``None`` where neither is known."""
    seconds = [
        epoch_seconds(report, trial.num_workers)
        for trial in state.trials.values()
        if trial.candidate == candidate
        for report in trial.reports.values()
    ]
    if seconds:
        return sum(seconds) / len(seconds)
    forecast = state.header.forecast
    cost = forecast.families.get(candidate) if forecast else None
    return None if cost is None else cost.epoch_seconds


def _time_to_go(state: State, candidates: Sequence[CandidateView]) -> TimeToGo | None:
    pace = {candidate.family: candidate.seconds_per_epoch for candidate in candidates}
    to_go = [(0.0, 0.0)]  # seconds of each trial, as expected and at most
    for sweep in state.spec.sweeps:
        seconds, rest = (
            pace[sweep.candidate],
            _epochs_to_go(state, sweep.candidate, sweep.scheduler),
        )
        if seconds is not None:
            to_go += [(expected * seconds, most * seconds) for expected, most in rest]
        elif rest:
            return None
    slots = state.header.forecast.slots if state.header.forecast else None
    slots = slots or max(1, sum(trial.slot is not None for trial in state.trials.values()))
    low, high = (max(sum(seconds) / slots, max(seconds)) for seconds in zip(*to_go, strict=True))
    return TimeToGo(low=low, high=high)


def _epochs_to_go(
    state: State, candidate: str, scheduler: SchedulerSpec
) -> list[tuple[float, float]]:
    """For each trial that is open or still to come: epochs to go as expected, and at most."""
    epochs: list[tuple[float, float]] = []
    for trial in state.trials.values():
        if trial.candidate != candidate or trial.status.is_final:
            continue
        is_final = trial.stage == "final"
        most = float(trial.assignment.epochs - trial.epoch + is_final)  # and the test split
        goes_on = is_final or trial.audited
        expected = most if goes_on else min(most, expected_rest(scheduler, trial.epoch))
        epochs.append((expected, most))
    if not state.frozen:
        full = scheduler.max_epochs + 1.0
        epochs += [(full, full)] * state.spec.final_seeds * state.spec.searches
    return epochs


def summary(run: RunView) -> str:
    """Counts, what was spent and saved against full length, and what is to go, in one line."""
    if run.screen is not None:
        failed = f", {run.screen.failed} failed" if run.screen.failed else ""
        return f"{run.screen.screened} of {run.screen.candidates} candidates screened{failed}"
    counts = {status: sum(getattr(f, status) for f in run.families) for status in TrialStatus}
    parts = [", ".join(f"{n} {status}" for status, n in counts.items() if n) or "no trial"]
    if run.preemptions:
        parts.append(f"{run.preemptions} preemption{'s' * (run.preemptions != 1)}")
    if run.finals:
        parts.append(f"{run.finals.ended} of {run.finals.trials} finals ended")
    spent = f"{run.epochs} epoch{'s' * (run.epochs != 1)}"
    spent += f", {run.device_hours:.3g} {run.device}-hours"
    if run.usd is not None:
        spent += f", {run.usd:.3g} USD"
    if run.budget is not None:
        spent += f" spent of the budget's {run.budget.amount:g} {run.budget.unit}"
    parts.append(spent)
    if run.saved_epochs:
        saved = f"{run.saved_epochs} of {run.full_epochs} epochs saved by pruning"
        hours = run.saved_device_hours
        parts.append(saved if hours is None else f"{saved} ({hours:.3g} {run.device}-hours)")
    if eta := run.eta_seconds:
        parts.append(f"{eta.text} to go")
    return "; ".join(parts)
