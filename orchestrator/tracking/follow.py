"""The process beside a run that keeps MLflow in step with its ledger; the run never waits for it:

    python -m orchestrator.tracking.follow follow runs/NAME --uri URI [--experiment NAME]
    python -m orchestrator.tracking.follow sync   runs/NAME --uri URI [--experiment NAME]

``follow`` goes on until its standard input is closed, by the run or by the run's death, and leaves
MLflow up to date; ``sync`` does that once. Exit code 1: MLflow is behind the ledger.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.ledger.events import FILE_NAME
from orchestrator.tracking.store import check
from trainables.errors import UserError

LONGEST_BACKOFF_S = 10.0
GIVE_UP_S = 20.0  # of silence, after the run has ended; while it goes on, there is no end

log = logging.getLogger("orchestrator.tracking.follow")  # not __main__


def follow(
    run_folder: Path,
    tracking_uri: str,
    experiment: str | None,
    *,
    ended: threading.Event,
    poll_s: float = 1.0,
) -> bool:
    """Keep MLflow in step with a ledger until ``ended``; whether it was in step at the end.

    While MLflow is down it tries again after 1, 2, 4 ... 10 s, for as long as the run goes on.
    After the end it goes on for at most 20 s of that. A ledger that is still open then is shown
    as a stopped run, and a ``report.html`` beside it becomes the run's artifact. Raises
    ``UserError`` where another process mirrors the run and does not end.
    """
    from orchestrator.tracking.client import Outage
    from orchestrator.tracking.mirror import Mirror

    connection = ConnectionStatus(tracking_uri, poll_s)
    give_up_at: float | None = None
    with _only_mirror_of(run_folder, ended.is_set, GIVE_UP_S):
        mirror = Mirror(run_folder, tracking_uri, experiment)
        while True:
            last = ended.is_set()
            mirror.read_ledger()
            if last:
                mirror.finish()
            began = time.monotonic()
            try:
                mirror.flush(last=last)
                connection.works(time.monotonic() - began)
                if last:
                    return True
            except Outage as outage:
                connection.fails(outage)
                if last:
                    give_up_at = give_up_at or time.monotonic() + GIVE_UP_S
                    if time.monotonic() >= give_up_at:
                        log.warning("gave up; `sync` brings MLflow up to date from the ledger")
                        return False
            if last:
                time.sleep(connection.delay_s)
            else:
                ended.wait(connection.delay_s)


class ConnectionStatus:
    """Logs once that MLflow is out and once that it is back; the pause before the next try."""

    def __init__(self, uri: str, poll_s: float) -> None:
        self.delay_s = poll_s
        self._uri, self._poll_s = uri, poll_s
        self._out_since: float | None = None

    def fails(self, error: Exception) -> None:
        """A try has failed."""
        if self._out_since is None:
            self._out_since = time.monotonic()
            log.warning(f"MLflow at {self._uri} is out, records wait: {error}")
        self.delay_s = min(2 * self.delay_s, LONGEST_BACKOFF_S)

    def works(self, spent_s: float) -> None:
        """A try has succeeded, after ``spent_s``."""
        if self._out_since is not None:
            log.info(f"MLflow is back after {time.monotonic() - self._out_since:.0f} s, in step")
            self._out_since = None
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
    with _only_mirror_of(run_folder, lambda: True, 0.0):
        mirror = Mirror(run_folder, tracking_uri, experiment)
        count = mirror.read_ledger()
        try:
            mirror.flush(last=True)
        except Outage as outage:
            problems = check(tracking_uri)
            raise UserError(
                *(problems or [f"MLflow at {tracking_uri} failed: {outage}. Fix: try again"])
            ) from outage
    return count


@contextmanager
def _only_mirror_of(
    run_folder: Path, has_ended: Callable[[], bool], patience_s: float
) -> Iterator[None]:
    """One process mirrors a run. After a kill and a quick restart the old one may be at it yet:
    it is waited for, at most ``patience_s`` longer than the run goes on."""
    lock = FileLock(run_folder / "tracking.lock")
    try:
        try:
            lock.acquire(cancel_check=has_ended)
        except Timeout:
            lock.acquire(timeout=patience_s)
    except Timeout:
        raise UserError(
            f"one process at a time may mirror a run; {run_folder} has one already. "
            "Fix: wait for its end"
        ) from None
    try:
        yield
    finally:
        lock.release()


def main(arguments: list[str] | None = None) -> int:
    """``follow`` or ``sync``; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="orchestrator.tracking.follow", description=__doc__)
    parser.add_argument("action", choices=("follow", "sync"))
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--experiment")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("orchestrator").setLevel(logging.INFO)
    if options.action == "sync":
        try:
            count = sync(options.run_folder, options.uri, options.experiment)
        except UserError as error:
            print("\n".join(error.mistakes), file=sys.stderr)
            return error.exit_code
        print(f"{count} records mirrored to {options.uri}")
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
    in_step = follow(options.run_folder, options.uri, options.experiment, ended=ended)
    return 0 if in_step else 1


if __name__ == "__main__":
    sys.exit(main())
