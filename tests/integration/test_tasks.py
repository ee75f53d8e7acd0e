"""Tasks on a Ray of this machine: what is raised, what dies, what is asked to end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.ray_cluster import attach
from orchestrator.ray_cluster.tasks import MOST_ATTEMPTS, Tasks

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def ray_of_our_own() -> Iterator[None]:
    with mock.patch.dict(os.environ), attach.attached("tasks"):  # it tells Ray by environment
        yield


def work(call: str, *, folder: str) -> str:
    """What ``call`` says; how often each was begun is in ``folder``."""
    begun = len(list(Path(folder).glob(f"{call}-*")))
    Path(folder, f"{call}-{begun}").touch()
    if call == "raises":
        raise ValueError("of its own")
    if call == "dies" or (call == "dies once" and begun == 0):
        os._exit(1)
    return call.upper()


def test_each_call_is_answered_once_whatever_happens_to_its_worker(tmp_path: Path) -> None:
    calls = ["returns", "raises", "dies once", "dies"]
    tasks = Tasks[str](work, {"folder": str(tmp_path)}, cpus=1, gpus=0)
    answers = list(tasks.results(calls, lambda: False))
    assert sorted(call for call, _ in answers) == sorted(calls)
    by_call = dict(answers)
    assert by_call["returns"] == "RETURNS"
    assert by_call["dies once"] == "DIES ONCE"
    assert "of its own" in str(by_call["raises"])
    assert "WorkerCrashedError" in type(by_call["dies"]).__name__
    begun = {call: len(list(tmp_path.glob(f"{call}-*"))) for call in calls}
    assert begun == {"returns": 1, "raises": 1, "dies once": 2, "dies": MOST_ATTEMPTS}


def test_what_has_not_answered_is_cancelled_at_the_end(tmp_path: Path) -> None:
    tasks = Tasks[str](work, {"folder": str(tmp_path)}, cpus=1, gpus=0)
    assert list(tasks.results(["returns"], lambda: True)) == []
