"""A run as a job of a Ray head: started or found there, followed to its end, its exit code.

Ray's client waits for an answer without an end; here every question to the head has a bound. The
status alone says that a job has ended: a log stream also ends when a head, or a proxy before it,
closes the connection; then another one is opened.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from trainables.errors import EXIT_CODES, UserError
from trainables.printable import redacted, with_login, without_login
from trainables.storage.waiting import bounded, in_background, retry

ANSWER_TIMEOUT_S = 20.0
UPLOAD_TIMEOUT_S = 600.0  # of the working directory, which travels with the first question
AGENT_PATIENCE_S = 60.0  # a head answers before what starts its jobs is there
OUTAGE_PATIENCE_S = 300.0
QUIET_OUTAGE_S = 5.0  # a shorter one is not worth a line
POLL_S = 1.0
STREAM_PAUSE_S = 1.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
RUN_KEY = "orchestrator_run"  # in a job's metadata: which run it carries out

NO_ANSWER = (OSError, RuntimeError)  # also what Ray makes of a broken answer

log = logging.getLogger(__name__)


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
    choices = (given, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS"))
    addresses = (choice for choice in choices if choice and choice not in ("local", "auto"))
    address = without_login(next(addresses, DEFAULT_ADDRESS))
    if urlsplit(address).scheme in ("http", "https"):
        return address.rstrip("/")
    raise UserError(
        f"jobs go to the address of a head's dashboard; got {address!r}. "
        "Fix: --address http://HEAD:8265"
    )


def connect(address: str) -> JobSubmissionClient:
    """The jobs API of the head at ``address``. Raises ``UserError`` within seconds."""
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # Ray's client tells of each step
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # these overrule the address that Ray's client is given
    try:
        return bounded(lambda: JobSubmissionClient(with_login(address)), ANSWER_TIMEOUT_S)
    except AuthenticationError as error:
        raise refused(address, error) from None
    except NO_ANSWER as error:
        raise UserError(
            f"a Ray head must answer at {address}; nothing does ({_first_line(error)}). Fix: start "
            "it (ray start --head), open a tunnel to its port 8265, or correct --address"
        ) from None


def start(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    """The id of the run's job at the head, and whether it was there already, still at work.

    Raises ``UserError`` where the run is at work with other arguments, where the working
    directory cannot travel, and where the head takes no job within ``AGENT_PATIENCE_S``.
    """
    try:
        # After a broken answer the job may be there: the next look finds it.
        return retry(
            lambda: _found_or_submitted(client, job), on=NO_ANSWER, patience_s=AGENT_PATIENCE_S
        )
    except AuthenticationError as error:
        raise refused(without_login(client.get_address()), error) from None
    except NO_ANSWER as error:
        head = without_login(client.get_address())
        raise UserError(
            f"the head at {head} takes no job ({_first_line(error)}). Fix: the same "
            "command again, or look into the head's dashboard_agent.log"
        ) from None


def _found_or_submitted(client: JobSubmissionClient, job: Job) -> tuple[str, bool]:
    answer = bounded(client.list_jobs, ANSWER_TIMEOUT_S)
    submitted = {other.submission_id: other for other in answer if other.submission_id}
    of_run = {k: v for k, v in submitted.items() if (v.metadata or {}).get(RUN_KEY) == job.run}
    for name, other in of_run.items():
        if other.status.is_terminal():
            continue
        if other.entrypoint != job.entrypoint:
            raise UserError(
                f"one job at a time may carry a run out; {job.run!r} is at work as job "
                f"{name}: {other.entrypoint}. Fix: submit that command to follow "
                f"it, orchestrator stop {job.run}, or --name OTHER"
            )
        return name, True
    numbers = itertools.count(1 + len(of_run))
    names = (f"{job.run}-{number}" if number > 1 else job.run for number in numbers)
    submit = partial(
        client.submit_job,
        entrypoint=job.entrypoint,
        submission_id=next(name for name in names if name not in submitted),
        runtime_env={"working_dir": str(job.working_dir), "env_vars": dict(job.env)},
        metadata={RUN_KEY: job.run},
    )
    try:
        return bounded(submit, UPLOAD_TIMEOUT_S), False
    except ValueError as error:
        raise UserError(
            f"--working-dir {job.working_dir} cannot travel to the head: {_first_line(error)}. "
            "Fix: name what the job does not need in .gitignore, or another --working-dir"
        ) from None


def exit_code(info: JobDetails) -> tuple[int, str]:
    """The exit code of a job that has ended, and what to say of it.

    The run's own where it came to exit; 130, as for any interruption, where it was ended.
    """
    code = info.driver_exit_code
    if info.status == JobStatus.SUCCEEDED:
        return 0, "is done"
    if info.status == JobStatus.STOPPED:
        return 130, "was stopped through Ray"
    if code in EXIT_CODES:
        return code, f"ended with exit code {code}"
    if code is not None and 0 <= code < 128:
        return 2, f"could not run this project: its shell ended with exit code {code}"
    if code is not None:
        return 130, f"was ended by signal {-code if code < 0 else code - 128}"
    if info.error_type == "RUNTIME_ENV_SETUP_FAILURE":
        return 2, f"could not start: {_first_line(info.message)}"
    return 130, f"has lost its process: {_first_line(info.message)}"


def refused(address: str, error: Exception) -> UserError:
    """The mistake of a client without the head's token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        fix = "export RAY_AUTH_MODE=token, with the head's token in ~/.ray/auth_token"
    else:
        fix = "copy the head's ~/.ray/auth_token here, or name it in RAY_AUTH_TOKEN_PATH"
    return UserError(f"the head at {address} asks for its token: {_first_line(error)}. Fix: {fix}")


def _first_line(error: object) -> str:
    """The start of what an error says, without the full stop."""
    lines = redacted(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


async def follow(
    client: JobSubmissionClient,
    job: str,
    *,
    show: Callable[[str], None],
    patience_s: float = OUTAGE_PATIENCE_S,
    poll_s: float = POLL_S,
) -> tuple[int, str]:
    """Show the log of ``job`` until it has ended; its exit code and what to say of its end.

    Raises ``UserError`` with exit code 130 when the head says nothing for ``patience_s`` seconds,
    or no longer knows the job.
    """
    num_shown = 0  # characters of the log

    def show_new(text: str, start: int) -> None:
        nonlocal num_shown
        if new := text[max(0, num_shown - start) :]:
            show(new)
            num_shown = start + len(text)

    async def stream() -> None:
        while True:
            start = 0  # every stream begins with the first character
            # Whatever ends a stream, well or badly, says nothing of the job.
            with suppress(Exception):
                async for text in client.tail_job_logs(job):
                    show_new(text, start)
                    start += len(text)
            await asyncio.sleep(STREAM_PAUSE_S)

    streaming = asyncio.create_task(stream())
    while True:
        answer = asyncio.wrap_future(in_background(lambda: _details(client, job, patience_s)))
        details = await asyncio.shield(answer)  # Ctrl-C would cancel what its thread still sets
        if details.status.is_terminal():
            break
        await asyncio.sleep(poll_s)
    streaming.cancel()
    with suppress(*NO_ANSWER, AuthenticationError):  # what no stream has brought
        show_new(bounded(lambda: client.get_job_logs(job), ANSWER_TIMEOUT_S), 0)
    return exit_code(details)


def _details(client: JobSubmissionClient, job: str, patience_s: float) -> JobDetails:
    """What the head says of the job, asked again while it says nothing."""
    is_out = False

    def wait(error: BaseException, waited_s: float) -> None:
        nonlocal is_out
        if "status code 404" in str(error):
            raise UserError(
                f"the head no longer knows job {job}: it was started anew. "
                "Fix: the same command again goes on with the run",
                exit_code=130,
            )
        if waited_s > QUIET_OUTAGE_S and not is_out:
            is_out = True
            log.warning(f"the head does not answer; asking again for up to {patience_s:.0f} s")

    began = time.monotonic()
    try:
        details = retry(
            lambda: bounded(lambda: client.get_job_info(job), ANSWER_TIMEOUT_S),
            on=NO_ANSWER,
            patience_s=patience_s,
            on_failure=wait,
        )
    except AuthenticationError as error:
        raise refused(without_login(client.get_address()), error) from None
    except NO_ANSWER:
        raise UserError(
            f"the head has said nothing for {time.monotonic() - began:.0f} s; job {job} may be at "
            "work. Fix: the same command again follows it, or goes on with the run",
            exit_code=130,
        ) from None
    if is_out:
        log.info(f"the head is back after {time.monotonic() - began:.0f} s")
    return details
