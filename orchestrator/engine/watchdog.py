"""What ends a run from outside: a stop file, a signal, its budget or storage, lack of slots."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from orchestrator.spec.limits import ResourceSpec

SECOND_SIGNAL_S = 2.0
POLL_S, SILENCE_POLL_S = 0.5, 10.0
JOIN_PATIENCE_S = 300.0  # beyond two outages of the dispatcher, whose calls are bounded themselves


class Slots(Protocol):
    """What the watchdog asks of the pool of slots."""

    errors: list[str]

    def ready(self) -> int: ...
    def alive(self) -> int: ...
    def silent_s(self) -> float: ...
    def over_budget(self) -> str | None: ...
    def open_trials(self) -> Sequence[str]: ...
    def stop(self) -> None: ...


class Watchdog(threading.Thread):
    """Ends a run, by writing its ``stop_file``, whose slots never start, are all gone, or fall
    silent, as when their nodes went away and none comes back: that is an ``error`` with a name
    instead of a hang. Ends it too, with a ``reason``, once its budget has no room for another
    epoch, its storage fails, or ``lost`` says that it is another process's.

    In a ``with`` statement it watches until the end of the block.
    """

    def __init__(
        self,
        slots: Slots,
        resources: ResourceSpec,
        stop_file: Path,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._slots, self._stop_file, self._lost = slots, stop_file, lost
        self._timeout_s, self._epoch_s = resources.slot_start_timeout_s, resources.epoch_timeout_s
        self._began_at, self._ready, self._silence_asked_at = time.monotonic(), False, 0.0
        self._ended = threading.Event()
        self.error: str | None = None
        self.reason: str | None = None

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        # A thread that still calls Ray while it shuts down would take the process with it.
        self._ended.set()
        self.join(JOIN_PATIENCE_S)

    def run(self) -> None:
        self._began_at = time.monotonic()
        while not self._ended.wait(POLL_S) and not self._stop_file.exists():
            self.error = self._problem()
            self.reason = self._lost() or self._slots.over_budget()
            if self.error or self.reason:
                self._stop_file.touch()
        if self._stop_file.exists():
            self._slots.stop()

    def _problem(self) -> str | None:
        """What keeps the trials from being trained, if anything does."""
        now, limit = time.monotonic(), f"resources.slot_start_timeout_s={self._timeout_s:g}"
        self._ready = self._ready or self._slots.ready() > 0
        if not self._ready and now - self._began_at > self._timeout_s:
            return (
                f"a slot must start within {limit}; none did. Fix: free the cluster, ask for less, "
                "or --set resources.slot_start_timeout_s=SECONDS"
            )
        if not self._slots.alive() and self._slots.open_trials():
            last = (self._slots.errors or ["no reason given"])[-1]
            return f"every slot ended before its trials did; the last one: {last}"
        if not self._ready or now - self._silence_asked_at < SILENCE_POLL_S:
            return None
        self._silence_asked_at, silent_s = now, self._slots.silent_s()
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
