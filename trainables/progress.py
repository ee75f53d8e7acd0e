"""How far a long step is that comes before the first epoch: reading images, a download, features.

A step tells whoever watches, a terminal that draws a bar, at each advance. Where nobody does it
logs a line at each tenth, or every ``LOG_EVERY_S`` where the end is not known.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOG_EVERY_S = 10.0
FEWEST_SECONDS = 1.0  # before that a rate is noise


@dataclass(frozen=True)
class StepProgress:
    """``done`` of ``total`` (``None``: not known) after ``seconds``, ``here`` of them in those
    seconds: a download that goes on had a part already. ``unit`` is empty for what is counted."""

    name: str
    unit: str
    done: float
    total: float | None
    here: float
    seconds: float

    @property
    def rate(self) -> float | None:
        """Units a second; ``None`` while that cannot be told."""
        return self.here / self.seconds if self.here and self.seconds >= FEWEST_SECONDS else None

    @property
    def seconds_to_go(self) -> float | None:
        """At the rate so far; ``None`` where that or the end is not known."""
        if self.total is None or self.rate is None:
            return None
        return max(0.0, self.total - self.done) / self.rate

    @property
    def text(self) -> str:
        """As ``1,200 of 5,000, 310/s, 12 s to go``, or ``9.0 of 80.5 MB, 5.1 MB/s, 14 s to go``."""
        digits, unit = (1, f" {self.unit}") if self.unit else (0, "")
        of_total = "" if self.total is None else f" of {self.total:,.{digits}f}"
        parts = [f"{self.done:,.{digits}f}{of_total}{unit}"]
        if self.rate is not None:
            rate, time_unit = (self.rate, "s") if self.rate >= 1 else (60 * self.rate, "min")
            parts.append(f"{rate:,.{0 if rate >= 99.5 else 1}f}{unit}/{time_unit}")
        if self.seconds_to_go:
            parts.append(f"{_time(self.seconds_to_go)} to go")
        return ", ".join(parts)


def _time(seconds: float) -> str:
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


Watcher = Callable[[StepProgress | None], None]  # None: the step has ended
_watcher: Watcher | None = None


def watch_steps(watcher: Watcher | None) -> None:
    """Have ``watcher`` called in this process at each advance and at the end of each step, in place
    of lines; ``None``: nobody watches any more."""
    global _watcher
    _watcher = watcher


@contextmanager
def long_step(
    log: logging.Logger | None,
    name: str,
    total: float | None,
    *,
    unit: str = "",
    begin: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[float], None]]:
    """A step of ``total`` ``unit``, of which ``begin`` are done already. What it yields is to be
    called with how many are done by now. Lines go to ``log``; ``None``: it has lines of its own."""
    began = clock()
    last_line_s, tenths = began, 0

    def advance(done: float) -> None:
        nonlocal last_line_s, tenths
        now = clock()
        progress = StepProgress(name, unit, done, total, done - begin, now - began)
        if _watcher is not None:
            _watcher(progress)
        if _watcher is not None or log is None:
            return
        reached = int(10 * done / total) if total else 0
        ends = bool(unit) and done == total  # of what is counted, others tell the end
        if ends or tenths < reached < 10 or now - last_line_s >= LOG_EVERY_S:
            last_line_s, tenths = now, max(tenths, reached)
            log.info(f"{name}: {progress.text}")

    try:
        yield advance
    finally:
        if _watcher is not None:
            _watcher(None)
