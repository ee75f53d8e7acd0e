"""A password that would be recognised anywhere, where users put theirs: after a real run it is in
no file, no output, no artifact and no list of processes."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray  # noqa: F401  it brings psutil along

from orchestrator.tracking import store
from tests.integration.conftest import Shell
from tests.integration.mlflow_server import PATIENCE_S, free_port

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.timeout(600)]

USER = "tournament"
PASSWORD = "canary-of-tracking-1f9c"
KEY, SECRET = "CANARYKEY1F9C", "canary-of-storage-1f9c"
LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode())  # as a header has it
CANARIES = (PASSWORD.encode(), KEY.encode(), SECRET.encode(), LOGIN)
TORCH_WORKERS = ("ray::RayTrainWorker", "ray::execute")  # the latter while it starts
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def holding(*folders: Path) -> list[str]:
    """Files below the folders in which a canary is."""
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return [str(file) for file in files if any(word in file.read_bytes() for word in CANARIES)]


@pytest.fixture
def guarded_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a real MLflow behind a login, as cluster/mlflow.yaml starts it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
    (folder / "basic_auth.ini").write_text(settings)
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-canary",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", "--workers=1"]
    command += [
        "--host=127.0.0.1",
        f"--port={port}",
        f"--backend-store-uri=sqlite:///{folder}/a.db",
    ]
    command += [f"--artifacts-destination={(folder / 'artifacts').as_uri()}"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    address = f"127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE_S
        while store.check(f"http://{USER}:{PASSWORD}@{address}", timeout_s=1):
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.2)
        yield address, folder
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@dataclass
class Watch:
    """What any user of the machine is shown while ``launched`` runs: the list of processes, and the
    ports that its own processes open to others."""

    launched: int
    sightings: set[str]
    open_ports: set[str]
    samples: int = 0
    is_hidden: bool = False  # the login is off the command line; before, it is what was typed

    def look(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes()
                is_seen = any(word in line for word in CANARIES)
                if int(process.name) == self.launched and line and not is_seen:
                    self.is_hidden = True
                elif is_seen and (self.is_hidden or int(process.name) != self.launched):
                    self.sightings.add(line.replace(b"\0", b" ").decode())
        psutil = importlib.import_module("psutil")
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.launched).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.open_ports |= {
                        f"{child.name()} {connection.laddr.ip}"
                        for connection in child.net_connections(kind="inet")
                        if connection.status == psutil.CONN_LISTEN
                        and connection.laddr.ip not in LOOPBACK
                    }
        self.samples += 1


@contextlib.contextmanager
def watched(launched: int) -> Iterator[Watch]:
    watch, done = Watch(launched, set(), set()), threading.Event()

    def go_on() -> None:
        while not done.wait(0.1):
            watch.look()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def test_no_password_leaves_a_run(shell: Shell, guarded_mlflow: tuple[str, Path]) -> None:
    address, server = guarded_mlflow
    rays = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # short: it holds sockets
    shell.env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    shell.env |= {"RAY_TMPDIR": str(rays), "MLFLOW_TRACKING_URI": ""}
    typed = f"http://{USER}:{PASSWORD}@{address}"
    try:
        run = shell.start(
            *("sweep", "vit", "--name", "canary", "--trials", "1", "--max-epochs", "1"),
            *("--tracking-uri", typed),
        )
        with watched(run.pid) as watch:
            out, err = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, err
        assert watch.samples > 10
        assert watch.is_hidden
        assert watch.sightings == set()
        # The place where torch's workers meet listens everywhere, and cannot be told not to.
        assert {port for port in watch.open_ports if not port.startswith(TORCH_WORKERS)} == set()

        # The server has it all, and gives it to nobody without the login.
        question = urllib.request.Request(f"http://{address}/api/2.0/mlflow/experiments/search")
        question.data = json.dumps({"max_results": 1}).encode()
        question.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(question, timeout=30)
        assert list((server / "artifacts").rglob("report.html"))

        shell.env["MLFLOW_TRACKING_URI"] = typed
        said = [out, err]
        for arguments in (
            ("reproduce", "runs/canary/report.html"),
            ("reproduce", "runs/canary/report.html", "--spec"),
            ("status", "canary", "--json"),
        ):
            code, out, err = shell(*arguments)
            assert code == 0, err
            said += [out, err]
        assert [word for word in CANARIES for text in said if word in text.encode()] == []
        assert holding(shell.cwd, server, rays) == []
        (shell.cwd / "planted").write_text(f"a{PASSWORD}b")
        assert holding(shell.cwd) == [str(shell.cwd / "planted")]  # it is looked for
    finally:
        shutil.rmtree(rays, ignore_errors=True)
