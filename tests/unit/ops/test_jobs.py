"""A job of a Ray head, seen by its client: found or submitted, followed through outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from orchestrator.ops import jobs
from trainables.errors import UserError

LOG = "starting Ray\ntrial 1\ntrial 2\ndone\n"
JOB = jobs.Job(run="vit", arguments=("sweep", "vit", "--set", "a=[1, 2]"), working_dir=Path())


def details(name: str, status: str, **fields: Any) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=name,
        status=JobStatus(status),
        **{"entrypoint": JOB.entrypoint, "metadata": {jobs.RUN_KEY: "vit"}, **fields},
    )


class Head:
    """A head's jobs API by hand: ``answers`` are what it says of its job, one after the other, an
    exception where it cannot; ``streams`` what each stream of the log brings before it breaks."""

    def __init__(
        self, answers: list[Any], streams: list[list[str]], there: Sequence[Any] = ()
    ) -> None:
        self.answers, self.streams, self.there = list(answers), list(streams), list(there)
        self.submitted: list[dict[str, Any]] = []

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[Any]:
        return self.there

    def submit_job(self, **asked: Any) -> str:
        self.submitted.append(asked)
        return str(asked["submission_id"])

    def get_job_info(self, job: str) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in self.streams.pop(0) if self.streams else ():
            yield text
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, job: str) -> str:
        return LOG


def followed(head: Any, patience_s: float = 20.0) -> tuple[tuple[int, str], str]:
    shown: list[str] = []
    following = jobs.follow(head, "vit", show=shown.append, patience_s=patience_s, poll_s=0.1)
    return asyncio.run(following), "".join(shown)


RUNNING = details("vit", "RUNNING")
FAILED = details("vit", "FAILED", driver_exit_code=5)


def test_neither_a_broken_stream_nor_a_silent_head_is_an_end() -> None:
    silence = [ConnectionError("no route"), RuntimeError("status code 500"), RUNNING]
    head = Head([RUNNING, *silence, *[RUNNING] * 12, FAILED], [[LOG[:10], LOG[10:20]], [LOG[:27]]])
    end, shown = followed(head)
    assert end == (5, "ended with exit code 5")
    assert shown == LOG
    assert head.streams == []


def test_a_head_that_stays_silent_ends_the_watch_and_not_the_run() -> None:
    with pytest.raises(UserError, match="may be at work") as ended:
        followed(Head([ConnectionError("no route")], []), patience_s=0.3)
    assert ended.value.exit_code == 130


def test_a_head_that_was_started_anew_knows_no_job() -> None:
    unknown = RuntimeError("Request failed with status code 404: Job vit does not exist.")
    with pytest.raises(UserError, match="was started anew") as ended:
        followed(Head([RUNNING, unknown], []))
    assert ended.value.exit_code == 130


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        *(({"status": "FAILED", "driver_exit_code": code}, code) for code in (2, 3, 4, 5, 130)),
        *(({"status": "FAILED", "driver_exit_code": code}, 2) for code in (1, 127)),
        ({"status": "STOPPED"}, 130),
        ({"status": "FAILED", "driver_exit_code": -9}, 130),
        ({"status": "FAILED", "driver_exit_code": 137}, 130),
        ({"status": "FAILED", "message": "the supervisor died"}, 130),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no"}, 2),
    ],
)
def test_the_exit_code_is_the_runs_own(fields: dict[str, Any], code: int) -> None:
    assert jobs.exit_code(details("vit", **fields))[0] == code


def test_a_job_at_work_is_found_and_one_that_has_ended_gets_a_successor() -> None:
    head: Any = Head([RUNNING], [], there=[details("vit", "FAILED"), details("vit-2", "RUNNING")])
    assert jobs.start(head, JOB) == ("vit-2", True)
    assert head.submitted == []

    foreign = details("vit-2", "RUNNING", metadata={jobs.RUN_KEY: "vit-2"})
    head = Head([RUNNING], [], there=[details("vit", "FAILED"), foreign])
    assert jobs.start(head, JOB) == ("vit-3", False)
    (asked,) = head.submitted
    assert asked["entrypoint"] == "python -m orchestrator sweep vit --set 'a=[1, 2]'"
    assert jobs.start(Head([RUNNING], []), JOB) == ("vit", False)  # type: ignore[arg-type]


def test_a_run_at_work_with_other_arguments_is_refused() -> None:
    other = details("vit", "RUNNING", entrypoint="python -m orchestrator sweep vit --trials 9")
    head: Any = Head([RUNNING], [], there=[other])
    with pytest.raises(UserError, match="--trials 9"):
        jobs.start(head, JOB)
    assert head.submitted == []


def test_the_address_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert jobs.head_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://head:8265/")
    assert jobs.head_address(None) == "https://head:8265"
    assert jobs.head_address("http://other:1") == "http://other:1"
    with pytest.raises(UserError, match="Fix: --address http"):
        jobs.head_address("10.0.0.1:6379")
