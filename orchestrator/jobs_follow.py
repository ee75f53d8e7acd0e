"""A job's log as it comes, and its status until that is final.

The status alone says that a job has ended: a log stream also ends when a head, or a proxy before
it, closes the connection; then it is taken up where it broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import AuthenticationError

from orchestrator.jobs import Silence, backoff, bounded, exit_code, refused
from trainables.errors import UserError

POLL_S = 1.0
STREAM_PAUSE_S = 1.0
OUTAGE_PATIENCE_S = 300.0
SAID_AFTER_S = 5.0  # of silence: a shorter one is nobody's business


def follow(
    client: Any,
    job: str,
    *,
    show: Callable[[str], None],
    say: Callable[[str], None],
    patience_s: float = OUTAGE_PATIENCE_S,
    poll_s: float = POLL_S,
) -> tuple[int, str]:
    """Show the log of ``job`` until it has ended; its exit code and what to say of its end.

    Raises ``UserError`` with exit code 130 when the head says nothing for ``patience_s`` seconds,
    or no longer knows the job.
    """
    log = Log(client, job, show)
    log.start()
    try:
        while True:
            info = _asked(client, job, say, patience_s)
            if info.status.is_terminal():
                break
            time.sleep(poll_s)
        log.complete()
    finally:
        log.close()
    return exit_code(info)


def _asked(client: Any, job: str, say: Callable[[str], None], patience_s: float) -> Any:
    """What the head says of the job, asked again while it says nothing."""
    began, said = time.monotonic(), False
    for delay_s in backoff():
        try:
            info = bounded(lambda: client.get_job_info(job))
            if said:
                say(f"the head is back after {time.monotonic() - began:.0f} s")
            return info
        except AuthenticationError as error:
            raise refused(client.get_address(), error) from None
        except Silence as error:
            if "status code 404" in str(error):
                raise UserError(
                    f"the head no longer knows job {job}: it was started anew. "
                    "Fix: the same command again goes on with the run",
                    exit_code=130,
                ) from None
        silent_s = time.monotonic() - began
        if silent_s > patience_s:
            raise UserError(
                f"the head has said nothing for {silent_s:.0f} s; job {job} may be at work. "
                "Fix: the same command again follows it, or goes on with the run",
                exit_code=130,
            )
        if silent_s > SAID_AFTER_S and not said:
            said = True
            say(f"the head does not answer; asking again for up to {patience_s:.0f} s")
        time.sleep(min(delay_s, patience_s))
    raise AssertionError("backoff has no end")


class Log(threading.Thread):
    """Shows what the job has written, each character once, however often the stream breaks."""

    def __init__(self, client: Any, job: str, show: Callable[[str], None]) -> None:
        super().__init__(name="job-log", daemon=True)
        self._client, self._job, self._show_text = client, job, show
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._shown = 0

    def run(self) -> None:
        """Stream after stream until closed."""
        while not self._closed.is_set():
            # Whatever ends a stream, well or badly, says nothing of the job.
            with contextlib.suppress(Exception):
                asyncio.run(self._stream())
            self._closed.wait(STREAM_PAUSE_S)

    async def _stream(self) -> None:
        at = 0  # every stream begins with the first character
        async for text in self._client.tail_job_logs(self._job):
            if self._closed.is_set():
                return
            self._show(text, at)
            at += len(text)

    def complete(self) -> None:
        """Show what no stream has brought, after the job's end."""
        try:
            whole = bounded(lambda: self._client.get_job_logs(self._job))
        except (*Silence, AuthenticationError):
            return
        self._show(whole, 0)

    def close(self) -> None:
        """Show nothing more."""
        with self._lock:
            self._closed.set()

    def _show(self, text: str, at: int) -> None:
        with self._lock:
            fresh = text[max(0, self._shown - at) :]
            if fresh and not self._closed.is_set():
                self._show_text(fresh)
                self._shown = at + len(text)
