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

SECOND_SIGNAL_S = 2.0


class Watch(threading.Thread):
    """Ends a run whose slots never start or are all gone: a named failure, not a hang. Ends it
    too, with a ``reason``, once its budget has no room for another epoch, or its storage fails, or
    it is ``lost`` to another process."""

    def __init__(
        self,
        pool: Any,
        start_timeout_s: float,
        stop_file: Path,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._pool, self._timeout_s, self._stop_file = pool, start_timeout_s, stop_file
        self._lost = lost
        self.ended = threading.Event()
        self.error: str | None = None
        self.reason: str | None = None

    def run(self) -> None:
        began, ready = time.monotonic(), False
        while not self.ended.wait(0.5) and not self._stop_file.exists():
            ready = ready or self._pool.ready() > 0
            if not ready and time.monotonic() - began > self._timeout_s:
                self.error = (
                    f"a slot must start within resources.slot_start_timeout_s={self._timeout_s:g}; "
                    f"none did. Fix: free the cluster, ask for less, or --set "
                    "resources.slot_start_timeout_s=SECONDS"
                )
            elif not self._pool.alive() and self._pool.open_trials():
                last = (self._pool.errors() or ["no reason given"])[-1]
                self.error = f"every slot ended before its trials did; the last one: {last}"
            self.reason = self._lost() or self._pool.over_budget()
            if self.error or self.reason:
                self._stop_file.touch()
        if self._stop_file.exists():
            self._pool.stop()


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
