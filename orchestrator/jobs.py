"""A run as a job of a Ray head: started or found there, followed to its end, its exit code.

Ray's client waits for an answer without an end; here every question to the head has a bound.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from trainables.background import in_background
from trainables.errors import UserError

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
