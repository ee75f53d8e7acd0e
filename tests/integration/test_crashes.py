"""Whatever dies under a sweep, it ends as the sweep that nothing happened to.

One slot and one seed, so that the undisturbed run decides in one order only and every number can be
compared. TPE draws each recipe when its trial starts, from what the ledger knows by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest

from orchestrator.compare.winners import winners
from orchestrator.ledger.state import State
from tests.integration.conftest import Shell
from tests.integration.test_sweep import epochs, mlflow_runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SWEEP = (
    "sweep", "resnet", "--trials", "9", "--max-epochs", "8", "--no-measure",
    "--set", "scheduler.sampler=tpe", "--set", "scheduler.reduction_factor=2",
    "--set", "scheduler.grace_epochs=1",
    "--set", "data.train_limit=400", "--set", "recipe.batch_size_per_worker=20",
    "--set", "resources.max_slots=1",
)  # fmt: skip
STORM = (*SWEEP, "--name", "storm")


def outcome_of(state: State) -> dict[str, Any]:
    """What a sweep came to, without times, places and attempts."""
    by_trial = {}
    for name, trial in state.trials.items():
        reports = [
            {key: value for key, value in report.metrics.items() if "second" not in key}
            for _, report in sorted(trial.reports.items())
        ]
        by_trial[name] = (trial.status, trial.axes, trial.recipe, trial.rungs, reports)
    return by_trial


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def one_more_epoch(shell: Shell) -> None:
    seen = epochs(shell.state("storm"))
    shell.wait_for("storm", lambda state: epochs(state) > seen)


def sweep_that_loses_its_parts(shell: Shell) -> None:
    """Worker, dispatcher and thin trials die one after the other; then a clean stop.

    All of it while the first trial is at work: which of two waiting trials comes back first, and
    with that the order of decisions, nobody promises.
    """
    driver = shell.start(*STORM)
    shell.wait_for("storm", lambda state: epochs(state) >= 2)
    for part in ("RayTrainWorker", "ray::Dispatcher", "ray::ResourceTrainable"):
        kill(shell.processes(part))
        one_more_epoch(shell)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "the same command goes on" in err
    assert shell.records("storm")[-1]["event"] == "stopped"
    running = {n for n, t in shell.state("storm").trials.items() if t.status == "running"}
    assert running
    assert {status for trial, status in mlflow_runs(shell, "storm") if trial in running} == {
        "KILLED"
    }


def an_epoch_of_its_own(shell: Shell) -> None:
    """Until the driver that goes on has an epoch: the last one's dispatcher outlives it by some."""
    sessions = events(shell).count("resumed")
    shell.wait_for("storm", lambda _: events(shell).count("resumed") > sessions)
    one_more_epoch(shell)


def events(shell: Shell) -> list[str]:
    return [record["event"] for record in shell.records("storm")]


def sweep_that_loses_its_driver(shell: Shell) -> None:
    driver = shell.start(*STORM)
    an_epoch_of_its_own(shell)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def sweep_that_loses_its_cluster(shell: Shell) -> None:
    driver = shell.start(*STORM)
    an_epoch_of_its_own(shell)
    kill(shell.processes("raylet/raylet") + shell.processes("gcs_server"))
    driver.communicate(timeout=120)
    assert driver.returncode != 0


def test_every_crash_ends_in_the_same_sweep(shell: Shell) -> None:
    sweep_that_loses_its_parts(shell)
    sweep_that_loses_its_driver(shell)
    sweep_that_loses_its_cluster(shell)
    assert any(t.ended_at is None for t in shell.state("storm").trials.values())
    code, out, err = shell(*STORM)
    assert code == 0, err
    assert "best finished trial" in out.lower()

    # The undisturbed run is what the other one's report reproduces.
    code, _, err = shell("reproduce", "runs/storm/report.html", "--rerun", "calm")
    assert code == 0, err
    hashes = {shell.state(name).header.spec_hash for name in ("calm", "storm")}
    assert len(hashes) == 1
    expected, actual = shell.state("calm"), shell.state("storm")
    assert outcome_of(actual) == outcome_of(expected)
    assert {trial.status for trial in actual.trials.values()} == {"finished", "pruned"}
    assert shell.reported_twice("storm") == []
    drawn = [r["trial"] for r in shell.records("storm") if r["event"] == "drawn"]
    assert sorted(drawn) == sorted(actual.trials.keys() - {"resnet-0000"})  # that is published
    for name, state in (("calm", expected), ("storm", actual)):
        status = {"finished": "FINISHED", "pruned": "KILLED"}
        in_mlflow = {name: status[trial.status] for name, trial in state.trials.items()}
        assert sorted(mlflow_runs(shell, name)) == sorted(in_mlflow.items())
        winner = winners(state)["resnet"]
        left = [str(path) for path in (shell.folder(name) / "checkpoints").glob("*/*/*")]
        assert left == [winner.best_checkpoint]

    the_name_is_taken(shell)


def the_name_is_taken(shell: Shell) -> None:
    """Asked for again it is done already; another spec under its name is refused."""
    records = len(shell.records("storm"))
    code, _, err = shell(*STORM)
    assert code == 0
    assert "done already" in err
    assert len(shell.records("storm")) == records
    code, _, err = shell(*STORM, "--seed", "7")
    assert code == 2
    assert err.count("error:") == 1
    assert "seed: was 0, asked 7" in err
