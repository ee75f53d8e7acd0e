"""`ray job submit … sweep vit` on a head of this machine, token authentication on and off."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Shell

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
HEAD_PATIENCE_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(shell: Shell, auth: str) -> Iterator[str]:
    """A head node with a dashboard; yields the job server's address. Killed by process group,
    because ``ray stop`` would stop every Ray of the machine."""
    gcs, dashboard = free_port(), free_port()
    shell.env |= {"RAY_AUTH_MODE": auth, "PATH": f"{BIN}:{os.environ['PATH']}"}
    del shell.env["RAY_ADDRESS"]
    if auth == "token":
        generate = [BIN / "ray", "get-auth-token", "--generate"]
        subprocess.run(generate, env=shell.env, check=True, capture_output=True)
    with (shell.cwd / "head.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2"),
            ],
            env=shell.env,
            cwd=shell.cwd,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + HEAD_PATIENCE_S
        while not answers(f"{address}/api/version"):
            assert process.poll() is None, (shell.cwd / "head.log").read_text()
            assert time.monotonic() < deadline, "the dashboard never answered"
            time.sleep(0.5)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as refusal:
        return refusal.code in (401, 403)
    except OSError:
        return False


def submit(shell: Shell, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "ray", "job", "submit", f"--address={address}", "--working-dir", ROOT, "--"]
    return subprocess.run(
        [*command, "python", "-m", "orchestrator", *arguments],
        env=shell.env,
        cwd=shell.cwd,
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_a_submitted_sweep_runs_on_the_cluster(shell: Shell, auth: str) -> None:
    with head(shell, auth) as address:
        done = submit(
            shell, address, "sweep", "vit", "--name", "job", "--trials", "2", "--max-epochs", "1",
            "--set", "data.train_limit=200", "--storage", str(shell.cwd / "runs"),
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
