"""A real MLflow server: the one that `orchestrator ui` starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.tracking import store

PATIENCE_S = 240.0  # followers are nice: beside other work they wait


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """`orchestrator ui` on a database; can be killed and started again. ``python`` is another one,
    with an MLflow of its own."""

    def __init__(self, storage: Path, database: str, python: str = sys.executable) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        command = store.ui_command(str(storage), database, port=port)
        self._command = [python if word == sys.executable else word for word in command]
        self._log = (storage / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=self._log, start_new_session=True
        )
        until = time.monotonic() + PATIENCE_S
        while store.check(self.uri, timeout_s=1):
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
