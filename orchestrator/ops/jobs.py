"""A run as a job of a Ray head: started or found there, followed to its end, its exit code.

Ray's client waits for an answer without an end; here every question to the head has a bound.

A job's log as it comes, and its status until that is final.

The status alone says that a job has ended: a log stream also ends when a head, or a proxy before
it, closes the connection; then it is taken up where it broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from trainables.errors import UserError
from trainables.storage.waiting import in_background

ANSWER_TIMEOUT_S = 20.0
UPLOAD_TIMEOUT_S = 600.0  # of the working directory, which travels with the first question
AGENT_PATIENCE_S = 60.0  # a head answers before what starts its jobs is there
LONGEST_BACKOFF_S = 10.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
RUN_KEY = "orchestrator_run"  # in a job's metadata: which run it carries out

Answer = TypeVar("Answer")
Silence = (OSError, RuntimeError, TimeoutError)  # also what Ray makes of a broken answer


@dataclass(frozen=True, kw_only=True)
class Job:
    """``python -m orchestrator ARGUMENTS`` in a copy of ``working_dir``. ``run`` names it: at most
    one job of a run goes on at a time."""

    run: str
    arguments: tuple[str, ...]
    working_dir: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def entrypoint(self) -> str:
        """The command as the head's shell is given it."""
        return shlex.join(["python", "-m", "orchestrator", *self.arguments])


def head_address(given: str | None) -> str:
    """The head's dashboard, which takes jobs: given, or as Ray's variables name it.

    Raises ``UserError`` for an address of another kind.
    """
    known = (given, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
    address = next((one for one in known if one and one not in ("local", "auto")), DEFAULT_ADDRESS)
    if urlsplit(address).scheme in ("http", "https"):
        return address.rstrip("/")
    raise UserError(
        f"jobs go to the address of a head's dashboard; got {address!r}. "
        "Fix: --address http://HEAD:8265"
    )


def connect(address: str) -> JobSubmissionClient:
    """The jobs API of the head at ``address``. Raises ``UserError`` within seconds."""
    logging.disable(logging.WARNING)  # Ray's client tells of each step, on the root's handler
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # these overrule the address that Ray's client is given
    try:
        return bounded(lambda: JobSubmissionClient(address))
    except AuthenticationError as error:
        raise refused(address, error) from None
    except Silence as error:
        raise UserError(
            f"a Ray head must answer at {address}; nothing does ({_first(error)}). Fix: start it "
            "(ray start --head), open a tunnel to its port 8265, or correct --address"
        ) from None


def start(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    """The id of the run's job at the head, and whether it was there already, still at work.

    Raises ``UserError`` where the run is at work with other arguments, where the working
    directory cannot travel, and where the head takes no job within ``AGENT_PATIENCE_S``.
    """
    deadline = time.monotonic() + AGENT_PATIENCE_S
    for delay_s in backoff():
        try:
            return _found_or_submitted(client, job)
        except AuthenticationError as error:
            raise refused(client.get_address(), error) from None
        except Silence as error:
            # After a broken answer the job may be there: the next look finds it.
            if time.monotonic() > deadline:
                raise UserError(
                    f"the head at {client.get_address()} takes no job ({_first(error)}). "
                    "Fix: the same command again, or look into the head's dashboard_agent.log"
                ) from None
        time.sleep(delay_s)
    raise AssertionError("backoff has no end")


def _found_or_submitted(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    there = [one for one in bounded(client.list_jobs) if one.submission_id]
    for one in there:
        if (one.metadata or {}).get(RUN_KEY) == job.run and not one.status.is_terminal():
            if one.entrypoint != job.entrypoint:
                raise UserError(
                    f"one job at a time may carry a run out; {job.run!r} is at work as job "
                    f"{one.submission_id}: {one.entrypoint}. Fix: submit that command to follow "
                    f"it, orchestrator stop {job.run}, or --name OTHER"
                )
            return one.submission_id, True
    taken = {one.submission_id for one in there}
    count = 1 + sum((one.metadata or {}).get(RUN_KEY) == job.run for one in there)
    names = (f"{job.run}-{number}" if number > 1 else job.run for number in range(count, 10**9))
    name = next(one for one in names if one not in taken)
    environment = {"working_dir": str(job.working_dir), "env_vars": dict(job.env)}

    def submit() -> str:
        return str(
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=name,
                runtime_env=environment,
                metadata={RUN_KEY: job.run},
            )
        )

    try:
        return bounded(submit, UPLOAD_TIMEOUT_S), False
    except ValueError as error:
        raise UserError(
            f"--working-dir {job.working_dir} cannot travel to the head: {_first(error)}. "
            "Fix: name what the job does not need in .gitignore, or another --working-dir"
        ) from None


def exit_code(info: Any) -> tuple[int, str]:
    """The exit code of a job that has ended, and what to say of it.

    The run's own where it came to exit; 130, as for any interruption, where it was ended.
    """
    code = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return 0, "is done"
    if info.status == JobStatus.STOPPED:
        return 130, "was stopped through Ray"
    if (code is not None and 0 <= code < 128) or code == 130:
        return code, f"ended with exit code {code}"
    if code is not None:
        return 130, f"was ended by signal {-code if code < 0 else code - 128}"
    if info.error_type == "RUNTIME_ENV_SETUP_FAILURE":
        return 2, f"could not start: {_first(info.message)}"
    return 130, f"has lost its process: {_first(info.message)}"


def bounded(call: Callable[[], Answer], timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
    """What ``call`` returns. Raises ``TimeoutError`` when that takes longer than the bound."""
    return in_background(call).result(timeout_s)


def backoff() -> Iterator[float]:
    """Seconds to wait before each next try, without an end."""
    delay_s = 0.5
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, LONGEST_BACKOFF_S)


def refused(address: str, error: Exception) -> UserError:
    """The mistake of a client without the head's token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        fix = "export RAY_AUTH_MODE=token, with the head's token in ~/.ray/auth_token"
    else:
        fix = "copy the head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH"
    return UserError(f"the head at {address} asks for its token: {_first(error)}. Fix: {fix}")


def _first(error: object) -> str:
    """The start of what an error says, without the full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


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
