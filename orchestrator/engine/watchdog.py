"""What ends a run from outside: a stop file, a signal, its budget or storage, lack of slots."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.spec.limits import ResourceSpec

SECOND_SIGNAL_S = 2.0
LISTEN_S = 10.0


class Watch(threading.Thread):
    """Ends a run whose slots never start, are all gone, or fall silent, as when their nodes went
    away and none comes back: a named failure, not a hang. Ends it too, with a ``reason``, once its
    budget has no room for another epoch, or its storage fails, or it is ``lost`` to another
    process."""

    def __init__(
        self,
        pool: Any,
        resources: ResourceSpec,
        stop_file: Path,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._pool, self._stop_file, self._lost = pool, stop_file, lost
        self._timeout_s, self._epoch_s = resources.slot_start_timeout_s, resources.epoch_timeout_s
        self._began, self._ready, self._listened = time.monotonic(), False, 0.0
        self.ended = threading.Event()
        self.error: str | None = None
        self.reason: str | None = None

    def run(self) -> None:
        self._began = time.monotonic()
        while not self.ended.wait(0.5) and not self._stop_file.exists():
            self.error = self._problem()
            self.reason = self._lost() or self._pool.over_budget()
            if self.error or self.reason:
                self._stop_file.touch()
        if self._stop_file.exists():
            self._pool.stop()

    def _problem(self) -> str | None:
        """What keeps the trials from being trained, if anything does."""
        now, limit = time.monotonic(), f"resources.slot_start_timeout_s={self._timeout_s:g}"
        self._ready = self._ready or self._pool.ready() > 0
        if not self._ready and now - self._began > self._timeout_s:
            return (
                f"a slot must start within {limit}; none did. Fix: free the cluster, ask for less, "
                "or --set resources.slot_start_timeout_s=SECONDS"
            )
        if not self._pool.alive() and self._pool.open_trials():
            last = (self._pool.errors() or ["no reason given"])[-1]
            return f"every slot ended before its trials did; the last one: {last}"
        if not self._ready or now - self._listened < LISTEN_S:
            return None
        self._listened, silent_s = now, self._pool.silent_s()
        if silent_s > self._epoch_s + self._timeout_s:
            return (
                f"a slot that lost its nodes must start again within {limit}; none has been heard "
                f"of for {silent_s:.0f} s, an epoch's time included. Fix: the same command goes on "
                "once the cluster has nodes again"
            )
        return None


@contextmanager
def stop_on_signals(stop_file: Path) -> Iterator[None]:
    """A SIGINT or SIGTERM asks for a clean stop; another, later one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at: list[float] = []

    def ask(number: int, frame: object) -> None:
        # One Ctrl-C often arrives twice: from the terminal and from the parent that waits.
        if asked_at and time.monotonic() - asked_at[0] > SECOND_SIGNAL_S:
            os._exit(130)
        asked_at.append(time.monotonic())
        stop_file.touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
