"""A Ray head node of a test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.conftest import Shell

BIN = Path(sys.executable).parent
START_PATIENCE_S = 90


@dataclass(frozen=True)
class Head:
    """Where it answers: ``dashboard`` takes jobs, ``gcs`` is a ``RAY_ADDRESS``."""

    dashboard: str
    gcs: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head(
    shell: Shell, auth: str, *, cpus: int = 2, scaling: dict[str, Any] | None = None
) -> Iterator[Head]:
    """A head node with a dashboard and, if told what to scale, Ray's fake autoscaler. Killed by
    process group, because ``ray stop`` would stop every Ray of the machine. In a folder of its
    own: Ray's jobs attach to the head that is recorded last in their head's folder, and two heads
    of the usual one take each other's jobs."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield from _head(shell, auth, cpus, scaling, folder)


def _head(
    shell: Shell, auth: str, cpus: int, scaling: dict[str, Any] | None, folder: str
) -> Iterator[Head]:
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    shell.env |= {"RAY_AUTH_MODE": auth, "PATH": f"{BIN}:{os.environ['PATH']}"}
    shell.env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nothing here is worth half a minute
    del shell.env["RAY_ADDRESS"]
    scaled, env = [], dict(shell.env)
    if scaling is not None:
        provider = {**scaling["provider"], "gcs_address": f"127.0.0.1:{gcs}"}
        file = shell.cwd / "cluster.json"
        file.write_text(json.dumps({**scaling, "provider": provider}))
        env |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1"}
        env |= {"RAY_CLOUD_INSTANCE_ID": provider["head_node_id"]}
        env |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        scaled = [f"--autoscaling-config={file}"]
    if auth == "token":
        generate = [BIN / "ray", "get-auth-token", "--generate"]
        subprocess.run(generate, env=shell.env, check=True, capture_output=True)
    with (shell.cwd / "head.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
                *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}", *scaled),
                f"--dashboard-agent-listen-port={agent}",  # another Ray has the usual one
                f"--temp-dir={folder}",
            ],
            env=env,
            cwd=shell.cwd,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        # The dashboard answers up to two seconds before the head's own raylet is there.
        until_started(process, shell.cwd / "head.log")
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + START_PATIENCE_S
        while not answers(f"{address}/api/version"):
            assert process.poll() is None, (shell.cwd / "head.log").read_text()
            assert time.monotonic() < deadline, "the dashboard never answered"
            time.sleep(0.5)
        yield Head(dashboard=address, gcs=f"127.0.0.1:{gcs}")
    finally:
        end(process)


@contextmanager
def node(shell: Shell, at: Head, env: dict[str, str], *, cpus: int = 0) -> Iterator[None]:
    """Another node of the cluster, in an environment that differs by ``env``."""
    with (shell.cwd / "node.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--block", f"--address={at.gcs}", f"--num-cpus={cpus}"),
                *("--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}"),
            ],
            env={**shell.env, **env},
            cwd=shell.cwd,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until_started(process, shell.cwd / "node.log")
        yield
    finally:
        end(process)


def until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until ``ray start`` says that all of the node's processes run."""
    deadline = time.monotonic() + START_PATIENCE_S
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"the node never started: {log.read_text()}"
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
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
