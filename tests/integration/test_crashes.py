"""Whatever dies under a sweep, it ends as the sweep that nothing happened to.

One slot, so that the undisturbed run decides in one order only and every number can be compared.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest

from orchestrator.ledger import State
from tests.integration.conftest import Shell
from tests.integration.test_sweep import epochs, mlflow_runs

pytestmark = pytest.mark.ray

SWEEP = (
    "sweep", "resnet", "--trials", "6", "--max-epochs", "4",
    "--set", "scheduler.reduction_factor=2", "--set", "resources.max_slots=1",
    "--set", "data.train_limit=600", "--set", "recipe.batch_size_per_worker=20",
)  # fmt: skip


def story(state: State) -> dict[str, Any]:
    """What a sweep came to, without times, places and attempts."""
    return {
        name: (
            trial.status,
            trial.axes,
            trial.rungs,
            [
                (epoch, report["metrics"]["val_top1"], report["metrics"]["train_loss"])
                for epoch, report in sorted(trial.reports.items())
            ],
        )
        for name, trial in state.trials.items()
    }


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_every_crash_ends_in_the_same_sweep(shell: Shell) -> None:
    calm = shell.start(*SWEEP, "--name", "calm")
    assert calm.communicate(timeout=240)[1] is not None
    assert calm.returncode == 0
    expected = shell.state("calm")
    command = (*SWEEP, "--name", "storm")

    # The worker, the thin trial and the dispatcher of a live sweep: it goes on by itself.
    driver = shell.start(*command)
    shell.wait_for("storm", lambda state: epochs(state) >= 2)
    kill(shell.processes("RayTrainWorker"))
    seen = epochs(shell.state("storm"))
    shell.wait_for("storm", lambda state: epochs(state) >= seen + 1)
    kill(shell.processes("ray::SlotTrial"))
    seen = epochs(shell.state("storm"))
    shell.wait_for("storm", lambda state: epochs(state) >= seen + 1)
    kill(shell.processes("ray::Dispatcher"))
    seen = epochs(shell.state("storm"))
    shell.wait_for("storm", lambda state: epochs(state) >= seen + 1)

    # The whole of Ray under it: the driver ends, the same command goes on.
    kill(shell.processes("raylet/raylet") + shell.processes("gcs_server"))
    driver.communicate(timeout=120)
    assert driver.returncode != 0
    time.sleep(1.0)
    code, _, err = shell(*command)
    assert code == 0, err

    found = shell.state("storm")
    assert story(found) == story(expected)
    assert shell.reported_twice("storm") == []
    assert [trial for trial, _ in mlflow_runs(shell)].count("resnet-0000") == 2  # calm and storm
    assert len(mlflow_runs(shell)) == 2 * len(found.trials)
