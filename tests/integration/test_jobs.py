"""`ray job submit … sweep vit` on a head of this machine, token authentication on and off."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.integration.conftest import ROOT, Shell
from tests.integration.heads import BIN, HEAD_PATIENCE_S, head

pytestmark = pytest.mark.ray


def submit(shell: Shell, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ray", "job", "submit", f"--address={address}", "--working-dir", ROOT, "--"]
    deadline = time.monotonic() + HEAD_PATIENCE_S
    while True:
        done = subprocess.run(
            [*command, "python", "-m", "orchestrator", *arguments],
            env=shell.env,
            cwd=shell.cwd,
            text=True,
            capture_output=True,
            timeout=240,
            check=False,
        )
        # The dashboard answers before the agent that starts jobs is there.
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1.0)


@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_a_submitted_sweep_runs_on_the_cluster(shell: Shell, auth: str) -> None:
    with head(shell, auth) as started:
        address = started.dashboard
        done = submit(
            shell, address, "sweep", "vit", "--name", "job", "--trials", "2", "--max-epochs", "1",
            "--set", "data.train_limit=200", "--set", "resources.max_slots=1",
            "--storage", str(shell.cwd / "runs"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        state = shell.state("job")
        assert [trial.status for trial in state.trials.values()] == ["finished", "finished"]
        if auth == "token":
            refused = submit(shell, address, "sweep", "nonsense")
            assert refused.returncode != 0
            assert "error:" in refused.stdout
            del shell.env["RAY_AUTH_MODE"]
            shell.env["HOME"] = str(shell.cwd)  # another user, without the token
            assert submit(shell, address, "--help").returncode != 0
