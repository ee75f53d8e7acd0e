"""A sweep whose state is in object storage, which fails one request in twenty."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.winners import winners
from orchestrator.ledger.replication import read
from orchestrator.ledger.state import State, replay
from tests.integration.conftest import Shell
from tests.integration.s3_server import Proxy, storage

# Four commands, perhaps on a busy machine.
pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(600)]

SWEEP = (
    *("sweep", "resnet", "--trials", "2", "--max-epochs", "3"),
    *("--set", "data.train_limit=100", "--set", "recipe.batch_size_per_worker=50"),
    *("--set", "scheduler.kind=none", "--set", "resources.max_slots=1", "--final-seeds", "1"),
)
BUCKET = "s3://bucket/tournaments"
TIMED = ("images_per_second", "train_seconds", "eval_seconds", "data_seconds", "checkpoint_seconds")


@pytest.fixture
def remote(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shell's storage; this process may look into it too, without the proxy's faults."""
    with storage(shell.cwd, "bucket", failing=0.05) as proxy:
        known = {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "key",
            "AWS_REGION": "us-east-1",
        }
        shell.env |= {**known, "AWS_ENDPOINT_URL": proxy.url}
        shell.env["ORCHESTRATOR_RUNS"] = str(shell.cwd / "disk")
        shell.env["ORCHESTRATOR_DATA"] = str(shell.cwd / "pixels")
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


def figures(state: State) -> dict[str, list[dict[str, float]]]:
    """By trial, what its epochs measured, but for the clock."""
    return {
        name: [
            {k: v for k, v in trial.reports[epoch].metrics.items() if k not in TIMED}
            for epoch in sorted(trial.reports)
        ]
        for name, trial in state.trials.items()
    }


def test_a_head_that_is_lost_with_its_disk_goes_on_from_the_storage(
    shell: Shell, remote: Proxy
) -> None:
    local, _, err = shell(*SWEEP, "--name", "there")
    assert local == 0, err
    expected = shell.state("there")

    asked = (*SWEEP, "--name", "s", "--storage", BUCKET)
    driver = shell.start(*asked)
    disk = next_copy(shell, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    for _ in range(300):  # the driver's Ray goes with it, but not at once
        if not shell.processes("RayTrainWorker"):
            break
        time.sleep(0.1)
    stored = replay(json.loads(line) for line in read(f"{BUCKET}/s").splitlines())
    assert 0 < sum(len(trial.reports) for trial in stored.trials.values()) < 6
    for lost in (disk, shell.cwd / "pixels"):
        shutil.rmtree(lost)

    code, _, err = shell(*asked)
    assert code == 0, err
    found = replay(json.loads(line) for line in read(f"{BUCKET}/s").splitlines())
    assert found.closed
    assert figures(found) == figures(expected)
    assert winners(found)["resnet"].trial == winners(expected)["resnet"].trial
    # It went on: the trial that was under way began again from its last epoch, not from the first.
    again = [trial for trial in stored.trials.values() if trial.reports and trial.epoch < 3]
    assert all(found.trials[trial.trial].attempt == 2 for trial in again)
    assert found.notes == []
    assert remote.told["served"] > 100
    assert remote.told.total() - remote.told["served"] > 5

    read_from_elsewhere(shell, found)


def next_copy(shell: Shell, driver: Any) -> Path:
    """The driver's working copies, once its ledger there has two epochs."""
    name = "*/s"
    disk = shell.cwd / "disk"

    def epochs() -> int:
        found = list(disk.glob(f"{name}/ledger.jsonl"))
        return found[0].read_text().count('"reported"') if found else 0

    for _ in range(1200):
        assert driver.poll() is None, driver.communicate()[1]
        if epochs() >= 2:
            return disk
        time.sleep(0.1)
    raise AssertionError("the sweep never got to its second epoch")


def read_from_elsewhere(shell: Shell, found: State) -> None:
    """A machine that has never seen the run compares it, and takes its winner away."""
    home = shell.cwd / "elsewhere"
    home.mkdir()
    shell.env["HOME"] = str(home)
    for name in ("ORCHESTRATOR_RUNS", "ORCHESTRATOR_DATA"):
        del shell.env[name]
    code, out, err = shell("compare", "s", "--json", "--storage", BUCKET)
    assert code == 0, err
    comparison = json.loads(out)
    (family,) = comparison["families"]
    assert family["best_val_top1"] == winners(found)["resnet"].best()[0]
    # What the final predicts of each image came along, with its winner's shares of right ones.
    (final,) = [trial for trial in found.trials.values() if trial.stage == "final"]
    (classes,) = comparison["classes"]["candidates"]
    right = sum(one["recall"]["mean"] * one["images"] for one in classes["scores"])
    test = final.outcome["test"]
    assert right / test["n"] == pytest.approx(test["top1"])
    code, out, err = shell("status", "--json", "--storage", BUCKET)
    assert code == 0, err
    (seen,) = json.loads(out)["runs"]
    assert (seen["name"], seen["status"]) == ("s", "done")
    assert seen["checkpoint_bytes"] > 1e6
    code, _, err = shell("export", "s", "--to", "model", "--storage", BUCKET)
    assert code == 0, err
    assert "the same class as the run's own evaluation" in err
    assert list((shell.cwd / "model").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("place", "expected"),
    [("s3://other/runs", "s3://other/runs"), ("s3://", "s3://BUCKET/PREFIX")],
)
def test_a_storage_that_cannot_be_written_is_refused_at_once(
    shell: Shell, remote: Proxy, place: str, expected: str
) -> None:
    code, _, err = shell("sweep", "vit", "--storage", place)
    assert code == 2
    assert expected in err
    assert "Fix:" in err
    assert "Traceback" not in err
