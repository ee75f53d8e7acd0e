"""Clusters whose nodes come and go: Ray's fake autoscaling provider, real raylets and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT, Shell
from tests.integration.heads import head, node
from tests.integration.test_sweep import epochs

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(600)]

QUICK = (
    *("--set", "scheduler.kind=none", "--set", "data.train_limit=200"),
    *("--set", "recipe.batch_size_per_worker=20"),
)
IDLE_MINUTES = 0.1
GONE_PATIENCE_S = 40


def laptop() -> dict[str, Any]:
    """The users' own file, with less patience for idle nodes."""
    text = (ROOT / "cluster" / "local-autoscaling.yaml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), "idle_timeout_minutes": IDLE_MINUTES}


def nodes(shell: Shell) -> int:
    """Nodes beside the head."""
    return len(shell.processes("raylet/raylet")) - 1


def kill_a_node(shell: Shell, place: int) -> None:
    """One that has a training worker: it dies with all its processes, as machines do."""
    above = [parent(pid) for pid in shell.processes("RayTrainWorker")]
    doomed = sorted({raylet for raylet in above if raylet is not None})[place]
    for pid in (doomed, *(pid for pid in shell.processes("ray::") if parent(pid) == doomed)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int | None:
    """``None`` of a process that has ended since it was listed."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_nodes_come_for_trials_and_go_after_them_and_one_that_dies_costs_no_trial(
    shell: Shell,
) -> None:
    with head(shell, "disabled", cpus=0, scaling=laptop()) as at:
        shell.env["RAY_ADDRESS"] = at.gcs
        assert nodes(shell) == 0
        driver = shell.start(
            "sweep", "resnet", "--name", "s", "--trials", "8", "--max-epochs", "2", *QUICK
        )
        shell.wait_for("s", lambda state: epochs(state) >= 2)
        assert 1 <= nodes(shell) <= 2
        kill_a_node(shell, 0)
        _, err = driver.communicate(timeout=200)
        assert driver.returncode == 0, err
        state = shell.state("s")
        assert [trial.status for trial in state.trials.values()] == ["finished"] * 8
        assert all(sorted(trial.reports) == [1, 2] for trial in state.trials.values())
        assert shell.reported_twice("s") == []
        assert sum(trial.preemptions for trial in state.trials.values()) == 1
        assert "2 slots" in err
        deadline = time.monotonic() + GONE_PATIENCE_S
        while nodes(shell):
            assert time.monotonic() < deadline, "nodes without work stay"
            time.sleep(0.5)


def test_a_trial_goes_on_with_the_workers_that_are_left(shell: Shell) -> None:
    with head(shell, "disabled", cpus=1) as at, node(shell, at, {}, cpus=1):
        shell.env["RAY_ADDRESS"] = at.gcs
        driver = shell.start(
            "sweep", "vit", "--name", "e", "--trials", "1", "--max-epochs", "20",
            "--workers", "1..2", *QUICK,
        )  # fmt: skip
        before = shell.wait_for("e", lambda state: epochs(state) >= 2)
        kill_a_node(shell, 1)
        _, err = driver.communicate(timeout=200)
        assert driver.returncode == 0, err
        (trial,) = shell.state("e").trials.values()
        assert sorted(trial.reports) == list(range(1, 21))
        workers = [report.workers for _, report in sorted(trial.reports.items())]
        assert workers == sorted(workers, reverse=True)
        assert set(workers) == {1, 2}
        assert trial.preemptions == 1
        assert (
            before.trials["vit-0000"].detail["global_batch"] == trial.detail["global_batch"] == 40
        )
        assert shell.reported_twice("e") == []
