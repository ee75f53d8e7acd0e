"""What a run is doing, told from its ledger: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.ledger import Record, State, apply, tail
from orchestrator.spec import RunSpec

POLL_S = 0.5
STILL_ALIVE_S = 20.0


class Progress:
    """Follows the ledger in a thread of its own, between ``with`` and its end."""

    def __init__(self, spec: RunSpec, ledger: Path, say: Callable[[str], None]) -> None:
        self._epochs = {sweep.family: sweep.scheduler.max_epochs for sweep in spec.sweeps}
        self._path, self._say = ledger, say
        self._state, self._offset = State(), 0
        self._ended = threading.Event()
        self._spoke_at = time.monotonic()
        console = Console(stderr=True, no_color="NO_COLOR" in os.environ or None)
        self._live = Live(console=console, auto_refresh=False) if sys.stderr.isatty() else None
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        records, self._offset = tail(self._path, 0)
        for record in records:
            apply(self._state, record)
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
            self._live.stop()

    def _follow(self) -> None:
        while not self._ended.wait(POLL_S):
            self._catch_up()
        self._catch_up()

    def _catch_up(self) -> None:
        records, self._offset = tail(self._path, self._offset)
        for record in records:
            apply(self._state, record)
            line = self._line(record)
            if line and not self._live:
                self._tell(line)
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() - self._spoke_at > STILL_ALIVE_S:
            self._tell(self._summary())

    def _tell(self, line: str) -> None:
        self._spoke_at = time.monotonic()
        self._say(line)

    def _line(self, record: Record) -> str | None:
        event, name = record["event"], record.get("trial")
        if event == "noted":
            return str(record["reason"])
        if name is None or event not in ("pruned", "finished", "failed"):
            return None
        trial = self._state.trials[name]
        value, _ = trial.best()
        best = "missing" if value is None else f"{value:.4f}"
        why = f" ({trial.reason})" if event == "failed" else ""
        epochs = f"{trial.epoch}/{self._epochs.get(trial.family, trial.epoch)}"
        return f"{name:<14} {event:<8} epoch {epochs:<6} best val_top1 {best}{why}"

    def _summary(self) -> str:
        status = Counter(trial.status for trial in self._state.trials.values())
        epochs = sum(len(trial.reports) for trial in self._state.trials.values())
        counts = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
        return f"still at it: {counts}; {epochs} epochs reported"

    def _table(self) -> Table:
        table = Table(title=self._summary(), title_justify="left", box=None, pad_edge=False)
        for column in (
            "family",
            "queued",
            "running",
            "finished",
            "pruned",
            "failed",
            "best val_top1",
        ):
            table.add_column(column, justify="left" if column == "family" else "right")
        for family in self._epochs:
            trials = [t for t in self._state.trials.values() if t.family == family]
            status = Counter(trial.status for trial in trials)
            best = max((value for t in trials if (value := t.best()[0]) is not None), default=None)
            table.add_row(
                family,
                *(str(status[s]) for s in ("queued", "running", "finished", "pruned", "failed")),
                "missing" if best is None else f"{best:.4f}",
            )
        return table
