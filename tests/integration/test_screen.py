"""A screen on a Ray of its own: workers and drivers die, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.ledger.session import is_running
from tests.integration.conftest import PATIENCE_S, Shell
from trainables.storage.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def screened(shell: Shell) -> list[str]:
    return [r["candidate"] for r in shell.records("s") if r["event"] == "screened"]


def wait_for_worker(shell: Shell) -> list[int]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if workers := shell.processes("ray::on_worker"):
            return workers
        time.sleep(0.05)
    raise AssertionError("no task ever began")


def test_a_lost_worker_and_a_killed_driver_cost_no_candidate(shell: Shell, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"nothing.weight": torch.zeros(2)}, wrong)
    command = (
        "screen", "timm:resnet18=none", "timm:test_vit=none", f"wrong=timm:test_vit2={wrong}",
        "timm:test_resnet=none", "--name", "s", "--top", "2", "--set", "data.train_limit=900",
    )  # fmt: skip
    labels = ["resnet18", "test_vit", "wrong", "test_resnet"]

    driver = shell.start(*command)
    (worker, *_) = wait_for_worker(shell)
    os.kill(worker, signal.SIGKILL)  # Ray starts the task again
    shell.wait_for("s", lambda _: len(screened(shell)) >= 1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait(timeout=60)
    assert wait_until(lambda: not is_running(shell.folder("s")), patience_s=30, poll_s=0.1)
    before = screened(shell)
    assert 1 <= len(before) < 4, "it was killed too late to show anything"

    code, out, err = shell(*command)
    assert code == 4, err  # done, one failed
    assert sorted(screened(shell)) == sorted(labels)  # each once
    assert screened(shell)[: len(before)] == before
    assert "failed: wrong: --weights" in out
    document = json.loads((shell.folder("s") / "shortlist.json").read_text())
    assert len(document["shortlist"]) == 2
    assert document["failed"] == ["wrong"]
    assert all(record.get("stage") == "screen" for record in shell.records("s"))

    # Without Ray: nothing is left to be done, and limits may change.
    code, out, err = shell(*command[:-2], "--set", "data.train_limit=900", "--top", "1", "--json")
    assert code == 4, err
    assert json.loads(out)["shortlist"] == document["shortlist"][:1]
    assert "starting Ray" not in err

    # Another name finds the features on disk; --minutes measures first.
    asked = ("screen", "timm:test_vit=none", "timm:test_resnet=none", "--name", "again",
             "--set", "data.train_limit=900", "--minutes", "30")  # fmt: skip
    code, out, err = shell(*asked)
    assert code == 0, err
    assert err.count("features were on disk") == 2
    assert "probes learn from 900 training images" in err
