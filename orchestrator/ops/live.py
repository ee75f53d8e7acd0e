"""A run in the terminal: its view drawn as a table with bars, and live while it goes on.

``orchestrator status`` draws a :class:`~orchestrator.ops.status.RunView` once; :func:`live_view`
follows a run with it.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.ledger.events import FILE_NAME, tail
from orchestrator.ledger.state import Record, RunStatus, State, TrialStatus, apply
from orchestrator.ops.status import RunView, summary, view
from orchestrator.wording import duration, four_digits
from trainables.metrics import TOP1, metric_of
from trainables.printable import escaped, redacted

REDRAW_S = 0.5
HEARTBEAT_S = 30.0
MOST_BARS = 8  # of running trials
LONGEST_NAME = 32  # of a trial beside its bar, in characters

log = logging.getLogger(__name__)


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
        lines.append(f"{run.eta_seconds.text} to go")
    return [grid, _cell("; ".join(lines)), Text()]


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
