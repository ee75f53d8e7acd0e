"""A run's view while it goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.ledger import State, apply, tail
from orchestrator.view import STATUSES, view
from orchestrator.view_text import event_line, summary
from orchestrator.words import top1

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
