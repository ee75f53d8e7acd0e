"""What a run is doing: the view of its ledger, in words, as a table, and live while it goes on.

``orchestrator status`` prints a :class:`RunView` once; :func:`live_view` follows a run with it.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.launch.forecast import expected_rest
from orchestrator.ledger.cost import device_seconds, epoch_seconds, preemptions, resources_of
from orchestrator.ledger.events import FILE_NAME, tail
from orchestrator.ledger.state import Record, RunStatus, State, TrialStatus, apply, run_status
from orchestrator.spec import limits
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.wording import duration, four_digits, span
from trainables.metrics import TOP1, metric_of
from trainables.printable import escaped, redacted

REDRAW_S = 0.5
HEARTBEAT_S = 30.0
MOST_BARS = 8  # of running trials
LONGEST_NAME = 32  # of a trial beside its bar, in characters

log = logging.getLogger(__name__)


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
        parts.append(f"{_time_text(eta)} to go")
    return "; ".join(parts)


def event_line(record: Record, state: State) -> str | None:
    """The line of a record that ``state`` already knows; ``None`` for one that needs none."""
    event, name = record["event"], record.get("trial")
    if event == "noted" or (event == "speed_measured" and "reason" in record):
        return str(record["reason"])
    if event == "frozen":
        winners = record["detail"]["winners"].values()
        key = state.spec.metric.val_key
        names = ", ".join(f"{model['trial']} ({four_digits(model.get(key))})" for model in winners)
        return f"winners frozen: {names}"
    if event == "test_opened":
        again = [opening.text for opening in state.split_openings if opening.number > 1]
        return ": ".join(["the test split is opened", *again])
    if event == "preempted" and record.get("nodes"):
        return f"{name}: its node is gone; it goes on from its last checkpoint"
    if event == "reported" and state.num_reports == 1 and name in state.trials:
        key = state.trials[name].metric.val_key
        value = four_digits(record["metrics"].get(key))
        return f"{name:<14} the first epoch is trained: {key} {value}"
    if event in ("finished", "pruned", "failed") and name in state.trials:
        trial = state.trials[name]
        why = f" ({trial.reason})" if event == "failed" else ""
        epochs = f"{trial.epoch}/{trial.assignment.epochs}"
        metric = trial.metric
        best = f"best {metric.val_key} {four_digits(trial.best()[0])}"
        if test := trial.outcome.get("test"):
            best += f", test {metric.name} {four_digits(test.get(metric.name))}"
        return f"{name:<14} {event:<8} epoch {epochs:<6} {best}{why}"
    return None


@contextmanager
def live_view(run_folder: Path) -> Iterator[None]:
    """Show what happens to the run in ``run_folder`` for as long as the block goes on.

    In a terminal behind stderr a table, elsewhere a logged line for each event and, every
    ``HEARTBEAT_S``, the summary. The run need not have begun.
    """
    console = Console(stderr=True) if sys.stderr.isatty() else None  # rich obeys NO_COLOR
    follower = LedgerFollower(run_folder / FILE_NAME, console=console)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(REDRAW_S):
            follower.catch_up()

    thread = threading.Thread(target=follow, name="live-view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.catch_up(last=True)


class LedgerFollower:
    """Shows what is new in a ledger since it was made.

    ``console`` is a terminal to draw in, at most every ``REDRAW_S``; ``clock`` counts seconds.
    ``at_once``: the run is shown as it stands, until :meth:`stop`, not from its next record on.
    """

    def __init__(
        self,
        ledger: Path,
        *,
        console: Console | None,
        clock: Callable[[], float] = time.monotonic,
        at_once: bool = False,
    ) -> None:
        self._path, self._console, self._clock = ledger, console, clock
        self._state, self._offset = State(), 0
        self._read()
        self._live: Live | None = None
        self._at_once = at_once
        self._last_shown: float | None = None  # nothing is shown of a run that nobody has touched

    def catch_up(self, *, last: bool = False) -> None:
        """Read what is new; draw or log what is due. The ``last`` table is left standing."""
        lines, now = self._read(), self._clock()
        if (lines or self._at_once) and self._last_shown is None:
            self._last_shown = -math.inf if self._at_once else now
            if self._console is not None:  # what others print meanwhile scrolls by above the table
                self._live = Live(
                    console=self._console, auto_refresh=False, transient=self._at_once
                )
                self._live.start()
        if self._last_shown is None:
            return
        if self._live is None:
            for line in filter(None, lines):
                log.info(line)
        pause_s = REDRAW_S if self._live else HEARTBEAT_S
        if now - self._last_shown >= pause_s or (last and self._live):
            self._last_shown = now
            run = view(self._state, running=True)
            if self._live is None:
                log.info(summary(run))
            else:
                self._live.update(render(run, now=time.time()), refresh=True)
        if last:
            self.stop()

    def stop(self) -> None:
        """Draw no more."""
        if self._live is not None:
            self._live.stop()

    def _read(self) -> list[str | None]:
        """The line, if any, of each record that is new."""
        if not self._path.exists():
            return []
        records, self._offset = tail(self._path, self._offset)
        lines = []
        for record in records:
            apply(self._state, record)
            lines.append(event_line(record, self._state))
        return lines


def render(run: RunView, *, now: float | None = None) -> Group:
    """Candidates side by side, a column each, and the summary under them; a screen is one line.

    With ``now``, in unix seconds, first how far the run is and, a bar each, the epochs in training:
    what does not fit into a terminal is cut off at the bottom.
    """
    bars = [] if now is None else _bars(run, now)
    if run.screen is not None:
        return Group(*bars, _cell(summary(run)))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for candidate in run.families:
        table.add_column(_cell(candidate.family), justify="right", overflow="fold")
    for status in TrialStatus:
        table.add_row(status, *(str(getattr(candidate, status)) for candidate in run.families))
    table.add_row("epochs", *(str(candidate.epochs) for candidate in run.families))
    hours = (f"{candidate.device_hours:.3g}" for candidate in run.families)
    with_finals = " with finals" if run.finals else ""  # what is counted above is of the search
    table.add_row(f"{run.device}-hours{with_finals}", *hours)
    metric = metric_of(run.metric)
    bests = (four_digits(candidate.best_value) for candidate in run.families)
    table.add_row(_cell(f"best {metric.val_key}"), *bests)
    table.add_row("by trial", *(_cell(candidate.best_trial or "") for candidate in run.families))
    recipes = [candidate.best_recipe or {} for candidate in run.families]
    for axis in dict.fromkeys(axis for recipe in recipes for axis in recipe):
        values = (recipe.get(axis, "") for recipe in recipes)
        texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        table.add_row(_cell(axis.removeprefix("recipe.")), *map(_cell, texts))
    return Group(*bars, table, _cell(summary(run)))


def _bars(run: RunView, now: float) -> list[RenderableType]:
    """A bar of the whole, and one of the epoch of each running trial, by the pace of its candidate;
    then the best so far and the time to go."""
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=LONGEST_NAME)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    if run.screen is not None:
        screened, total = run.screen.screened, run.screen.candidates
        grid.add_row("candidates", "", ProgressBar(total, screened), f"{screened} of {total}")
        return [grid]
    if run.share_done is not None:
        epochs = f"{run.epochs} epochs"
        grid.add_row("all", epochs, ProgressBar(1, run.share_done), f"{100 * run.share_done:.0f} %")
    for trial in run.running[:MOST_BARS]:
        taken_s = max(0.0, now - trial.since) if trial.since is not None else 0.0
        share = min(1.0, taken_s / trial.epoch_seconds) if trial.epoch_seconds else 0.0
        pace = f" of ~{duration(trial.epoch_seconds)}" if trial.epoch_seconds else ""
        best = "" if trial.best_value is None else f", best {four_digits(trial.best_value)}"
        grid.add_row(
            _cell(trial.trial),
            f"epoch {trial.epoch}/{trial.epochs}",
            ProgressBar(1, share),
            f"{taken_s:.0f} s{pace}{best}",
        )
    lines = []
    if len(run.running) > MOST_BARS:
        lines.append(f"and {len(run.running) - MOST_BARS} more trials")
    bests = [c for c in run.families if c.best_value is not None]
    if bests:
        metric = metric_of(run.metric)
        best_one = max(bests, key=lambda c: float(metric.score(c.best_value)))
        by = "" if metric == TOP1 else f"{metric.name} "
        lines.append(f"best so far {by}{four_digits(best_one.best_value)} by {best_one.best_trial}")
    if run.eta_seconds:
        lines.append(f"{_time_text(run.eta_seconds)} to go")
    return [grid, _cell("; ".join(lines)), Text()]


def _time_text(eta: TimeToGo) -> str:
    return span(duration(eta.low), duration(eta.high))


def _cell(text: str) -> Text:
    """Words of a ledger: neither markup nor control characters."""
    return Text(escaped(redacted(text)))


def print_view(run: RunView) -> None:
    """The same on stdout, for another shell; bars only where a terminal is behind it."""
    console = Console()
    at_work = console.is_terminal and run.status == RunStatus.RUNNING
    console.print(render(run, now=time.time() if at_work else None))


def watch(run_folder: Path, is_at_work: Callable[[], bool]) -> None:
    """Show the run in ``run_folder`` while ``is_at_work``, which is asked every ``REDRAW_S``: in a
    terminal behind stdout as :func:`live_view` does, elsewhere as logged lines. Nothing is left
    standing."""
    console = Console() if sys.stdout.isatty() else None
    follower = LedgerFollower(run_folder / FILE_NAME, console=console, at_once=True)
    try:
        while is_at_work():
            follower.catch_up()
            time.sleep(REDRAW_S)
    finally:
        follower.stop()
