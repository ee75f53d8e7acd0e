"""MLflow's UI on this machine: its server as a child of ours, and its pages in a browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from orchestrator import process
from orchestrator.tracking import store
from trainables.errors import UserError

END_PATIENCE_S = 5.0
START_PATIENCE_S = 180.0  # some seconds, minutes on a machine that others keep busy
POLL_S = 0.3


@contextmanager
def served(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server, all of whose processes end with the block, also where a signal ends it. What
    it says goes to stderr."""
    server = subprocess.Popen(
        command,
        env=process.module_environment(),
        stdout=sys.stderr.fileno(),
        start_new_session=True,
    )
    try:
        yield server
    finally:  # a signal is a KeyboardInterrupt by now
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                server.wait(END_PATIENCE_S)


def wait_for_answer(server: subprocess.Popen[bytes], address: str) -> None:
    """Return once the server answers at ``address``. Raises ``UserError`` where it ends before, or
    does not answer in time."""
    deadline = time.monotonic() + START_PATIENCE_S
    while lines := store.check(address, timeout_s=2.0):
        if server.poll() is not None:
            wait_for_end(server)
        if time.monotonic() > deadline:
            raise UserError(*lines)
        time.sleep(POLL_S)


def wait_for_end(server: subprocess.Popen[bytes]) -> None:
    """Wait as long as the server runs. Raises ``UserError`` where it ends by itself."""
    code = server.wait()
    raise UserError(
        f"MLflow's server must keep running; it ended with exit code {code}, see above. "
        "Fix: mlflow doctor, or --tracking-uri of another store"
    )


def open_pages(addresses: Sequence[str]) -> bool:
    """Open each in a tab of the browser of whoever is here; whether all could be."""
    opened = [webbrowser.open_new_tab(address) for address in addresses]
    return all(opened)
