"""One driver a name, wherever it runs: an object in the storage that its owner keeps fresh.

A lease that is refreshed is alive, whatever the clocks say: one who wants it watches. Its owner
looks into it each time; who finds another's name there has been taken for dead, and stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.errors import StorageError, UserError
from trainables.storage import object_storage

LEASE_FILE, STOP_FILE = "lease.json", "stop"
REFRESH_S = 10.0
STALE_S = 60.0
LONG_GONE_S = 900.0  # clocks further apart than this cannot talk to S3 at all
LOOK_S = 2.0
SETTLE_S = 1.0
PATIENCE_S = 5.0  # of one question, while the run goes on or ends

Holder = dict[str, Any]
log = logging.getLogger(__name__)


class Lease:
    """The right to write to the run at ``remote``; also the ear for ``stop`` from elsewhere.

    ``problem`` says that it was lost. ``asked_to_stop`` is called when the stop object is there.
    """

    def __init__(self, remote: str, asked_to_stop: Callable[[], None]) -> None:
        self.remote = remote
        self.problem: str | None = None
        self._uri, self._asked_to_stop = f"{remote}/{LEASE_FILE}", asked_to_stop
        self._me = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "where": _where(),
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take it; waits up to ``STALE_S`` to see whether a holder is alive. Raises ``UserError``
        that names who is, and ``StorageError``."""
        name = self.remote.rpartition("/")[2]
        seen, since = holder(self.remote), time.monotonic()
        if seen is not None and not _gone(seen):
            told = f"{seen['host']} (process {seen['pid']})"
            log.info(
                f"{name!r} belongs to {told}: seeing within {STALE_S:g} s whether that is alive"
            )
            while time.monotonic() - since < STALE_S:
                time.sleep(LOOK_S)
                now = holder(self.remote)
                if now is None:
                    break
                if now != seen:
                    raise UserError(
                        f"one process at a time may run a name; {name!r} is running on {told}. "
                        f"Fix: orchestrator stop {name}, or --name OTHER"
                    )
        self._write()
        time.sleep(SETTLE_S)  # of two who take it at once, the later one has it
        if self._taken():
            raise UserError(
                f"one process at a time may run a name; another one has just taken {name!r}. "
                f"Fix: orchestrator status {name}, or --name OTHER"
            )
        object_storage.delete_file(f"{self.remote}/{STOP_FILE}")  # was for the one before
        self._thread.start()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not self._taken():
                object_storage.delete_file(self._uri, patience_s=PATIENCE_S)
        except StorageError:
            pass  # stale in a minute

    def _keep(self) -> None:
        refreshed_at = time.monotonic()
        while not self._ended.wait(LOOK_S) and self.problem is None:
            try:
                if object_storage.exists(f"{self.remote}/{STOP_FILE}", patience_s=PATIENCE_S):
                    self._asked_to_stop()
                if time.monotonic() - refreshed_at >= REFRESH_S:
                    if self._taken():
                        self.problem = f"{self._uri} is another process's now: taken for dead"
                        return
                    self._write()
                    refreshed_at = time.monotonic()
            except StorageError:
                continue  # the ledger's own puts decide how long an outage may be

    def _taken(self) -> bool:
        now = holder(self.remote, patience_s=PATIENCE_S)
        return now is not None and now["id"] != self._me["id"]

    def _write(self) -> None:
        told = json.dumps({**self._me, "time": time.time()})
        object_storage.write_bytes(self._uri, told.encode(), patience_s=PATIENCE_S)


def holder(remote: str, *, patience_s: float | None = None) -> Holder | None:
    """Who holds the run at ``remote``: ``host``, ``pid``, ``where`` and ``time`` of the last
    refreshment, in unix seconds of its clock; ``None`` where nobody does."""
    uri = f"{remote}/{LEASE_FILE}"
    try:
        found: Holder = json.loads(object_storage.read_bytes(uri, patience_s=patience_s))
    except FileNotFoundError:
        return None
    return found


def is_held(remote: str) -> bool:
    """Whether somebody seems to run it: the lease is there and fresh."""
    now = holder(remote)
    return now is not None and not _gone(now) and time.time() - now["time"] < STALE_S


def _gone(seen: Holder) -> bool:
    """Its process was on this very machine and is not there, or it is long out of date."""
    dead = seen["where"] == _where() and not Path(f"/proc/{seen['pid']}").exists()
    return dead or time.time() - seen["time"] > LONG_GONE_S


def _where() -> str:
    """This boot of this machine, and the process namespace in it: where a pid means something."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else socket.gethostname()]
    return ":".join([*parts, str(space.readlink()) if space.exists() else ""])
