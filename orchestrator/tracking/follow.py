"""Ledger to MLflow. ``check``, ``default_uri`` and ``ui_command`` load no mlflow; ``follow`` does
and is meant for a process of its own, beside the run, which never waits for it:

    python -m orchestrator.tracking.follow follow runs/NAME --uri URI [--experiment NAME]
    python -m orchestrator.tracking.follow sync   runs/NAME --uri URI [--experiment NAME]

``follow`` goes on until its standard input is closed, by the run or by the run's death, and leaves
MLflow up to date; ``sync`` does that once. Exit code 1: MLflow is behind the ledger.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.ledger import events
from orchestrator.ledger.events import FILE_NAME, tail
from orchestrator.tracking.store import artifact_root, check, default_uri, ui_command
from trainables.errors import UserError

if TYPE_CHECKING:
    from orchestrator.tracking.mirror import Mirror

__all__ = ["artifact_root", "check", "default_uri", "follow", "sync", "ui_command"]

LONGEST_BACKOFF_S = 10.0
GIVE_UP_S = 20.0  # of silence, after the run has ended; while it goes on, there is no end
LOOK_S = 0.5


def follow(
    run_folder: Path,
    tracking_uri: str,
    experiment: str | None,
    *,
    done: Callable[[], bool],
    poll_s: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Keep MLflow in step with a ledger until ``done``; whether it was in step at the end.

    While MLflow is down it tries again after 1, 2, 4 ... 10 s, for as long as the run goes on.
    After ``done`` it goes on for at most 20 s of that. A ledger that is still open then is shown
    as a stopped run, and a ``report.html`` beside it becomes the run's artifact.
    """
    from orchestrator.tracking.client import Outage
    from orchestrator.tracking.mirror import Mirror

    weather = _ConnectionStatus(tracking_uri, poll_s, say)
    waiting = _patience(lambda: True)
    with _alone(run_folder, _patience(done)):
        mirror = Mirror(run_folder, tracking_uri, experiment, say)
        offset = 0
        while True:
            last = done()
            offset = _feed(mirror, run_folder, offset)
            if last:
                mirror.finish()
            started = time.monotonic()
            try:
                mirror.flush(last=last)
                weather.fine(time.monotonic() - started)
                if last:
                    return True
            except Outage as outage:
                weather.bad(outage)
                if last and not waiting():
                    say("gave up; `sync` brings MLflow up to date from the ledger")
                    return False
            _pause(weather.delay_s, None if last else done)


class _ConnectionStatus:
    """Says once that MLflow is out and once that it is back; the pause before the next try."""

    def __init__(self, uri: str, poll_s: float, say: Callable[[str], None]) -> None:
        self.delay_s = poll_s
        self._uri, self._poll_s, self._say = uri, poll_s, say
        self._bad_since: float | None = None

    def bad(self, error: Exception) -> None:
        if self._bad_since is None:
            self._bad_since = time.monotonic()
            self._say(f"MLflow at {self._uri} is out, records wait: {error}")
        self.delay_s = min(2 * self.delay_s, LONGEST_BACKOFF_S)

    def fine(self, spent_s: float) -> None:
        if self._bad_since is not None:
            self._say(f"MLflow is back after {time.monotonic() - self._bad_since:.0f} s, in step")
            self._bad_since = None
        # Behind a busy run, half of the time is left to training.
        self.delay_s = max(self._poll_s, spent_s)


def sync(run_folder: Path, tracking_uri: str, experiment: str | None = None) -> int:
    """Bring MLflow up to date once, from the ledger's start; the number of records read.

    Raises :class:`UserError` where there is no ledger, MLflow does not answer, or a follower of
    this run is at work.
    """
    from orchestrator.tracking.client import Outage
    from orchestrator.tracking.mirror import Mirror

    if not (run_folder / FILE_NAME).exists():
        raise UserError(f"a run's folder holds {FILE_NAME}; {run_folder} does not. Fix: the path")

    lines: list[str] = []
    with _alone(run_folder, lambda: False):
        mirror = Mirror(run_folder, tracking_uri, experiment, lines.append)
        records, _ = tail(run_folder / FILE_NAME, 0)
        mirror.add(records)
        try:
            mirror.flush(last=True)
        except Outage as outage:
            problems = check(tracking_uri)
            raise UserError(
                *(problems or [f"MLflow at {tracking_uri} failed: {outage}. Fix: try again"])
            ) from outage
    return len(records)


def _feed(mirror: Mirror, run_folder: Path, offset: int) -> int:
    try:
        records, offset = tail(run_folder / FILE_NAME, offset)
    except FileNotFoundError:
        return offset
    mirror.add(records)
    return offset


def _pause(seconds: float, done: Callable[[], bool] | None) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not (done and done()):
        time.sleep(min(left, LOOK_S))


def _patience(done: Callable[[], bool]) -> Callable[[], bool]:
    """True until GIVE_UP_S after ``done`` was first seen."""
    deadline: float | None = None

    def waiting() -> bool:
        nonlocal deadline
        if deadline is None and done():
            deadline = time.monotonic() + GIVE_UP_S
        return deadline is None or time.monotonic() < deadline

    return waiting


@contextmanager
def _alone(run_folder: Path, waiting: Callable[[], bool]) -> Iterator[None]:
    """One process mirrors a run: after a kill and a quick restart the old one may be at it yet."""
    with (run_folder / "tracking.lock").open("a") as lock:
        if not events.hold(lock, waiting, look_s=LOOK_S):
            raise UserError(
                f"one process at a time may mirror a run; {run_folder} has one already. "
                "Fix: wait for its end"
            )
        yield


def main(arguments: list[str] | None = None) -> int:
    """``follow`` or ``sync``; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="orchestrator.tracking.follow", description=__doc__)
    parser.add_argument("action", choices=("follow", "sync"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--experiment")
    chosen = parser.parse_args(arguments)
    if chosen.action == "sync":
        try:
            count = sync(chosen.run_folder, chosen.uri, chosen.experiment)
        except UserError as error:
            print("\n".join(error.mistakes), file=sys.stderr)
            return error.exit_code
        print(f"{count} records mirrored to {chosen.uri}")
        return 0

    ended = threading.Event()

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    # Ctrl-C reaches the whole process group; the end of the run is still to be mirrored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    threading.Thread(target=wait_for_parent, daemon=True).start()
    os.nice(19)  # training comes first, and Ray's workers run at 15

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    in_step = follow(chosen.run_folder, chosen.uri, chosen.experiment, done=ended.is_set, say=say)
    return 0 if in_step else 1


if __name__ == "__main__":
    sys.exit(main())
